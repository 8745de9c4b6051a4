"""Near-duplicates, comparison and map, on toy vectors."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from amdim_clients.answers import draw_groups
from amdim_clients.comparing import OUTPUTS, compare, draw_comparison, picture_features
from amdim_clients.duplicates import find_duplicates, near_pairs
from amdim_clients.embedders import LocalEmbedder
from amdim_clients.errors import ImageError
from amdim_clients.exact_index import ExactIndex
from amdim_clients.fields import PictureFrame
from amdim_clients.images import Preprocess
from amdim_clients.matching import PictureFeatures
from amdim_clients.pipeline import Record
from amdim_clients.plane import draw_plane, project, spread
from amdim_clients.space import VectorSpace

A = "sha256:" + "a" * 64
SPACE = VectorSpace("amdim", "embedding", 16, True, A, A)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def index():
    """Thirty pictures in two folders; three are nearly one, and two more are another."""
    rng = np.random.default_rng(0)
    vectors = unit(rng.standard_normal((30, 16)))
    vectors[[4, 21]] = unit(vectors[[9, 9]] + 0.02 * rng.standard_normal((2, 16)))
    vectors[12] = unit(vectors[25] + 0.05 * rng.standard_normal(16))
    made = ExactIndex(SPACE)
    records = [Record(f"/{'ab'[n % 2]}/{n:02}.jpg", f"{n:064x}") for n in range(30)]
    made.add(records, vectors, space=SPACE, artifact_digest=A)
    return made


def test_near_duplicates_are_grouped_the_surest_first(index):
    first, second = find_duplicates(index, threshold=0.9)
    assert first.keys == ("/a/04.jpg", "/b/09.jpg", "/b/21.jpg")
    assert second.keys == ("/a/12.jpg", "/b/25.jpg")
    assert 0.9 < second.least < first.least < 1
    assert find_duplicates(index, threshold=0.9999) == []
    (only,) = find_duplicates(index, "/b", threshold=0.9)[:1]
    assert only.keys[-1] == "/b/21.jpg"


def test_pairs_are_those_above_the_threshold():
    vectors = unit(np.array([[1, 0], [1, 0.1], [0, 1]], np.float32))
    assert near_pairs("abc", vectors, 0.9) == {("a", "b")}
    assert len(near_pairs("abc", vectors, -1)) == 3


def test_plane_keeps_the_directions_of_most_difference():
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((200, 2)) * [5, 2]
    basis = np.linalg.qr(rng.standard_normal((16, 16)))[0][:2]
    points = project((flat @ basis + 3).astype(np.float32))
    for axis in (0, 1):
        assert abs(np.corrcoef(points[:, axis], flat[:, axis])[0, 1]) > 0.95
    np.testing.assert_allclose(points.mean(0), 0, atol=1e-5)
    np.testing.assert_array_equal(points, project((flat @ basis + 3).astype(np.float32)))


@pytest.mark.parametrize("count", [1, 2, 7, 64, 101])
def test_every_picture_has_a_place_of_its_own(count):
    points = np.random.default_rng(1).standard_normal((count, 2)).astype(np.float32)
    places = spread(points)
    assert len({tuple(place) for place in places}) == count
    assert places.max() < np.ceil(np.sqrt(count))
    left, right = places[points[:, 0].argmin(), 0], places[points[:, 0].argmax(), 0]
    assert left <= right


def test_plane_shows_the_pictures(photo_bytes):
    places = spread(np.random.default_rng(2).standard_normal((5, 2)).astype(np.float32))
    keys = [str(n) for n in range(5)]
    plane = draw_plane(keys, places, {key: photo_bytes(int(key)) for key in keys[:4]})
    assert plane.width == plane.height
    colors = plane.getcolors(1 << 22)
    assert colors is not None
    assert len(colors) > 1000


def test_a_picture_corresponds_to_itself_cell_by_cell(toy_encoder, photo_bytes):
    embedder = LocalEmbedder(toy_encoder, outputs=OUTPUTS, normalize=False)
    features = picture_features(photo_bytes(1), embedder)
    found = compare(features, features, pairs=7)
    assert found.match.cosine == pytest.approx(1, abs=1e-5)
    document = found.to_json()
    assert np.shape(document["map_of_second"]) == (7, 7)
    for pair in document["pairs"]:
        assert all(0 <= edge <= 1 for edge in (*pair["first"], *pair["second"]))
    sheet = draw_comparison(photo_bytes(1), photo_bytes(2), found)
    assert sheet.width > 2 * 400
    with pytest.raises(ImageError):
        picture_features(b"no picture", embedder)


def test_the_same_part_is_paired_where_it_was_moved():
    rng = np.random.default_rng(3)
    cells = rng.standard_normal((7, 7, 32)).astype(np.float32)
    other = rng.standard_normal((7, 7, 32)).astype(np.float32)
    other[5, 1] = cells[2, 3]
    frame = PictureFrame(70, 70, Preprocess.for_image_size(64))

    def features(grid):
        flat = np.ones(32, np.float32)
        return PictureFeatures(flat, flat, np.zeros((5, 5, 32), np.float32), grid, frame)

    best = compare(features(cells), features(other)).pairs[0]
    assert best.first == frame.cell_box(2, 3, 7)
    assert best.second == frame.cell_box(5, 1, 7)


def test_sheets_survive_pictures_that_are_gone(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (50, 40), "red").save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    sheet = draw_groups([[str(tmp_path / "a.png"), str(tmp_path / "gone.png")]])
    assert sheet.size[0] > 2 * 176
