import colorsys
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from amdim_training.color import Jitter, color_jitter
from amdim_training.config import DataConfig
from amdim_training.views import (
    VIEWS,
    ViewsConfig,
    draw_crops,
    draw_jitter,
    draw_pair,
    resample,
    resize_matrices,
    translation_matrices,
    views_config,
)

STL10 = VIEWS["stl10"]
CIFAR = VIEWS["cifar"]


def photo(side: int, seed: int = 0) -> np.ndarray:
    """A smooth picture with edges: random colours enlarged."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    picture = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)).copy()
    picture[side // 3 : side // 2, side // 4 : side // 2] = 255 - picture[0, 0]
    return picture


def planes(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1).float().div(255).unsqueeze(0)


def unplane(view: torch.Tensor) -> np.ndarray:
    return view[0].permute(1, 2, 0).numpy() * 255


@pytest.mark.parametrize(
    ("side", "crop"),
    [(64, (5, 9, 40, 33)), (96, (0, 0, 96, 96)), (96, (3, 11, 80, 70)), (200, (20, 1, 150, 190))],
)
def test_crop_and_resize_match_pil_per_pixel(side: int, crop: tuple[int, int, int, int]) -> None:
    top, left, height, width = crop
    picture = photo(side)
    rows = resize_matrices(torch.tensor([top]), torch.tensor([height]), side, 64)
    columns = resize_matrices(torch.tensor([left]), torch.tensor([width]), side, 64)
    ours = unplane(resample(planes(picture), rows, columns).clamp(0, 1))
    cropped = Image.fromarray(picture).crop((left, top, left + width, top + height))
    theirs = np.asarray(cropped.resize((64, 64), Image.Resampling.BICUBIC), dtype=np.float32)
    # PIL rounds to whole levels, and clips, after each axis
    assert np.abs(ours - theirs).max() <= 2.0
    assert np.abs(ours - theirs).mean() <= 0.5


def test_translation_matches_the_reference_exactly(shared_dir) -> None:
    golden = np.load(shared_dir / "amdim" / "golden" / "augment.npz")
    source, shifts = golden["translate_in"], torch.from_numpy(golden["translate_shift_xy"]).long()
    batch = planes(source).expand(len(shifts), -1, -1, -1)
    moved = resample(
        batch, translation_matrices(shifts[:, 1], 32), translation_matrices(shifts[:, 0], 32)
    )
    ours = (moved.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    worst = np.abs(ours.astype(int) - golden["translate_out"]).max()
    print(f"translations: worst error {worst}")
    assert worst == 0


def test_cifar_test_transform_matches_the_reference(shared_dir) -> None:
    golden = np.load(shared_dir / "amdim" / "golden" / "augment.npz")
    ours = CIFAR.normalization.apply(planes(golden["translate_in"]))[0].numpy()
    worst = np.abs(ours - golden["c10_test_out"]).max()
    print(f"CIFAR test transform: worst error {worst:.1e}")
    assert worst <= 1e-5


def test_translation_mirrors_without_repeating_the_border() -> None:
    row = torch.arange(6.0).view(1, 1, 1, 6).expand(1, 3, 6, 6)
    still = translation_matrices(torch.tensor([0]), 6)
    moved = resample(row, still, translation_matrices(torch.tensor([2]), 6))
    assert moved[0, 0, 0].tolist() == [2, 1, 0, 1, 2, 3]


def _pil_hue(image: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shifted = (np.asarray(hue).astype(int) + round(turns * 255)) % 256
    hue = Image.fromarray(shifted.astype(np.uint8))
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


@pytest.mark.parametrize(
    ("operation", "factor", "tolerance"),
    [(0, 1.37, 1.0), (0, 0.6, 1.0), (1, 0.63, 1.0), (1, 1.4, 1.5), (2, 1.33, 2.0), (2, 0.6, 1.5)],
)
def test_enhancements_match_pil_per_pixel(operation: int, factor: float, tolerance: float) -> None:
    picture = photo(64, seed=3)
    image = Image.fromarray(picture)
    enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[operation]
    theirs = np.asarray(enhance(image).enhance(factor), dtype=np.float32)
    factors = torch.ones(1, 4)
    factors[0, operation] = factor
    order = torch.tensor([[operation, -1, -1, -1]])
    ours = unplane(color_jitter(planes(picture), Jitter(order, factors)))
    assert np.abs(ours - theirs).max() <= tolerance


@pytest.mark.parametrize("turns", [-0.2, -0.05, 0.1, 0.2])
def test_hue_matches_pil_per_pixel(turns: float) -> None:
    picture = photo(64, seed=4)
    theirs = np.asarray(_pil_hue(Image.fromarray(picture), turns), dtype=np.float32)
    factors = torch.tensor([[1.0, 1.0, 1.0, round(turns * 255) / 255]])
    ours = unplane(color_jitter(planes(picture), Jitter(torch.tensor([[3, -1, -1, -1]]), factors)))
    # PIL keeps hue in 256 steps, so a channel that hue drives is off by up to 6 levels a step
    assert np.abs(ours - theirs).max() <= 10.0
    assert np.abs(ours - theirs).mean() <= 1.0


def test_hue_matches_exact_arithmetic() -> None:
    colors = np.random.default_rng(5).random((1, 3, 1, 200), dtype=np.float32)
    factors = torch.tensor([[1.0, 1.0, 1.0, 0.17]])
    order = torch.tensor([[3, -1, -1, -1]])
    ours = color_jitter(torch.from_numpy(colors.copy()), Jitter(order, factors))[0, :, 0].T
    for color, got in zip(colors[0, :, 0].T, ours, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*color)
        expected = colorsys.hsv_to_rgb((hue + 0.17) % 1.0, saturation, value)
        assert got.tolist() == pytest.approx(expected, abs=1e-5)


def test_operations_follow_each_images_own_order() -> None:
    picture = torch.full((2, 3, 1, 2), 0.9)
    picture[:, :, :, 1] = 0.1
    order = torch.tensor([[0, 1, -1, -1], [1, 0, -1, -1]])
    factors = torch.tensor([1.4, 0.6, 1.0, 0.0]).expand(2, 4)
    jittered = color_jitter(picture.clone(), Jitter(order, factors))
    # brightness saturates first, or contrast pulls in first
    first = [0.6 * 1.0 + 0.4 * 0.57, 0.6 * 0.14 + 0.4 * 0.57]
    second = [1.4 * (0.6 * 0.9 + 0.4 * 0.5), 1.4 * (0.6 * 0.1 + 0.4 * 0.5)]
    assert jittered[0, 0, 0].tolist() == pytest.approx(first, abs=1e-3)
    assert jittered[1, 0, 0].tolist() == pytest.approx([min(1.0, second[0]), second[1]], abs=1e-3)


def test_both_views_share_the_flip() -> None:
    still = ViewsConfig(
        STL10.normalization, scale=(1.0, 1.0), ratio=(1.0, 1.0), jitter_probability=0.0,
        gray_probability=0.0,
    )  # fmt: skip
    images = torch.from_numpy(np.stack([photo(64, seed) for seed in range(32)]))
    first, second = draw_pair(images, 64, still, torch.Generator().manual_seed(0))
    torch.testing.assert_close(first, second)
    upright = still.normalization.apply(images.permute(0, 3, 1, 2).float() / 255)
    flipped = [not torch.allclose(a, b, atol=1e-4) for a, b in zip(first, upright, strict=True)]
    assert 6 <= sum(flipped) <= 26
    torch.testing.assert_close(first[flipped], upright.flip(3)[flipped], atol=1e-4, rtol=0)


def _mean_crop_area(side: int, n: int = 20_000) -> float:
    """The mean area of torchvision's rule, drawn one by one."""
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(n):
        for _ in range(10):
            area = side * side * rng.uniform(*STL10.scale)
            ratio = math.exp(rng.uniform(*np.log(STL10.ratio)))
            width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < width <= side and 0 < height <= side:
                areas.append(width * height / side**2)
                break
        else:
            areas.append(1.0)
    return float(np.mean(areas))


def test_crops_are_distributed_as_configured() -> None:
    n, side = 20_000, 64
    top, left, height, width = draw_crops(n, side, STL10, torch.Generator().manual_seed(1))
    assert (top >= 0).all() and (top + height <= side).all()
    assert (left >= 0).all() and (left + width <= side).all()
    area = (height * width).float() / side**2
    assert area.min() > 0.28 and area.max() <= 1.0
    # draws that do not fit are drawn again, which favours the smaller ones
    assert area.mean().item() == pytest.approx(_mean_crop_area(side), abs=0.005)
    ratio = width.float() / height
    assert ratio.min() > 0.65 and ratio.max() < 1.5
    assert ratio.log().mean().item() == pytest.approx(0.0, abs=0.02)


def test_jitter_is_distributed_as_configured() -> None:
    jitter = draw_jitter(20_000, STL10, torch.Generator().manual_seed(2))
    applied = jitter.order[:, 0] >= 0
    assert applied.float().mean().item() == pytest.approx(0.8, abs=0.01)
    for number, (low, high) in enumerate([(0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.2, 0.2)]):
        values = jitter.factors[:, number]
        assert low <= values.min() and values.max() <= high
        assert values.std().item() == pytest.approx((high - low) / math.sqrt(12), rel=0.02)
    firsts = torch.bincount(jitter.order[applied][:, 0], minlength=4) / applied.sum()
    assert firsts.tolist() == pytest.approx([0.25] * 4, abs=0.02)


def test_a_configuration_changes_the_strength_of_its_pipeline() -> None:
    assert views_config(DataConfig()) == STL10
    milder = views_config(DataConfig(crop_scale=(0.5, 1.0), color_strength=0.5))
    assert (milder.scale, milder.hue, milder.contrast) == ((0.5, 1.0), 0.1, 0.2)
    assert milder.normalization == STL10.normalization
    whole = views_config(DataConfig(crop_scale=(0.5, 1.0), without=("crop",)))
    assert whole.scale == (1.0, 1.0)
    colors = draw_jitter(1_000, milder, torch.Generator().manual_seed(0)).factors[:, 0]
    assert 0.8 <= colors.min() < 0.81 and 1.19 < colors.max() <= 1.2


def test_a_quarter_of_the_views_is_gray() -> None:
    images = torch.from_numpy(np.stack([photo(32, seed) for seed in range(64)])).repeat(8, 1, 1, 1)
    quiet = ViewsConfig(CIFAR.normalization, max_shift=4, jitter_probability=0.0)
    view, _ = draw_pair(images, 32, quiet, torch.Generator().manual_seed(3))
    mean = torch.tensor(CIFAR.normalization.mean).view(1, 3, 1, 1)
    std = torch.tensor(CIFAR.normalization.std).view(1, 3, 1, 1)
    pixels = view * std + mean
    gray = (pixels.amax(1) - pixels.amin(1)).amax((1, 2)) < 1e-4
    assert gray.float().mean().item() == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize("name", ["cifar", "stl10", "imagenet"])
def test_the_same_generator_gives_the_same_views(name) -> None:
    side = 32 if name == "cifar" else 48
    images = torch.from_numpy(np.stack([photo(side, seed) for seed in range(4)]))
    pairs = [draw_pair(images, 32, VIEWS[name], torch.Generator().manual_seed(9)) for _ in range(2)]
    torch.testing.assert_close(pairs[0], pairs[1], atol=0, rtol=0)
    assert pairs[0][0].shape == (4, 3, 32, 32)
    assert not torch.equal(pairs[0][0], pairs[0][1])
