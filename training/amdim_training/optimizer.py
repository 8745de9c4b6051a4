"""The optimiser the configuration names, and its state as named tensors to go on from exactly.

Knows nothing of files and schedules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from amdim_training.config import OptimConfig
from amdim_training.muon import Muon, is_matrix

_COUNT = "step"

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


def make_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig) -> Optimizer:
    """Returns the encoder's optimiser over the parameters."""
    if config.optimizer == "adam":
        return make_adam(parameters, config)
    return Muon(
        parameters,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=config.betas,
        eps=config.eps,
    )


def match_layout(optimizer: Optimizer) -> None:
    """Lays the moments out as their parameters are, whose memory format has changed."""
    for parameter, state in optimizer.state.items():
        for key in _moments(optimizer, parameter):
            if key in state:
                state[key] = torch.empty_like(parameter).copy_(state[key])


def optimizer_tensors(optimizer: Optimizer, parameters: Named) -> dict[str, Tensor]:
    """Returns the state of every named parameter as `<quantity>/<name>`, on the CPU."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters:
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = value.detach().cpu().contiguous()
    return tensors


def restore_optimizer(
    optimizer: Optimizer, parameters: Named, tensors: Mapping[str, Tensor]
) -> None:
    """Puts back what `optimizer_tensors` returned.

    Parameters that it does not name, or whose moments are another optimiser's, start afresh.
    """
    for name, parameter in parameters:
        moments = _moments(optimizer, parameter)
        if any(f"{key}/{name}" not in tensors for key in moments):
            continue
        state: dict[str, Tensor] = {}
        if f"{_COUNT}/{name}" in tensors:
            state[_COUNT] = tensors[f"{_COUNT}/{name}"].clone()
        for key in moments:  # in the parameter's own memory format, or the first step copies
            state[key] = torch.empty_like(parameter).copy_(tensors[f"{key}/{name}"])
        optimizer.state[parameter] = state


def _moments(optimizer: Optimizer, parameter: Tensor) -> tuple[str, ...]:
    """Returns the names of what an optimiser keeps of a parameter, each shaped like it."""
    if isinstance(optimizer, Muon) and is_matrix(parameter):
        return ("momentum_buffer",)
    return ("exp_avg", "exp_avg_sq")
