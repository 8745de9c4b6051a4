"""What is served: uint8 pictures in, named vectors out, as one torch module to export.

Knows no files and no ONNX. The search vector is one matrix product: whitening is affine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from amdim_export.fusion import (
    FusedHead,
    FusedStem,
    FusedUnit,
    MapLayout,
    MapSpread,
    WindowLayout,
    WindowSpread,
    convolution,
    tile_convolution,
)
from amdim_export.names import output_shapes
from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder, ResidualUnit, Stem
from amdim_training.search_vector import TILE14, TILE30, search_widths
from amdim_training.views import Normalization
from amdim_training.whitening import Whitening


class FeatureMaps(NamedTuple):
    """What the trunk says of pictures with h x w windows, float32; h = w = 1 where H = W = S.

    Attributes:
        f1: (N, D, h, w).
        f5: (N, D, h+4, w+4).
        f7: (N, D, h+6, w+6); None for windows, whose search vector has no part of it.
        pooled: (N, F', h, w): f1 beside the mean of f5 and the spreads of the trunk's maps over
            each window, the first four of `search_vector.SearchFeatures`.
        layouts: What the last two of them are made of, by `MapLayout` or `WindowLayout`.
    """

    f1: Tensor
    f5: Tensor
    f7: Tensor | None
    pooled: Tensor
    layouts: tuple[Tensor, Tensor]


class FusedTrunk(nn.Module):
    """Pixels 0..255, (N, 3, H, W) float32, to feature maps.

    Only the encoder's own S makes sense at 128 px, whose stem reflects borders.

    Args:
        encoder: The trained encoder.
        normalization: Of its pixels.
        compute: What all but the first layer computes in. The first stays float32: pixels reach
            255 and its weights hold the pixels' statistics, too small for float16.
    """

    def __init__(
        self,
        encoder: AmdimEncoder,
        normalization: Normalization,
        compute: torch.dtype = torch.float32,
        *,
        windows: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        taps: list[int] = []  # how many fused layers lie before the 7x7 and the 5x5 map
        for top in _with_norms(encoder.layers):
            for module, norm in top:
                if isinstance(module, Stem):
                    first = not layers
                    layers.append(
                        FusedStem(module, normalization.mean, normalization.std)
                        if first
                        else module
                    )
                elif isinstance(module, ResidualUnit):
                    layers.append(FusedUnit(module, norm))
            taps.append(len(layers))
        self.layers = nn.ModuleList(layers)
        self.compute = compute
        # the last six top-level layers give the maps of 30, 14, 7, 5, 3 and 1 (SPEC.md 1.3)
        self.tap30, self.tap14, self.tap7, self.tap5 = taps[-6:-2]
        self.head5 = FusedHead(encoder.head5, 5)
        self.head7 = None if windows else FusedHead(encoder.head7, 7)
        self.spread14 = WindowSpread(14, 2) if windows else MapSpread()
        self.spread7 = WindowSpread(7, 1) if windows else MapSpread()
        self.layout14 = WindowLayout(TILE14, 2) if windows else MapLayout(TILE14)
        self.layout30 = WindowLayout(TILE30, 4) if windows else MapLayout(TILE30)
        for rounded in (*layers[1:], self.head5, self.head7):
            if rounded is not None:
                rounded.to(compute)

    def forward(self, pixels: Tensor) -> FeatureMaps:
        """Returns the maps of pictures (N, 3, H, W)."""
        x, maps = pixels, {}
        for count, layer in enumerate(self.layers, start=1):
            x = layer(x)
            if count == 1:
                x = x.to(self.compute)
            maps[count] = x
        f5, means5 = self.head5(maps[self.tap5])
        f7 = None if self.head7 is None else self.head7(maps[self.tap7])[0].float()
        spreads = self.spread14(maps[self.tap14]), self.spread7(maps[self.tap7])
        pooled = torch.cat([x.float(), means5.float(), *spreads], dim=1)
        layouts = self.layout14(maps[self.tap14]), self.layout30(maps[self.tap30])
        return FeatureMaps(x.float(), f5.float(), f7, pooled, layouts)


class ServingGraph(nn.Module):
    """`images` (N, S, S, 3) uint8 -> `embedding`, `global`, `local5`, `local7`, float32.

    Attributes:
        output_names: Names of what `forward` returns, in its order; no `embedding` where no
            whitening was given.
    """

    def __init__(
        self,
        encoder: AmdimEncoder,
        normalization: Normalization,
        whitening: Whitening | None = None,
        *,
        compute: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.trunk = FusedTrunk(encoder, normalization, compute)
        self.search = None if whitening is None else _affine(whitening)
        dim = None if self.search is None else self.search.out_features
        self.output_names = tuple(output_shapes(encoder.config.embed_dim, dim))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Returns the outputs in the order of `output_names`."""
        # the cast comes first: TensorRT refuses to transpose uint8
        maps = self.trunk(images.float().permute(0, 3, 1, 2))
        vector = maps.f1.flatten(1)  # (N, D, 1, 1) -> (N, D)
        local5 = maps.f5.permute(0, 2, 3, 1)  # (N, D, 5, 5) -> (N, 5, 5, D)
        assert maps.f7 is not None
        local7 = maps.f7.permute(0, 2, 3, 1)
        if self.search is None:
            return vector, local5, local7
        features = torch.cat([part.flatten(1) for part in (maps.pooled, *maps.layouts)], dim=1)
        return self.search(features), vector, local5, local7


class WindowsGraph(nn.Module):
    """`images` (N, H, W, 3) uint8 -> `windows` (N, h, w, E): every S x S window's search vector.

    H and W are S plus multiples of S/8, the stride of the windows: h = (H - S) / (S / 8) + 1.
    The search vector is a sum of convolutions: 1x1 on what is pooled over a window, and on each
    map of tiles one whose kernel has the tiles of a window under it.
    """

    output_names = ("windows",)

    def __init__(
        self, encoder: AmdimEncoder, normalization: Normalization, whitening: Whitening
    ) -> None:
        super().__init__()
        self.trunk = FusedTrunk(encoder, normalization, windows=True)
        affine = _affine(whitening)
        pooled, *tiles = affine.weight.split(_columns(encoder.config), dim=1)
        self.search = convolution(pooled[:, :, None, None], affine.bias)
        self.search14 = tile_convolution(tiles[0], self.trunk.layout14, 14)
        self.search30 = tile_convolution(tiles[1], self.trunk.layout30, 30)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Returns `windows`."""
        maps = self.trunk(images.float().permute(0, 3, 1, 2))
        vectors = self.search(maps.pooled)
        for search, layout in zip((self.search14, self.search30), maps.layouts, strict=True):
            vectors = vectors + search(layout)
        return (vectors.permute(0, 2, 3, 1),)


def _columns(config: EncoderConfig) -> tuple[int, int, int]:
    """Returns how many of the search vector's features are pooled, and how many of each layout."""
    *pooled, layout14, layout30 = search_widths(config)
    return sum(pooled), layout14, layout30


def _affine(whitening: Whitening) -> nn.Linear:
    """Returns (x - mean) @ projection^T as one layer, its bias computed in float64."""
    components, width = whitening.projection.shape
    layer = nn.Linear(width, components)
    layer.weight.data = whitening.projection.float().clone()
    layer.bias.data = -(whitening.projection.double() @ whitening.mean.double()).float()
    return layer


def _with_norms(
    layers: nn.ModuleList,
) -> Iterator[list[tuple[nn.Module, nn.BatchNorm2d | None]]]:
    """Yields each top-level layer's modules, a batch norm joined to the unit before it."""
    tops = list(layers)
    for index, top in enumerate(tops):
        if not isinstance(top, Stem | ResidualUnit | nn.Sequential):
            continue
        units = list(top) if isinstance(top, nn.Sequential) else [top]
        after = tops[index + 1] if index + 1 < len(tops) else None
        norm = after if isinstance(after, nn.BatchNorm2d) else None
        yield [(unit, norm if unit is units[-1] else None) for unit in units]
