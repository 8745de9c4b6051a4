"""The AMDIM encoder: a network that pads nothing and answers at three scales at once.

Knows nothing of pictures, losses or files: normalised tensors in, features out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amdim_training.config import EncoderConfig
from amdim_training.errors import ShapeError
from amdim_training.products import convolve


class EncoderFeatures(NamedTuple):
    """What one forward pass says of N images, all in one D-dimensional space.

    Attributes:
        f1: (N, D) global features.
        f5: (N, D, 5, 5) local features, receptive field half the image.
        f7: (N, D, 7, 7) local features, receptive field a quarter of the image.
    """

    f1: Tensor
    f5: Tensor
    f7: Tensor


class Stem(nn.Module):
    """Convolution with bias and ReLU; the 128 px encoder's first one reflects its borders."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, pad: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            c_in, c_out, kernel, stride, padding=pad, padding_mode="reflect" if pad else "zeros"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, c_out, h, w) of (N, c_in, H, W)."""
        return F.relu(self.conv(x))


class ResidualUnit(nn.Module):
    """conv k x k, ReLU, conv 1x1, plus an average-pooled, zero-extended shortcut.

    There is no activation after the sum. At initialisation the second convolution is zero, so the
    unit is average pooling.

    Source: SPEC.md 1.2.
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int, *, batch_norm: bool
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride
        self.conv1 = nn.Conv2d(c_in, c_out, kernel, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out) if batch_norm else None
        self.conv2 = nn.Conv2d(c_out, c_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, c_out, h, w) of (N, c_in, H, W)."""
        hidden = convolve(self.conv1, x)
        if self.bn1 is not None:
            hidden = self.bn1(hidden)
        main = convolve(self.conv2, F.relu(hidden))
        shortcut = x if self.kernel == 1 else F.avg_pool2d(x, self.kernel, self.stride)
        extra = main.shape[1] - shortcut.shape[1]
        if extra:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, extra))  # zero channels after the pooled
        return main + shortcut


class LocalHead(nn.Module):
    """Maps trunk activations of one grid into the space the loss scores: (N, C, d, d) -> D.

    Source: SPEC.md 1.2, "Embedding head".
    """

    def __init__(self, c_in: int, embed_dim: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, embed_dim, 1, bias=False)
        self.bn_hidden = nn.BatchNorm2d(embed_dim) if batch_norm else None
        self.conv2 = nn.Conv2d(embed_dim, embed_dim, 1, bias=False)
        self.shortcut = nn.Conv2d(c_in, embed_dim, 1)
        self.bn_out = nn.BatchNorm2d(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, D, d, d) of (N, C, d, d)."""
        hidden = convolve(self.conv1, x)
        if self.bn_hidden is not None:
            hidden = self.bn_hidden(hidden)
        main = convolve(self.conv2, F.relu(hidden))
        out: Tensor = self.bn_out(main + convolve(self.shortcut, x))
        return out


class AmdimEncoder(nn.Module):
    """The encoder for one `EncoderConfig`: (N, 3, S, S) float32, normalised -> EncoderFeatures.

    `layers` follows the reference's list index by index, so that SPEC.md 1.3 and a checkpoint's
    keys can be read beside it. Hidden batch norms that the configuration leaves out do not exist
    here: they belong in the reference's checkpoints only.

    Source: AMDIM (arXiv:1906.00910); SPEC.md 1.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(_build_layers(config))
        self._tap7 = _index_of_trunk_norm(config)
        self.head5 = LocalHead(config.trunk_width, config.embed_dim, batch_norm=config.batch_norm)
        self.head7 = LocalHead(config.trunk_width, config.embed_dim, batch_norm=config.batch_norm)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws fresh weights by the reference's rule (SPEC.md 1.4)."""
        for module in self.modules():
            if isinstance(module, ResidualUnit | LocalHead):
                nn.init.kaiming_uniform_(module.conv1.weight, a=math.sqrt(5))
                nn.init.zeros_(module.conv2.weight)
            if isinstance(module, LocalHead):
                weight = module.shortcut.weight
                nn.init.uniform_(weight, -0.01, 0.01)
                with torch.no_grad():
                    diagonal = torch.arange(min(weight.shape[:2]))
                    weight[diagonal, diagonal] = 1.0

    def activations(self, images: Tensor) -> dict[int, Tensor]:
        """Returns trunk activations by grid.

        Those of 7 and 5 are (N, C, d, d), what the heads take; those of 14 and 30 are what the
        two blocks before them take, (N, C/2, 14, 14) and (N, C/4, 30, 30); that of 1 is
        (N, D, 1, 1).

        Raises:
            ShapeError: `images` is not (N, 3, S, S) with the encoder's S.
        """
        size = self.config.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
            raise ShapeError(f"expected (N, 3, {size}, {size}), got {tuple(images.shape)}")
        taps: dict[int, Tensor] = {}
        x = images
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index == self._tap7 - 3:
                taps[30] = x
            elif index == self._tap7 - 2:  # before the last strided block and the norm
                taps[14] = x
            elif index == self._tap7:
                taps[7] = x
            elif index == self._tap7 + 1:
                taps[5] = x
        taps[1] = x
        return taps

    def forward(self, images: Tensor) -> EncoderFeatures:
        """Returns the features of (N, 3, S, S) normalised images; see `activations`."""
        return self.features(self.activations(images))

    def features(self, taps: Mapping[int, Tensor]) -> EncoderFeatures:
        """Returns the features of what `activations` returned."""
        return EncoderFeatures(
            f1=taps[1].flatten(1),  # (N, D, 1, 1) -> (N, D)
            f5=self.head5(taps[5]),
            f7=self.head7(taps[7]),
        )


def _build_layers(config: EncoderConfig) -> list[nn.Module]:
    """Returns the top-level layers of SPEC.md 1.3's table, in order."""
    w, top = config.width, config.trunk_width

    def block(c_in: int, c_out: int, kernel: int, stride: int) -> nn.Sequential:
        units = [unit(c_in, c_out, kernel, stride)]
        units += [unit(c_out, c_out, 1, 1) for _ in range(config.depth - 1)]
        return nn.Sequential(*units)

    def unit(c_in: int, c_out: int, kernel: int, stride: int) -> ResidualUnit:
        return ResidualUnit(c_in, c_out, kernel, stride, batch_norm=config.batch_norm)

    if config.image_size == 32:
        layers: list[nn.Module] = [
            Stem(3, w, 3),
            unit(w, w, 1, 1),
            block(w, 2 * w, 4, 2),
            block(2 * w, 4 * w, 2, 2),
        ]
    else:
        stems = [Stem(3, w, 3)]
        if config.image_size == 128:
            stems = [Stem(3, w, 5, stride=2, pad=2), Stem(w, w, 3)]
        layers = [
            *stems,
            block(w, 2 * w, 4, 2),
            block(2 * w, 4 * w, 4, 2),
            block(4 * w, 8 * w, 2, 2),
        ]
    layers += [
        nn.BatchNorm2d(top) if config.batch_norm else nn.Identity(),
        block(top, top, 3, 1),
        block(top, top, 3, 1),
        unit(top, config.embed_dim, 3, 1),
        nn.BatchNorm2d(config.embed_dim),
    ]
    return layers


def _index_of_trunk_norm(config: EncoderConfig) -> int:
    """Returns the list index whose output is the 7x7 tap; the 5x5 tap is the next one."""
    return 5 if config.image_size == 128 else 4
