"""What an encoder has to beat: random weights of its own shape, raw pixels, and HOG."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder, LocalHead, ResidualUnit
from amdim_training.features import TorchEncoder
from amdim_training.views import VIEWS

Pixels = npt.NDArray[np.uint8]


def random_encoder(config: EncoderConfig, pixels: Pixels) -> TorchEncoder:
    """Returns an untrained encoder, a fair opponent.

    Every convolution is drawn, also those that training starts at zero, and the batch norms'
    statistics are of the training images given, (N, S, S, 3): both raise its scores.
    """
    torch.manual_seed(0)
    encoder = AmdimEncoder(config)
    normalization = VIEWS["stl10"].normalization
    for module in encoder.modules():
        if isinstance(module, ResidualUnit | LocalHead):
            torch.nn.init.kaiming_uniform_(module.conv2.weight, a=math.sqrt(5))
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain average over the batches
    with torch.no_grad():
        for start in range(0, 2048, 256):
            batch = torch.from_numpy(pixels[start : start + 256]).permute(0, 3, 1, 2) / 255.0
            encoder(normalization.apply(batch))
    return TorchEncoder(encoder, normalization)


def halved(pixels: Pixels) -> Tensor:
    """Returns sums of 2 x 2 pixels of (N, S, S, 3) as (N, 3 S^2 / 4) float32 rows.

    Half the side scored above the whole pictures on every task, and the mean picture taken off
    above raw values, when 10,000 training images were searched: this is the better baseline.
    """
    side = pixels.shape[1] // 2
    rows = torch.empty(len(pixels), side * side * 3)
    for start in range(0, len(pixels), 4096):
        block = np.array(pixels[start : start + 4096], dtype=np.uint16)
        sums = block.reshape(-1, side, 2, side, 2, 3).sum(axis=(2, 4), dtype=np.float32)
        rows[start : start + 4096] = torch.from_numpy(sums.reshape(len(sums), -1))
    return rows


def hog_vectors(pixels: Pixels) -> Tensor:
    """Returns histograms of oriented gradients: 9 directions, 8 x 8 cells, 2 x 2 blocks."""
    from skimage.feature import hog

    rows = [
        hog(
            picture,
            orientations=9,
            pixels_per_cell=(8, 8),
            cells_per_block=(2, 2),
            block_norm="L2-Hys",
            channel_axis=-1,
        ).astype(np.float32)
        for picture in pixels
    ]
    return torch.from_numpy(np.stack(rows))
