"""Trains AMDIM encoders and reads their checkpoints.

The names below are the package's promise; they load torch when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amdim_training.checkpoint import load_encoder
    from amdim_training.config import EncoderConfig, TrainConfig
    from amdim_training.encoder import AmdimEncoder, EncoderFeatures
    from amdim_training.errors import TrainingError
    from amdim_training.hub import from_pretrained, push_to_hub
    from amdim_training.loss import LossTerms, infomax_loss

_HOMES = {
    "AmdimEncoder": "encoder",
    "EncoderConfig": "config",
    "EncoderFeatures": "encoder",
    "LossTerms": "loss",
    "TrainConfig": "config",
    "TrainingError": "errors",
    "from_pretrained": "hub",
    "infomax_loss": "loss",
    "load_encoder": "checkpoint",
    "push_to_hub": "hub",
}

__all__ = [
    "AmdimEncoder",
    "EncoderConfig",
    "EncoderFeatures",
    "LossTerms",
    "TrainConfig",
    "TrainingError",
    "from_pretrained",
    "infomax_loss",
    "load_encoder",
    "push_to_hub",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
