"""Strong augmentation: two random operations of Fast AutoAugment's set, batched on the device.

What is known of the original's strong pipeline is its frame (SPEC.md 5) and that Fast
AutoAugment's ImageNet policy stood in front of it. From that method's paper come the operations,
their ranges, and the form: a sub-policy is two operations, each applied with a probability at a
level. Not known, and so not here: which sub-policies the search kept. In their place every view
draws its own sub-policy from the search space: two operations, probabilities and levels, all
uniform. Beside that these choices are PIL's and not the paper's: nearest-neighbour warps, black
where a warp uncovers nothing, and a grey of (125, 123, 114) where a square is cut out.

Knows no crop and no pipeline.

Source: Lim et al., "Fast AutoAugment" (arXiv:1905.00397), section 3.1 and its appendix's ranges;
AlexNet's colour noise for `lighting`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from amdim_training.color import brightness, contrast, saturation

OPERATIONS = (
    "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "auto_contrast", "invert",
    "equalize", "solarize", "posterize", "contrast", "color", "brightness", "sharpness", "cutout",
)  # fmt: skip
_RANGES = {
    "shear_x": (0.0, 0.3), "shear_y": (0.0, 0.3), "rotate": (0.0, 30.0),  # degrees
    "translate_x": (0.0, 0.45), "translate_y": (0.0, 0.45),  # of the side
    "solarize": (0.0, 256.0), "posterize": (4.0, 8.0),  # a level; bits
    "contrast": (0.1, 1.9), "color": (0.1, 1.9), "brightness": (0.1, 1.9), "sharpness": (0.1, 1.9),
    "cutout": (0.0, 0.2),  # of the side
}  # fmt: skip
_WARPS = OPERATIONS[:5]
_HOLE = (125 / 255, 123 / 255, 114 / 255)
# ImageNet's principal colours: an eigenvalue and an eigenvector each, of pixels in 0..1
_COLOR_VALUES = (0.2175, 0.0188, 0.0045)
_COLOR_VECTORS = (
    (-0.5675, -0.5808, -0.5836),
    (0.7192, -0.0045, -0.6948),
    (0.4009, -0.8140, 0.4203),
)


@dataclasses.dataclass(frozen=True, slots=True)
class SubPolicies:
    """Two operations for each of N images; tensors on the CPU.

    Attributes:
        operations: (N, 2) int64 places in `OPERATIONS`; -1 where the probability said no.
        values: (N, 2) float32, each in its operation's range and unit; warps have a sign.
        centers: (N, 2, 2) float32, x and y in 0..1 of a cut-out's centre.
    """

    operations: Tensor
    values: Tensor
    centers: Tensor


def draw_subpolicies(n: int, generator: torch.Generator) -> SubPolicies:
    """Draws a sub-policy for each of N images: operations, probabilities and levels uniform."""
    operations = torch.randint(len(OPERATIONS), (n, 2), generator=generator)
    probability, chance, level, sign = torch.rand((4, n, 2), generator=generator)
    centers = torch.rand((n, 2, 2), generator=generator)
    ranges = torch.tensor([_RANGES.get(name, (0.0, 0.0)) for name in OPERATIONS])
    low, high = ranges[operations].unbind(2)
    values = low + level * (high - low)
    values = torch.where((operations < len(_WARPS)) & (sign < 0.5), -values, values)
    return SubPolicies(operations.masked_fill(chance >= probability, -1), values, centers)


def apply_subpolicies(planes: Tensor, policies: SubPolicies) -> Tensor:
    """Applies each image's two operations, one after the other.

    Args:
        planes: (N, 3, P, P) float32 in 0..1; left as they are.
        policies: What to do with each.

    Returns:
        (N, 3, P, P) float32 in 0..1.
    """
    changed = planes.clone(memory_format=torch.contiguous_format)
    for place in range(2):
        chosen, values = policies.operations[:, place], policies.values[:, place]
        index = ((chosen >= 0) & (chosen < len(_WARPS))).nonzero().squeeze(1)
        if len(index):  # five operations, one gather
            grid = _warp_indices(chosen[index], values[index], planes.shape[-1])
            there = index.to(planes.device)
            changed[there] = _warp(changed[there], grid.to(planes.device))
        for number in range(len(_WARPS), len(OPERATIONS)):
            index = (chosen == number).nonzero().squeeze(1)
            if len(index) == 0:
                continue
            there = index.to(planes.device)
            value = values[index].to(planes.device).view(-1, 1, 1, 1)
            if OPERATIONS[number] == "cutout":
                center = policies.centers[index, place].to(planes.device)
                changed[there] = cutout(changed[there], value, center)
            else:
                changed[there] = _BY_NAME[OPERATIONS[number]](changed[there], value)
    return changed


def lighting(planes: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Adds a random multiple of ImageNet's principal colours to each image, not clipped.

    Args:
        planes: (N, 3, H, W) float32.
        strength: Standard deviation of the multiples, in eigenvalues.
        generator: On the CPU.
    """
    amounts = strength * torch.randn((len(planes), 3), generator=generator)
    shift = (amounts * torch.tensor(_COLOR_VALUES)) @ torch.tensor(_COLOR_VECTORS)  # (N, 3)
    return planes + shift.to(planes.device).view(-1, 3, 1, 1)


def _warp_indices(operations: Tensor, values: Tensor, side: int) -> Tensor:
    """Returns (N, P * P) int64: which input pixel each output pixel shows, or P * P for none.

    The maps are PIL's: from output to input, between pixel centres.
    """
    n = len(values)
    angle = torch.where(operations == 4, values, 0.0) * (math.pi / 180)
    own = [torch.where(operations == number, values, 0.0) for number in range(4)]
    cos, sin, middle = angle.cos(), angle.sin(), side / 2
    # x' = a x + b y + c, y' = d x + e y + f; a rotation turns counter-clockwise about the middle
    a, b, c = cos, own[0] - sin, own[2] * side + middle * (1 - cos + sin)
    d, e, f = own[1] + sin, cos, own[3] * side + middle * (1 - cos - sin)
    at = torch.arange(side, dtype=torch.float32) + 0.5
    x, y = at.view(1, 1, side), at.view(1, side, 1)
    a, b, c, d, e, f = (term.view(n, 1, 1) for term in (a, b, c, d, e, f))
    column, row = (a * x + b * y + c).floor().long(), (d * x + e * y + f).floor().long()
    inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    return torch.where(inside, row * side + column, side * side).flatten(1)


def _warp(x: Tensor, indices: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    source = torch.nn.functional.pad(x.flatten(2), (0, 1))  # the last pixel is the black outside
    index = indices.unsqueeze(1).expand(n, channels, -1)
    return source.gather(2, index).view(n, channels, height, width)


def auto_contrast(x: Tensor) -> Tensor:
    """Returns each channel stretched to 0..1, as PIL's autocontrast; a flat one is left alone."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    width = high - low
    return torch.where(width > 0, (x - low) / width.clamp_min(1e-8), x)


def equalize(x: Tensor) -> Tensor:
    """Returns each channel with its histogram of 256 levels flattened, in PIL's integers."""
    n, channels, height, width = x.shape
    levels = _levels(x).long().reshape(n * channels, height * width)
    counts = torch.zeros(n * channels, 256, dtype=torch.int64, device=x.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels))
    # the step is the number of pixels, the brightest level's left out, over 255
    last = counts.gather(1, levels.amax(1, keepdim=True))
    step = (height * width - last) // 255
    table = (step // 2 + counts.cumsum(1) - counts) // step.clamp_min(1)
    flat = (step == 0).expand(-1, 256)
    table = torch.where(flat, torch.arange(256, device=x.device), table.clamp_max(255))
    return table.gather(1, levels).view_as(x).float() / 255


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Returns pixels inverted from a threshold (0..256, in levels) up."""
    return torch.where(_levels(x) < threshold, x, 1.0 - x)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Returns pixels with so many leading bits of their level."""
    grain = 2.0 ** (8 - bits.floor())
    return (_levels(x) / grain).floor() * grain / 255


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Returns pictures moved away from their 3 x 3 smoothing; PIL leaves the border as it is."""
    kernel = x.new_full((3, 1, 3, 3), 1 / 13)
    kernel[:, :, 1, 1] = 5 / 13
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = torch.nn.functional.conv2d(x, kernel, groups=3)
    return torch.lerp(smooth, x, factor).clamp_(0.0, 1.0)


def cutout(x: Tensor, share: Tensor, centers: Tensor) -> Tensor:
    """Returns pictures with a grey square at a random place, less what sticks out.

    Args:
        x: (N, 3, P, P).
        share: (N, 1, 1, 1), the square's side as a share of P.
        centers: (N, 2), x and y in 0..1.
    """
    side = x.shape[-1]
    at = (torch.arange(side, device=x.device, dtype=torch.float32) + 0.5) / side
    half = share.view(-1, 1) / 2
    columns = (at - centers[:, :1]).abs() < half  # (N, P)
    rows = (at - centers[:, 1:]).abs() < half
    hole = (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)
    return torch.where(hole, x.new_tensor(_HOLE).view(1, 3, 1, 1), x)


def _levels(x: Tensor) -> Tensor:
    """Returns the 8-bit levels of pixels in 0..1, as floats."""
    return (x * 255).round()


_BY_NAME: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "auto_contrast": lambda x, _: auto_contrast(x),
    "invert": lambda x, _: 1.0 - x,
    "equalize": lambda x, _: equalize(x),
    "solarize": solarize,
    "posterize": posterize,
    "contrast": contrast,
    "color": saturation,
    "brightness": brightness,
    "sharpness": sharpness,
}
