"""fp16's small gradients, kept from vanishing by scaling the loss; nothing at other precisions.

Knows no encoder and no schedule.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_KEYS = ("scale", "_growth_tracker")
_PREFIX = "loss_scale."


class LossScaler:
    """Scales losses and divides the optimiser's gradients again, skipping updates that overflow.

    Args:
        device: Where losses are.
        enabled: Off, losses and updates are left as they are.
    """

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        self._scaler = torch.amp.GradScaler(device.type, enabled=enabled)

    def scale(self, loss: Tensor) -> Tensor:
        """Returns the loss to differentiate."""
        scaled: Tensor = self._scaler.scale(loss)
        return scaled

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes the update, unless a gradient overflowed; the scale then halves."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict[str, Tensor]:
        """Returns the scale as named tensors; nothing where it is off."""
        values = self._scaler.state_dict()
        return {_PREFIX + key: torch.tensor(float(values[key])) for key in _KEYS if key in values}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts back what `state` returned; without it the scale starts afresh."""
        values = self._scaler.state_dict()
        if not values or _PREFIX + _KEYS[0] not in tensors:
            return
        found = {key: tensors[_PREFIX + key].item() for key in _KEYS}
        found["_growth_tracker"] = int(found["_growth_tracker"])
        self._scaler.load_state_dict(values | found)
