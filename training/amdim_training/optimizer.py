"""Adam as the configuration has it, and its state as named tensors to go on from exactly.

Knows nothing of files and schedules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from amdim_training.config import OptimConfig

_MOMENTS = ("exp_avg", "exp_avg_sq")

Named = Iterable[tuple[str, nn.Parameter]]


def make_adam(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.Adam:
    """Returns Adam over the parameters, fused: one pass over memory an update."""
    return torch.optim.Adam(
        parameters,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def match_layout(optimizer: Optimizer) -> None:
    """Lays Adam's moments out as their parameters are, whose memory format has changed."""
    for parameter, state in optimizer.state.items():
        for key in _MOMENTS:
            if key in state:
                state[key] = torch.empty_like(parameter).copy_(state[key])


def optimizer_tensors(optimizer: Optimizer, parameters: Named) -> dict[str, Tensor]:
    """Returns Adam's state of every named parameter as `<quantity>/<name>`, on the CPU."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters:
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = value.detach().cpu().contiguous()
    return tensors


def restore_optimizer(
    optimizer: Optimizer, parameters: Named, tensors: Mapping[str, Tensor]
) -> None:
    """Puts back what `optimizer_tensors` returned; parameters it does not name start afresh."""
    for name, parameter in parameters:
        if f"step/{name}" not in tensors:
            continue
        state = {"step": tensors[f"step/{name}"].clone()}
        for key in _MOMENTS:  # in the parameter's own memory format, or the first step copies
            state[key] = torch.empty_like(parameter).copy_(tensors[f"{key}/{name}"])
        optimizer.state[parameter] = state
