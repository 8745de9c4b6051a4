"""Teaches a quantized graph the vectors of the one in float, on unlabelled pictures.

Every layer goes on learning with its rounding in place, so that what rounding costs is made up
for where it can be. Knows no files and no engine.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amdim_export.graph import ServingGraph
from amdim_export.quantizers import ActivationQuantizer, QuantizedConv

Progress = Callable[[int, int, float], None]
"""Called with the updates made, how many there will be, and the loss of the last."""

_WARMUP = 0.05


@dataclasses.dataclass(frozen=True, slots=True)
class FineTuning:
    """How long and how fast.

    Attributes:
        steps: Updates; the same number, pictures and seed give the same weights.
        batch_size: Pictures of an update.
        learning_rate: Of weights and biases at its peak, as a share of each tensor's own size.
        seed: Of the pictures' order and mirroring.
    """

    steps: int = 400
    batch_size: int = 16
    learning_rate: float = 1e-3
    seed: int = 0


def finetune(
    student: ServingGraph,
    teacher: ServingGraph,
    pixels: Tensor,
    options: FineTuning,
    *,
    progress: Progress | None = None,
) -> None:
    """Trains a quantized graph in place.

    Args:
        student: Quantized and calibrated.
        teacher: The float graph that it was made of.
        pixels: (N, S, S, 3) uint8.
        options: Length and rate.
        progress: Told of every update.
    """
    student.requires_grad_(True)
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if student.search is not None:
        student.search.requires_grad_(False)  # affine and in float: nothing was lost there
    groups = list(_groups(student, options.learning_rate))
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: _rate(n, options.steps))
    generator = torch.Generator().manual_seed(options.seed)
    for step in range(options.steps):
        rows = torch.randint(len(pixels), (options.batch_size,), generator=generator)
        batch = pixels[rows]
        mirrored = torch.rand(len(batch), generator=generator) < 0.5
        batch[mirrored] = batch[mirrored].flip(2)
        with torch.no_grad():
            wanted = teacher(batch)
        loss = distance(student(batch), wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()
        if progress is not None:
            progress(step + 1, options.steps, float(loss.detach()))
    student.requires_grad_(False)


def distance(given: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Returns the squared error of outputs (N, ..., F), as a share of their size, summed."""
    losses = [
        (one - other).square().sum(dim=-1).mean() / other.square().sum(dim=-1).mean()
        for one, other in zip(given, wanted, strict=True)
    ]
    return torch.stack(losses).sum()


def _groups(student: nn.Module, rate: float) -> Iterator[dict[str, Any]]:
    """Yields each tensor with its own rate: its size times `rate`, so that layers move alike."""
    for module in student.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight
            size = float(weight.detach().square().mean().sqrt())
            yield {"params": [weight], "lr": rate * size}
            if module.bias is not None:
                # what a bias adds is to what the weights add as if inputs were about 1
                inputs = weight[0].numel()
                yield {"params": [module.bias], "lr": rate * size * math.sqrt(inputs)}
        elif isinstance(module, ActivationQuantizer | QuantizedConv):
            # a logarithm's updates are relative already
            yield {"params": [module.log_scale], "lr": rate}


def _rate(step: int, steps: int) -> float:
    """Returns the share of the peak rate: rises at first, then falls along a cosine to zero."""
    rise = max(1, int(_WARMUP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
