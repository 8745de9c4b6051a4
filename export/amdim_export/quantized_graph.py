"""The serving graph with quantizers in it: the same layers, rounding where int8 kernels round.

A tensor is rounded once, where it is made, whoever reads it: the next convolution and the
shortcut see the same values, so no float copy of an activation crosses memory. Where levels are
unsigned, the trunk's sums are shifted by a constant for each channel until nothing is negative:
the encoder pads nothing, so biases undo that exactly. Knows no training.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amdim_export.errors import GraphError
from amdim_export.fusion import FusedHead, FusedStem, FusedUnit, deviation
from amdim_export.graph import FusedTrunk, ServingGraph
from amdim_export.quantizers import (
    ActivationQuantizer,
    PixelQuantizer,
    QuantizedConv,
    QuantizedPool,
)
from amdim_training.encoder import Stem
from amdim_training.search_vector import TILE14, TILE30


@dataclasses.dataclass(frozen=True, slots=True)
class Scheme:
    """What is quantized and how.

    Attributes:
        signed: Whether every activation is int8, as TensorRT wants it; else all are uint8 with
            zero point 0, which uses every level and is what CPUs multiply with signed weights.
            (OpenVINO 2026.4 gives wrong sums where int8 activations were joined.)
        keep_float: Parts left in float: `head5`, `head7`, or the number of a stem or unit in the
            trunk's layers.
    """

    signed: bool = False
    keep_float: frozenset[str] = frozenset()


class QuantizedStem(nn.Module):
    """A stem whose result is rounded, and where levels are unsigned its weights.

    Pixels are whole numbers from 0 to 255: 256 unsigned levels hold them as they are.
    """

    def __init__(self, stem: FusedStem | Stem, scheme: Scheme, *, keep_float: bool) -> None:
        super().__init__()
        self.conv = _conv(stem.conv, keep_float)
        self.pixels = None if keep_float else PixelQuantizer()
        self.leave = ActivationQuantizer(unsigned=not scheme.signed)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, h, w)."""
        if self.pixels is not None:
            x = self.pixels(x)
        out: Tensor = self.leave(F.relu(self.conv(x)))
        return out


class QuantizedUnit(nn.Module):
    """A residual unit whose hidden layer and sum are rounded."""

    shortcut_scale: Tensor | None

    def __init__(self, unit: FusedUnit, scheme: Scheme, *, keep_float: bool) -> None:
        super().__init__()
        self.pool = _pool(unit, scheme)
        self.conv1 = _conv(unit.conv1, keep_float)
        self.hidden = None if keep_float else ActivationQuantizer(unsigned=not scheme.signed)
        self.carried = _conv(unit.carried, keep_float)
        self.fresh = None if unit.fresh is None else _conv(unit.fresh, keep_float)
        fresh = 0 if unit.fresh is None else unit.fresh.out_channels
        self.channels = unit.carried.out_channels + fresh
        self.register_buffer("shortcut_scale", unit.shortcut_scale)
        self.leave = ActivationQuantizer(unsigned=not scheme.signed)
        # kernels that add in place round the pooled shortcut: said here, so that training sees it
        pools = unit.kernel > 1
        self.pooled = ActivationQuantizer(unsigned=not scheme.signed) if pools else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C_out, h, w)."""
        hidden = F.relu(self.conv1(x))
        if self.hidden is not None:
            hidden = self.hidden(hidden)
        shortcut = self.pool(x)
        if self.shortcut_scale is not None:
            shortcut = shortcut * self.shortcut_scale
        if self.pooled is not None:
            shortcut = self.pooled(shortcut)
        parts = [self.carried(hidden) + shortcut]
        if self.fresh is not None:
            parts.append(self.fresh(hidden))
        # before they are joined, so that each is rounded inside its convolution's kernel
        parts = [self.leave(part) for part in parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class QuantizedTop(nn.Module):
    """The last unit, whose kernel covers its whole input: its first convolution is one product.

    Only that is rounded. (OpenVINO 2026.4's int8 convolutions give wrong vectors where the map is
    1 x 1 and the batch one picture.)
    """

    shortcut_scale: Tensor | None

    def __init__(self, unit: FusedUnit) -> None:
        super().__init__()
        self.conv1 = QuantizedConv(unit.conv1)
        self.carried, self.fresh = unit.carried, unit.fresh
        self.register_buffer("shortcut_scale", unit.shortcut_scale)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, k, k) -> (N, C_out, 1, 1) in float."""
        hidden = F.relu(self.conv1.product(x))
        shortcut = _mean(x)
        if self.shortcut_scale is not None:
            shortcut = shortcut * self.shortcut_scale
        out: Tensor = self.carried(hidden) + shortcut
        return out if self.fresh is None else torch.cat([out, self.fresh(hidden)], dim=1)


class QuantizedHead(nn.Module):
    """A local head on its input's levels; what it returns is in float, as are its means' sums.

    The means have weights of their own, in float: with weights that an int8 and a float
    convolution share, OpenVINO 2026.4 now and then compiles a wrong model for several streams.
    """

    def __init__(self, head: FusedHead, scheme: Scheme) -> None:
        super().__init__()
        self.conv1 = QuantizedConv(head.conv1)
        self.hidden = ActivationQuantizer(unsigned=not scheme.signed)
        self.conv2 = QuantizedConv(head.conv2)
        self.shortcut = QuantizedConv(head.shortcut)
        self.means2 = copy.deepcopy(head.conv2)
        self.means_shortcut = copy.deepcopy(head.shortcut)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `FusedHead.forward`."""
        hidden = self.hidden(F.relu(self.conv1(x)))
        local: Tensor = self.conv2(hidden) + self.shortcut(x)
        return local, self.means2(_mean(hidden)) + self.means_shortcut(_mean(x))


class QuantizedSpread(nn.Module):
    """`MapSpread` of levels, whose rounding hides what squares lose by not being centred.

    That spares a pass over the map, 1.5 % of an int8 engine's time. Reduced, not pooled: see
    `_mean`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, d, d) -> (N, C, 1, 1)."""
        norm = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
        return deviation(norm * norm * (1.0 / (x.shape[2] * x.shape[3])), _mean(x))


def quantized(graph: ServingGraph, scheme: Scheme) -> ServingGraph:
    """Returns a copy of a serving graph with quantizers that have yet to see their ranges.

    Raises:
        GraphError: The scheme names a part that the graph does not have.
    """
    graph = copy.deepcopy(graph)
    _require_known(graph, scheme.keep_float)
    trunk, kept = graph.trunk, scheme.keep_float
    last = len(trunk.layers) - 1
    for index, layer in enumerate(trunk.layers):
        if isinstance(layer, FusedStem | Stem):
            if not isinstance(trunk.layers[index + 1], Stem):  # the 128 px encoder has two
                first = index == 0 and not scheme.signed  # signed levels end at pixel 127
                kept_float = not first or str(index) in kept
                trunk.layers[index] = QuantizedStem(layer, scheme, keep_float=kept_float)
        elif isinstance(layer, FusedUnit) and index != last:
            trunk.layers[index] = QuantizedUnit(layer, scheme, keep_float=str(index) in kept)
        elif isinstance(layer, FusedUnit) and str(index) not in kept:
            trunk.layers[index] = QuantizedTop(layer)
    trunk.add_module("spread14", QuantizedSpread())
    trunk.add_module("spread7", QuantizedSpread())
    if not scheme.signed:
        trunk.add_module("layout14", QuantizedPool(_channels(trunk, trunk.tap14), TILE14, TILE14))
        trunk.add_module("layout30", QuantizedPool(_channels(trunk, trunk.tap30), TILE30, TILE30))
    for name, head in _heads(trunk):
        if name not in kept:
            trunk.add_module(name, QuantizedHead(head, scheme))
    return graph


def calibrate(graph: ServingGraph, pixels: Tensor, *, batch_size: int = 64) -> None:
    """Takes ranges and mean errors from pictures (N, S, S, 3), uint8."""
    parts = [m for m in graph.modules() if isinstance(m, ActivationQuantizer | QuantizedConv)]
    for part in parts:
        part.observe()
    with torch.no_grad():
        for chunk in pixels.split(batch_size):
            graph(chunk)
    for part in parts:
        part.settle()


def shift_sums(graph: ServingGraph, pixels: Tensor, *, batch_size: int = 64) -> None:
    """Adds to each of the trunk's sums what makes it positive, and takes it off again later.

    Args:
        graph: In float, changed in place; computes the same.
        pixels: (N, S, S, 3) uint8, what "positive" is measured on.
        batch_size: Pictures run at once.
    """
    trunk = graph.trunk
    units = [layer for layer in trunk.layers if isinstance(layer, FusedUnit)]
    lows = _lowest(graph, units[:-1], pixels, batch_size)
    for before, after, low in zip(units, units[1:], lows, strict=False):
        kept = before.carried.out_channels
        _add_to_bias(before.carried, -low[:kept])
        if before.fresh is not None:
            _add_to_bias(before.fresh, -low[kept:])
        _add_to_bias(after.conv1, _response(after.conv1, low))
        scale = after.shortcut_scale
        _add_to_bias(after.carried, low if scale is None else low * scale.flatten())
    layers, number = list(trunk.layers), {id(unit): n for n, unit in enumerate(units)}
    for tap, (_, head) in zip((trunk.tap5, trunk.tap7), _heads(trunk), strict=True):
        low = lows[number[id(layers[tap - 1])]]
        for conv in (head.conv1, head.shortcut):
            _add_to_bias(conv, _response(conv, low))
    if graph.search is not None:
        maps = [lows[number[id(layers[tap - 1])]] for tap in (trunk.tap14, trunk.tap30)]
        _shift_layouts(graph.search, maps, [(14 // TILE14) ** 2, (30 // TILE30) ** 2])


def _shift_layouts(search: nn.Linear, lows: list[Tensor], tiles: list[int]) -> None:
    """Adds to a projection's bias what its last columns, the layouts, make of each map's low."""
    widths = [len(low) * count for low, count in zip(lows, tiles, strict=True)]
    columns = search.weight[:, -sum(widths) :].split(widths, dim=1)
    for weight, low, count in zip(columns, lows, tiles, strict=True):
        search.bias.data += weight.unflatten(1, (len(low), count)).sum(dim=2) @ low


def freeze(graph: nn.Module) -> None:
    """Makes a quantized graph compute, for good, exactly what its exported file will."""
    for module in graph.modules():
        if isinstance(module, QuantizedConv | QuantizedPool | ActivationQuantizer):
            module.freeze()
    graph.requires_grad_(False)


def _require_known(graph: ServingGraph, names: frozenset[str]) -> None:
    layers = enumerate(graph.trunk.layers)
    parts = (FusedUnit, FusedStem)
    known = ["head5", "head7", *(str(n) for n, one in layers if isinstance(one, parts))]
    if unknown := sorted(names.difference(known)):
        raise GraphError(f"no part is called {unknown[0]}; there are {', '.join(known)}")


def _lowest(
    graph: ServingGraph, units: list[FusedUnit], pixels: Tensor, batch_size: int
) -> list[Tensor]:
    """Returns each unit's lowest output by channel, (C,)."""
    seen: dict[int, Tensor] = {}

    def note(unit: nn.Module, _: object, out: Tensor) -> None:
        low = out.amin(dim=(0, 2, 3))
        seen[id(unit)] = torch.minimum(seen.get(id(unit), low), low)

    hooks = [unit.register_forward_hook(note) for unit in units]
    try:
        with torch.no_grad():
            for chunk in pixels.split(batch_size):
                graph(chunk)
    finally:
        for hook in hooks:
            hook.remove()
    return [seen[id(unit)] for unit in units]


def _response(conv: nn.Conv2d, constant: Tensor) -> Tensor:
    """Returns what a convolution without padding makes of a constant (C,) everywhere."""
    return conv.weight.detach().sum(dim=(2, 3)) @ constant


def _add_to_bias(conv: nn.Conv2d, values: Tensor) -> None:
    if conv.bias is None:
        conv.bias = nn.Parameter(torch.zeros(conv.out_channels), requires_grad=False)
    conv.bias.data += values


def _mean(x: Tensor) -> Tensor:
    # reduced, not pooled: OpenVINO 2026.4 rounds what a pool makes of uint8 back to uint8
    return x.mean(dim=(2, 3), keepdim=True)


def _heads(trunk: FusedTrunk) -> list[tuple[str, FusedHead]]:
    assert trunk.head7 is not None, "only the graph of windows goes without"
    return [("head5", trunk.head5), ("head7", trunk.head7)]


def _channels(trunk: FusedTrunk, tap: int) -> int:
    layer = trunk.layers[tap - 1]
    assert isinstance(layer, QuantizedUnit), "a layout is of what a unit makes"
    return layer.channels


def _pool(unit: FusedUnit, scheme: Scheme) -> nn.Module:
    if unit.kernel == 1:
        return nn.Identity()
    if scheme.signed:  # TensorRT pools int8 by itself
        return nn.AvgPool2d(unit.kernel, unit.stride)
    return QuantizedPool(unit.conv1.in_channels, unit.kernel, unit.stride)


def _conv(conv: nn.Conv2d, keep_float: bool) -> nn.Conv2d | QuantizedConv:
    return conv if keep_float else QuantizedConv(conv)
