from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from amdim_training.strong import (
    OPERATIONS,
    SubPolicies,
    apply_subpolicies,
    draw_subpolicies,
    lighting,
)
from amdim_training.views import VIEWS, draw_pair

SIDE = 64


def photo(seed: int = 0) -> np.ndarray:
    """A smooth picture whose channels do not reach black or white."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(30, 220, (9, 9, 3), dtype=np.uint8))
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BILINEAR)).copy()


def planes(*pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def ours(picture: np.ndarray, operation: str, value: float) -> np.ndarray:
    policies = SubPolicies(
        torch.tensor([[OPERATIONS.index(operation), -1]]),
        torch.tensor([[value, 0.0]]),
        torch.full((1, 2, 2), 0.5),
    )
    return apply_subpolicies(planes(picture), policies)[0].permute(1, 2, 0).numpy() * 255


def affine(*matrix: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, matrix)


POINTWISE: list[tuple[str, float, Callable[[Image.Image], Image.Image], float]] = [
    # operation, value, PIL's, worst error in levels; PIL cuts fractions off after each operation
    ("auto_contrast", 0.0, ImageOps.autocontrast, 1.0),
    ("invert", 0.0, ImageOps.invert, 1e-3),
    ("equalize", 0.0, ImageOps.equalize, 1e-3),
    ("solarize", 120.0, lambda image: ImageOps.solarize(image, 120), 1e-3),
    ("solarize", 0.0, lambda image: ImageOps.solarize(image, 0), 1e-3),
    ("solarize", 256.0, lambda image: image, 1e-3),
    ("posterize", 4.9, lambda image: ImageOps.posterize(image, 4), 1e-3),
    ("posterize", 7.0, lambda image: ImageOps.posterize(image, 7), 1e-3),
    ("contrast", 0.3, lambda image: ImageEnhance.Contrast(image).enhance(0.3), 1.5),
    ("contrast", 1.9, lambda image: ImageEnhance.Contrast(image).enhance(1.9), 1.5),
    ("color", 0.1, lambda image: ImageEnhance.Color(image).enhance(0.1), 1.5),
    ("color", 1.7, lambda image: ImageEnhance.Color(image).enhance(1.7), 2.0),
    ("brightness", 0.4, lambda image: ImageEnhance.Brightness(image).enhance(0.4), 1.0),
    ("brightness", 1.8, lambda image: ImageEnhance.Brightness(image).enhance(1.8), 1.0),
    ("sharpness", 0.1, lambda image: ImageEnhance.Sharpness(image).enhance(0.1), 1.5),
    ("sharpness", 1.9, lambda image: ImageEnhance.Sharpness(image).enhance(1.9), 1.5),
]


@pytest.mark.parametrize(("operation", "value", "pil", "tolerance"), POINTWISE)
def test_color_operations_match_pil_per_pixel(operation, value, pil, tolerance) -> None:
    picture = photo(seed=3)
    theirs = np.asarray(pil(Image.fromarray(picture)), dtype=np.float32)
    worst = np.abs(ours(picture, operation, value) - theirs).max()
    assert worst <= tolerance, worst


@pytest.mark.parametrize(
    ("operation", "value", "pil"),
    [
        ("shear_x", 0.27, affine(1, 0.27, 0, 0, 1, 0)),
        ("shear_x", -0.13, affine(1, -0.13, 0, 0, 1, 0)),
        ("shear_y", 0.217, affine(1, 0, 0, 0.217, 1, 0)),
        ("translate_x", 0.4, affine(1, 0, 0.4 * SIDE, 0, 1, 0)),
        ("translate_y", -0.33, affine(1, 0, 0, 0, 1, -0.33 * SIDE)),
        ("rotate", 23.0, lambda image: image.rotate(23.0)),
        ("rotate", -8.0, lambda image: image.rotate(-8.0)),
    ],
)
def test_warps_match_pil_but_for_ties(operation, value, pil) -> None:
    picture = photo(seed=4)
    theirs = np.asarray(pil(Image.fromarray(picture)), dtype=np.float32)
    wrong = (np.abs(ours(picture, operation, value) - theirs).max(axis=2) > 1e-3).mean()
    # PIL steps in 1/65536 of a pixel, so an output pixel between two inputs may take the other
    assert wrong <= 0.005, wrong


def test_a_square_is_cut_out_and_nothing_else_changes() -> None:
    picture = photo(seed=5)
    cut = ours(picture, "cutout", 0.125)
    hole = np.zeros((SIDE, SIDE), dtype=bool)
    hole[28:36, 28:36] = True
    assert np.abs(cut[hole] - (125, 123, 114)).max() < 1e-3
    np.testing.assert_allclose(cut[~hole], picture[~hole], atol=1e-3)


@pytest.mark.parametrize("operation", ["auto_contrast", "equalize"])
def test_a_flat_channel_stays(operation: str) -> None:
    flat = np.full((SIDE, SIDE, 3), (90, 0, 255), dtype=np.uint8)
    np.testing.assert_allclose(ours(flat, operation, 0.0), flat, atol=1e-3)


def test_operations_come_one_after_the_other_and_leave_their_input() -> None:
    picture = photo(seed=6)
    chain = [OPERATIONS.index("invert"), OPERATIONS.index("posterize")]
    policies = SubPolicies(
        torch.tensor([chain, chain[::-1], [-1, -1]]),
        torch.tensor([[0.0, 4.0], [4.0, 0.0], [0.0, 0.0]]),
        torch.zeros(3, 2, 2),
    )
    batch = planes(picture, picture, picture)
    before = batch.clone()
    done = (apply_subpolicies(batch, policies) * 255).permute(0, 2, 3, 1).numpy()
    image = Image.fromarray(picture)
    first = np.asarray(ImageOps.posterize(ImageOps.invert(image), 4), dtype=np.float32)
    second = np.asarray(ImageOps.invert(ImageOps.posterize(image, 4)), dtype=np.float32)
    assert np.abs(done[0] - first).max() < 1e-3 and np.abs(done[1] - second).max() < 1e-3
    np.testing.assert_allclose(done[2], picture, atol=1e-3)
    assert torch.equal(batch, before)


def test_subpolicies_are_uniform() -> None:
    n = 30_000
    policies = draw_subpolicies(n, torch.Generator().manual_seed(1))
    # a probability uniform in 0..1 applies half of the time
    assert (policies.operations >= 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
    applied = policies.operations[policies.operations >= 0]
    shares = torch.bincount(applied, minlength=len(OPERATIONS)) / len(applied)
    assert shares.tolist() == pytest.approx([1 / len(OPERATIONS)] * len(OPERATIONS), abs=0.006)
    ranges = {
        "rotate": (-30, 30), "shear_x": (-0.3, 0.3), "translate_y": (-0.45, 0.45),
        "solarize": (0, 256), "posterize": (4, 8), "brightness": (0.1, 1.9), "cutout": (0, 0.2),
    }  # fmt: skip
    for name, (low, high) in ranges.items():
        values = policies.values[policies.operations == OPERATIONS.index(name)]
        assert low <= values.min() and values.max() <= high
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.05 * (high - low))
        assert values.std().item() == pytest.approx((high - low) / 12**0.5, rel=0.05)


def test_lighting_moves_along_imagenets_principal_colors() -> None:
    lit = lighting(torch.zeros(40_000, 3, 1, 1), 0.1, torch.Generator().manual_seed(2))
    covariance = torch.cov(lit[:, :, 0, 0].T)
    values, vectors = torch.linalg.eigh(covariance)
    assert values.sqrt().tolist() == pytest.approx([0.00045, 0.00188, 0.02175], rel=0.05)
    main = vectors[:, 2] * vectors[:, 2].sum().sign()
    assert main.tolist() == pytest.approx([0.5675, 0.5808, 0.5836], abs=0.02)


def test_strong_views_are_always_jittered_repeatable_and_apart() -> None:
    config = VIEWS["strong"]
    assert (config.scale, config.jitter_probability, config.hue) == ((0.2, 0.9), 1.0, 0.1)
    images = torch.from_numpy(np.stack([photo(seed) for seed in range(16)]))
    pairs = [draw_pair(images, 32, config, torch.Generator().manual_seed(9)) for _ in range(2)]
    torch.testing.assert_close(pairs[0], pairs[1], atol=0, rtol=0)
    assert pairs[0][0].shape == (16, 3, 32, 32) and not torch.equal(pairs[0][0], pairs[0][1])
    assert torch.isfinite(pairs[0][0]).all()


def test_smoothing_is_pils() -> None:
    picture = photo(seed=7)
    theirs = np.asarray(Image.fromarray(picture).filter(ImageFilter.SMOOTH), dtype=np.float32)
    assert np.abs(ours(picture, "sharpness", 0.0) - theirs).max() <= 1.0


def test_a_batch_in_any_layout_gives_what_single_pictures_give() -> None:
    n = 4 * len(OPERATIONS)
    batch = planes(*(photo(seed) for seed in range(n)))
    drawn = draw_subpolicies(n, torch.Generator().manual_seed(3))
    every = torch.arange(n).view(n, 1).remainder(len(OPERATIONS)).expand(n, 2)
    policies = SubPolicies(every, drawn.values.abs().clamp(0.1, 4.9), drawn.centers)
    done = apply_subpolicies(batch, policies)
    interleaved = batch.to(memory_format=torch.channels_last)
    torch.testing.assert_close(apply_subpolicies(interleaved, policies), done)
    for place in range(n):
        one = SubPolicies(*(part[place : place + 1] for part in (
            policies.operations, policies.values, policies.centers)))  # fmt: skip
        alone = apply_subpolicies(batch[place : place + 1], one)
        torch.testing.assert_close(alone[0], done[place])
