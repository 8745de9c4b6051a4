"""A deeper encoder that begins as a shallower one: what was learned goes on, with room for more."""

from __future__ import annotations

import dataclasses

import torch

from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import ConfigError


def deepened(encoder: AmdimEncoder, config: EncoderConfig) -> AmdimEncoder:
    """Returns an encoder of more units a block that computes exactly what the given one does.

    A 1x1 unit's shortcut is its input and its second convolution starts at zero (SPEC.md 1.4), so
    units as they are freshly drawn are the identity; training bends them from there.

    Args:
        encoder: The trained encoder; it is left as it is.
        config: As the encoder's, but for a larger `depth`.

    Raises:
        ConfigError: The two differ in more than depth, or the depth is not larger.

    Source: network growing by function-preserving units, Net2Net (arXiv:1511.05641).
    """
    same = dataclasses.replace(config, depth=encoder.config.depth) == encoder.config
    if not same or config.depth <= encoder.config.depth:
        raise ConfigError(
            f"an encoder of another shape: {encoder.config} can only be made deeper, not {config}"
        )
    grown = AmdimEncoder(config)
    with torch.no_grad():
        tensors = grown.state_dict()
        for name, value in encoder.state_dict().items():
            tensors[name].copy_(value)
    return grown
