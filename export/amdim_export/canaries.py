"""Sixteen pictures drawn by code, free to ship, that prove a served model on any machine.

They cover what a photo can hold: flat areas, gradients, edges at several angles and scales, noise
of several frequencies, saturated and dark colours. Knows no encoder.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

CANARIES = 16

Plane = npt.NDArray[np.float64]
Picture = npt.NDArray[np.float64]


def draw_canaries(image_size: int) -> npt.NDArray[np.uint8]:
    """Returns (16, S, S, 3) uint8 pictures; the same ones at every call."""
    side = image_size
    y, x = np.mgrid[0:side, 0:side] / (side - 1)  # 0..1
    rng = np.random.default_rng(20190603)
    pictures = [
        _blend(x, (0.95, 0.75, 0.30), (0.10, 0.20, 0.60)),
        _blend(np.hypot(x - 0.4, y - 0.6), (0.9, 0.9, 0.85), (0.25, 0.05, 0.10)),
        _blend(_checks(x, y, 4), (0.9, 0.1, 0.1), (0.95, 0.95, 0.9)),
        _blend(_checks(x, y, 16), (0.1, 0.3, 0.1), (0.7, 0.9, 0.5)),
        _blend(_stripes(x, y, angle=0.5, cycles=6), (0.1, 0.1, 0.1), (0.9, 0.8, 0.2)),
        _blend(_stripes(x, y, angle=2.1, cycles=15), (0.2, 0.4, 0.8), (0.9, 0.9, 1.0)),
        _blend(
            0.5 + 0.5 * np.cos(40 * np.hypot(x - 0.5, y - 0.5)), (0.6, 0.2, 0.5), (0.9, 0.9, 0.3)
        ),
        _blend(_noise(rng, side, 1), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        np.stack([_noise(rng, side, 3) for _ in range(3)], axis=2),
        np.stack([_noise(rng, side, 8) for _ in range(3)], axis=2),
        _blend(_noise(rng, side, 5), (0.15, 0.35, 0.10), (0.55, 0.75, 0.35)),
        _disks(rng, x, y, count=5, background=(0.85, 0.85, 0.9)),
        _disks(rng, x, y, count=40, background=(0.1, 0.1, 0.12)),
        _boxes(rng, side, count=6, background=(0.5, 0.6, 0.7)),
        _boxes(rng, side, count=30, background=(0.9, 0.85, 0.7)),
        _scene(rng, x, y),
    ]
    stacked = np.stack(pictures)
    return np.asarray(np.rint(np.clip(stacked, 0.0, 1.0) * 255.0), dtype=np.uint8)


def _blend(plane: Plane, low: tuple[float, ...], high: tuple[float, ...]) -> Picture:
    """Colours a plane of 0..1: (S, S) -> (S, S, 3)."""
    weight = np.clip(plane, 0.0, 1.0)[:, :, None]
    return np.asarray((1.0 - weight) * np.array(low) + weight * np.array(high))


def _checks(x: Plane, y: Plane, count: int) -> Plane:
    return np.asarray((np.floor(x * count) + np.floor(y * count)) % 2)


def _stripes(x: Plane, y: Plane, *, angle: float, cycles: float) -> Plane:
    along = x * np.cos(angle) + y * np.sin(angle)
    return np.asarray(0.5 + 0.5 * np.sin(2 * np.pi * cycles * along))


def _noise(rng: np.random.Generator, side: int, grain: int) -> Plane:
    """Noise whose spots are about `grain` pixels wide, stretched to 0..1."""
    plane = rng.random((side, side))
    for axis in (0, 1):
        plane = sum((np.roll(plane, shift, axis) for shift in range(grain)), np.zeros_like(plane))
    low, high = plane.min(), plane.max()
    return np.asarray((plane - low) / (high - low))


def _disks(
    rng: np.random.Generator, x: Plane, y: Plane, *, count: int, background: tuple[float, ...]
) -> Picture:
    picture = np.broadcast_to(np.array(background), (*x.shape, 3)).copy()
    for _ in range(count):
        column, row = rng.random(2)
        inside = np.hypot(x - column, y - row) < rng.uniform(0.1, 0.6) / np.sqrt(count)
        picture[inside] = rng.random(3)
    return picture


def _boxes(
    rng: np.random.Generator, side: int, *, count: int, background: tuple[float, ...]
) -> Picture:
    picture = np.broadcast_to(np.array(background), (side, side, 3)).copy()
    for _ in range(count):
        top, left = rng.integers(0, side, 2)
        height, width = rng.integers(2, max(3, side // 2), 2)
        picture[top : top + height, left : left + width] = rng.random(3)
    return picture


def _scene(rng: np.random.Generator, x: Plane, y: Plane) -> Picture:
    """A landscape of sorts: sky, sun, hills and grain."""
    picture = _blend(y, (0.35, 0.55, 0.95), (0.95, 0.85, 0.75))
    picture[np.hypot(x - 0.7, y - 0.25) < 0.12] = (1.0, 0.95, 0.6)
    for height, colour in ((0.55, (0.35, 0.45, 0.4)), (0.75, (0.2, 0.35, 0.15))):
        ridge = height + 0.08 * np.sin(9 * x + 10 * height)
        picture[y > ridge] = colour
    return np.asarray(picture + 0.06 * (rng.random(picture.shape) - 0.5))
