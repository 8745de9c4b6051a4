"""Muon: momentum whose steps are orthogonal matrices; for convolutions, with Adam for the rest.

A weight matrix moves by the orthogonal factor of its momentum, so that every direction of it learns
at the same pace; Adam lets a few directions take most of a step. Batched, since most of the
encoder's matrices have one shape. Knows nothing of files and schedules.

Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the
scale of a step is that of J. Liu et al., "Muon is Scalable for LLM Training" (arXiv:2502.16982).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# The quintic iteration of the source: steep at zero, so that five rounds bring every singular value
# to between 0.7 and 1.2, which serves as well as 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5
# Root mean square of a step's entries, in learning rates: about what Adam's steps have.
_RMS = 0.2
# A matrix with a shorter side is too small to gain from it: the stem's 27 inputs.
_LEAST_SIDE = 32


class Muon(Optimizer):
    """Orthogonal steps for convolutions' weights; Adam for the stem, batch norms and biases.

    Args:
        parameters: What it moves.
        lr: Learning rate of both.
        momentum: Share of the old momentum kept at each update (Nesterov's form).
        weight_decay: Decoupled, on the orthogonal part: share of a weight lost at each update, in
            learning rates. Adam's part takes it as Adam does, coupled.
        betas: Adam's.
        eps: Adam's.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.8, 0.999),
        eps: float = 1e-8,
    ) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for parameter in parameters:
            (matrices if is_matrix(parameter) else others).append(parameter)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([{"params": matrices}], defaults)
        self._adam = torch.optim.Adam(
            others, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
        )
        # One state and one list of groups: what sets a rate or saves a moment sees both parts.
        self._adam.state = self.state
        self.param_groups += self._adam.param_groups

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves every parameter that has a gradient."""
        group = self.param_groups[0]
        alike: defaultdict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            momentum: Tensor = state["momentum_buffer"].lerp_(
                parameter.grad, 1.0 - group["momentum"]
            )
            alike[parameter.shape].append(
                (parameter, parameter.grad.lerp(momentum, group["momentum"]))
            )
        for shape, members in alike.items():
            stacked = torch.stack([direction.flatten(1) for _, direction in members])
            steps = orthogonalized(stacked)
            scale = _RMS * max(steps.shape[1:]) ** 0.5
            for (parameter, _), change in zip(members, steps.float(), strict=True):
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                parameter.add_(change.view(shape), alpha=-group["lr"] * scale)
        self._adam.step()


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter takes orthogonal steps: a convolution's weight, as (out, in k k)."""
    return parameter.ndim == 4 and min(parameter.shape[0], parameter[0].numel()) >= _LEAST_SIDE


def orthogonalized(matrices: Tensor) -> Tensor:
    """Returns about the orthogonal factor U V^T of each matrix U S V^T.

    Args:
        matrices: (B, m, n), any scale; a matrix of zeros stays zero.

    Returns:
        (B, m, n) bfloat16: singular values between about 0.7 and 1.2, but for directions whose
        singular value was below about a thousandth of the matrix's norm.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-20)
    a, b, c = _QUINTIC
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x
