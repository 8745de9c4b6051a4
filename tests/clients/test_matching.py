from __future__ import annotations

import math

import numpy as np
import pytest

from amdim_clients.embedders import open_local_encoder
from amdim_clients.errors import ContractError, RegionError
from amdim_clients.fields import PictureFrame
from amdim_clients.images import Preprocess, crop_in_resized
from amdim_clients.matching import (
    PictureFeatures,
    amdim_score,
    cosine_score,
    match_pictures,
    score_map,
)

PRE = Preprocess.for_image_size(64)
SQUARE = PictureFrame(70, 70, PRE)


def features(seed, frame=SQUARE, dim=8):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32) * 3

    return PictureFeatures(draw(6), draw(dim), draw(5, 5, dim), draw(7, 7, dim), frame)


def test_score_is_the_trained_one_against_plain_loops():
    a, grid = features(0).global_, features(1).local7
    expected = [
        [
            20
            * math.tanh(
                sum(float(x) * float(y) for x, y in zip(a, cell, strict=True)) / (20 * 8**0.5)
            )
            for cell in row
        ]
        for row in grid
    ]
    np.testing.assert_allclose(score_map(a[None], grid), expected, rtol=1e-5)


def test_score_is_bounded_and_not_normalised():
    a = np.full(4, 100, np.float32)
    assert amdim_score(a, a) == pytest.approx(20)
    assert amdim_score(a / 100, a / 100) == pytest.approx(20 * math.tanh(4 / 40))
    assert amdim_score(a, -a) == pytest.approx(-20)
    with pytest.raises(ContractError):
        amdim_score(a, a[:3])


def test_cosine_is_one_with_itself_and_zero_with_nothing():
    a = features(0).local7
    np.testing.assert_allclose(cosine_score(a, 5 * a), 1, rtol=1e-6)
    assert cosine_score(a[0, 0], np.zeros(8)) == 0


@pytest.mark.parametrize("kind", ["amdim", "cosine"])
def test_query_is_found_at_the_cell_that_holds_it(kind):
    query, candidate = features(0), features(1)
    candidate.local7[4, 2] = 4 * query.global_
    match = match_pictures(query, candidate, kind=kind)
    assert match.whole.cell == (4, 2)
    assert match.whole.map.shape == (7, 7)
    assert match.whole.score == pytest.approx(match.whole.map.max())
    assert match.whole.box == candidate.frame.cell_box(4, 2, 7)
    assert match.region is None
    assert -1 <= match.cosine <= 1


def test_region_is_found_by_its_own_vectors():
    query, candidate = features(0), features(1)
    region = query.frame.cell_box(1, 5, 7)
    middle = ((region[0] + region[2]) / 2, (region[1] + region[3]) / 2)
    small = (middle[0] - 0.01, middle[1] - 0.01, middle[0] + 0.01, middle[1] + 0.01)
    candidate.local7[6, 0] = 3 * query.local7[1, 5]
    found = match_pictures(query, candidate, region=small).region
    assert found is not None
    assert found.cell == (6, 0)


@pytest.mark.parametrize(
    ("frame", "row", "column", "expected"),
    [
        (SQUARE, 0, 0, (3 / 70, 3 / 70, 19 / 70, 19 / 70)),
        (SQUARE, 6, 3, (27 / 70, 51 / 70, 43 / 70, 67 / 70)),
        # 280 x 70 stays as it is: the crop begins at x = 108
        (PictureFrame(280, 70, PRE), 0, 0, (108 / 280, 3 / 70, 124 / 280, 19 / 70)),
        (PictureFrame(128, 256, Preprocess.for_image_size(128)), 0, 6, None),
    ],
)
def test_boxes_take_resize_and_crop_into_account(frame, row, column, expected):
    box = frame.cell_box(row, column, 7)
    if expected is not None:
        np.testing.assert_allclose(box, expected)
    x0, y0, x1, y1 = frame.crop_box()
    assert x0 <= box[0] < box[2] <= x1
    assert y0 <= box[1] < box[3] <= y1


@pytest.mark.parametrize("side", [32, 64, 128])
def test_grids_cover_the_crop_from_edge_to_edge(side):
    frame = PictureFrame(side, side, Preprocess(side, side))
    for grid in (5, 7):
        assert frame.cell_box(0, 0, grid)[:2] == (0, 0)
        assert frame.cell_box(grid - 1, grid - 1, grid)[2:] == (1, 1)


def test_cells_of_a_region():
    assert SQUARE.cells_in((0, 0, 1, 1), 7).all()
    assert SQUARE.cells_in((0.5, 0, 1, 1), 7).sum(axis=1).tolist() == [4] * 7
    assert SQUARE.cells_in((0.1, 0.1, 0.11, 0.11), 5).sum() == 1


@pytest.mark.parametrize(
    "region",
    [(0.5, 0, 0.5, 1), (0.6, 0, 0.5, 1), (-0.1, 0, 1, 1), (0, 0, 1, 1.1), (0, 0, math.nan, 1)],
)
def test_what_is_no_region_is_refused(region):
    with pytest.raises(RegionError, match=r"0\.\.1"):
        SQUARE.cells_in(region, 7)


def test_region_outside_the_crop_is_refused():
    with pytest.raises(RegionError, match="outside"):
        PictureFrame(280, 70, PRE).cells_in((0, 0, 0.3, 1), 7)


def test_unknown_cells_and_grids_are_refused():
    with pytest.raises(ContractError):
        SQUARE.cell_box(7, 0, 7)
    with pytest.raises(ContractError):
        PictureFrame(50, 50, Preprocess(48, 50)).cell_box(0, 0, 7)


def test_box_is_exactly_what_the_real_encoder_sees(repository):
    encoder = open_local_encoder(repository)
    side = encoder.spec.image_size
    frame = PictureFrame(side, side, Preprocess(side, side))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    for name, grid, cell in (("local7", 7, (2, 5)), ("local5", 5, (4, 1))):
        x0, y0, x1, y1 = (round(edge * side) for edge in frame.cell_box(*cell, grid))
        outside, edges = pixels.copy(), pixels.copy()
        outside[:] = 255 - outside
        outside[:, y0:y1, x0:x1] = pixels[:, y0:y1, x0:x1]
        edges[:, [y0, y1 - 1], x0:x1] = 255 - edges[:, [y0, y1 - 1], x0:x1]
        same, other, changed = (
            encoder.encode(each, [name])[name][0][cell] for each in (pixels, outside, edges)
        )
        np.testing.assert_allclose(same, other, atol=1e-4 * np.abs(same).max())
        assert np.abs(same - changed).max() > 1e-3 * np.abs(same).max()
    encoder.close()


def test_crop_geometry_rounds_as_the_resize_does():
    assert crop_in_resized(500, 375, PRE) == (93, 70, 14, 3)
    assert crop_in_resized(375, 500, PRE) == (70, 93, 3, 14)
