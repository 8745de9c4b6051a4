"""Weights between those of an encoder and of one that went on from it.

A long training run far from what it began with can lose on other pictures what it gains on its
own; on the straight line between the two, both can be kept.

Source: Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT, arXiv:2109.01903).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from amdim_training.averaging import recompute_norms
from amdim_training.checkpoint import Checkpoint
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import ConfigError
from amdim_training.growth import deepened
from amdim_training.views import PIPELINE_OF, VIEWS, draw_pair

BATCH = 64


def blend(
    first: Checkpoint,
    second: Checkpoint,
    share: float,
    pixels: Tensor,
    *,
    seed: int = 0,
) -> AmdimEncoder:
    """Returns an encoder with weights on the line from one encoder's to another's.

    Args:
        first: Where the line begins; made deeper where the second one is (`growth.py`).
        second: Where it ends: trained on from the first one's weights. Weights that were drawn
            apart have nothing useful between them.
        share: How far along, in 0..1; 1 is the second.
        pixels: (N, P, P, 3) uint8 training images, N at least 64: batch norms are recomputed on
            their views, since blended weights see other activations than either's statistics.
        seed: Of the views.

    Returns:
        The encoder, in evaluation mode.

    Raises:
        ConfigError: The share is no share, the two are of different shapes or pixels, or there
            are too few images.
    """
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"a share lies between 0 and 1, not {share}")
    if first.normalization != second.normalization:
        raise ConfigError("the two encoders normalise pixels differently")
    if len(pixels) < BATCH:
        raise ConfigError(f"{BATCH} training images at least, not {len(pixels)}")
    config = second.encoder.config
    deeper = config != first.encoder.config
    start = deepened(first.encoder, config) if deeper else first.encoder
    mixed = AmdimEncoder(config)
    ends = start.state_dict(), second.encoder.state_dict()
    with torch.no_grad():
        for name, value in mixed.state_dict().items():
            value.copy_(torch.lerp(ends[0][name].float(), ends[1][name].float(), share))
    recompute_norms(mixed, _views(pixels, config.image_size, seed))
    return mixed.eval()


def _views(pixels: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    pipeline = VIEWS[PIPELINE_OF[size]]
    generator = torch.Generator().manual_seed(seed)
    for at in range(0, len(pixels) - BATCH + 1, BATCH):
        yield from draw_pair(pixels[at : at + BATCH], size, pipeline, generator)
