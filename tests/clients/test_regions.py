"""Windows in an index, and parts of pictures sought among them, with a toy encoder."""

from __future__ import annotations

import asyncio
import io
import shutil

import httpx
import numpy as np
import pytest
from PIL import Image

from amdim_clients.errors import IndexStoreError, RegionError, ResponseError, ScaleError
from amdim_clients.gateway import AsyncEmbedClient, EmbedClient
from amdim_clients.images import load_rgb
from amdim_clients.indexing import update_index
from amdim_clients.inputs import ImageFailure
from amdim_clients.lance_index import create_index
from amdim_clients.regions import cut_region, cut_squares, parse_region, square_around
from amdim_clients.searching import (
    Sought,
    combine,
    embed_picture,
    embed_region,
    find_pictures,
    find_windows,
    in_common,
    parts_score,
    stored_picture,
)
from amdim_clients.window_embedders import RemoteWindowEmbedder
from amdim_clients.window_rows import WINDOW_MEAN, PictureWindows, WindowPlan, choose_plan
from amdim_clients.windows import plan_grid


def saved(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def noise(seed, size):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def scene_folder(tmp_path):
    """Twelve scenes; all dark; one bright patch is in two of them, at the right and at the top."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    patch = Image.new("RGB", (100, 100), "#ffffff")
    for n in range(12):
        scene = noise(n, (320, 240)).point(lambda value: value * 2 // 5)
        if n == 3:
            scene.paste(patch, (200, 120))
        if n == 7:
            scene.paste(patch, (20, 10))
        (folder / f"{n:02}.png").write_bytes(saved(scene))
    return folder


@pytest.fixture
def index(tmp_path, window_embedder):
    space = window_embedder.origin.space(WINDOW_MEAN)
    return create_index(tmp_path / "db", space, window_embedder.plan)


def update(folder, embedder, index):
    report = update_index([folder], embedder, index, output=WINDOW_MEAN)
    return report.added, report.moved, report.unchanged, report.removed


def test_a_part_of_one_picture_is_found_in_another_and_where(scene_folder, window_embedder, index):
    assert update(scene_folder, window_embedder, index) == (12, 0, 0, 0)
    data = (scene_folder / "03.png").read_bytes()
    region = (200 / 320, 120 / 240, 300 / 320, 220 / 240)
    query = embed_region(data, region, window_embedder, index)
    first, second, *_ = find_windows(query, index, count=5)
    assert {first.key, second.key} == {str(scene_folder / n) for n in ("03.png", "07.png")}
    found = {answer.key: answer for answer in (first, second)}[str(scene_folder / "07.png")]
    assert found.box is not None
    assert found.boxes is not None
    assert found.cosines is not None
    x, y = (found.box[0] + found.box[2]) / 2, (found.box[1] + found.box[3]) / 2
    assert 20 / 320 < x < 120 / 320
    assert 10 / 240 < y < 110 / 240
    assert found.scale in (1.0, 1.5, 2.0)
    assert len(found.boxes) == len(found.cosines) == len(index.windows([found.key])[found.key])


def test_a_whole_picture_is_the_mean_of_its_coarse_windows(
    scene_folder, window_embedder, toy_windows, index
):
    update(scene_folder, window_embedder, index)
    key = str(scene_folder / "05.png")
    data = (scene_folder / "05.png").read_bytes()
    means = []
    for grid, pixels in window_embedder.prepare(data):
        if grid.scale <= 1.5:
            vectors = toy_windows.encode(pixels[None])[0].reshape(-1, 6)
            mean = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).mean(0)
            means.append(mean / np.linalg.norm(mean))
    assert len(means) == 2
    total = np.sum(means, axis=0)
    stored = stored_picture(key, index)
    assert stored is not None
    np.testing.assert_allclose(stored.vector, total / np.linalg.norm(total), atol=1e-5)
    query = embed_picture((scene_folder / "05.png").read_bytes(), window_embedder, index)
    np.testing.assert_allclose(query.vector, stored.vector, atol=1e-3)
    assert query.parts is not None
    assert stored.parts is not None
    windows = index.windows([key])[key]
    assert len(query.parts) == len(stored.parts) == np.sum(windows.scales <= 1.5) < len(windows)
    answer = find_pictures(query, index, count=3)[0]
    assert answer.key == key
    assert answer.score == pytest.approx(1, abs=1e-3)
    assert answer.box is not None


def test_windows_are_made_once_and_follow_their_pictures(
    scene_folder, window_embedder, toy_windows, index, tmp_path
):
    update(scene_folder, window_embedder, index)
    count, made = index.window_count, toy_windows.pictures
    assert update(scene_folder, window_embedder, index) == (0, 0, 12, 0)
    (scene_folder / "deeper").mkdir()
    shutil.move(scene_folder / "00.png", scene_folder / "deeper" / "moved.png")
    assert update(scene_folder, window_embedder, index) == (0, 1, 11, 1)
    assert toy_windows.pictures == made
    moved = str(scene_folder / "deeper" / "moved.png")
    assert len(index.windows([moved])[moved]) * 12 == index.window_count == count
    (scene_folder / "01.png").write_bytes(saved(noise(500, (320, 240))))
    (scene_folder / "02.png").unlink()
    assert update(scene_folder, window_embedder, index) == (1, 0, 10, 1)
    assert index.window_count * 12 == count * 11
    assert index.is_whole


def test_stored_vector_is_used_only_while_the_file_is_the_same(
    scene_folder, window_embedder, index
):
    update(scene_folder, window_embedder, index)
    path = scene_folder / "04.png"
    assert stored_picture(str(path), index) is not None
    assert stored_picture(str(scene_folder / "none.png"), index) is None
    path.write_bytes(saved(noise(600, (320, 240))))
    assert stored_picture(str(path), index) is None
    path.unlink()
    assert stored_picture(str(path), index) is not None


def test_parts_that_agree_move_a_picture_up(scene_folder, window_embedder, index):
    update(scene_folder, window_embedder, index)
    query = stored_picture(str(scene_folder / "05.png"), index)
    assert query is not None
    whole = find_pictures(Sought(query.vector), index, count=12)
    assert all(answer.score == pytest.approx(cosine(query, answer, index)) for answer in whole)
    # parts of another picture: it rises from wherever it was
    later = whole[5].key
    parts = index.windows([later])[later].coarse
    found = find_pictures(Sought(query.vector, parts), index, count=12)
    assert {answer.key for answer in found} == {answer.key for answer in whole}
    for answer in found:
        windows = index.windows([answer.key])[answer.key].vectors
        both = (cosine(query, answer, index) + parts_score(windows, parts, in_common(index))) / 2
        assert answer.score == pytest.approx(both)
    keys = [answer.key for answer in found]
    assert keys.index(later) < 5
    assert [answer.score for answer in found] == sorted((a.score for a in found), reverse=True)
    # however few are asked for, as many are compared
    (first,) = find_pictures(Sought(query.vector, parts), index, count=1)
    assert first.key == keys[0]


def cosine(query, answer, index):
    """Of query and answer, less what the index has in common."""
    common = in_common(index)
    a, b = query.vector - common, index.vectors([answer.key])[answer.key] - common
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_a_picture_holds_its_own_parts():
    vectors = np.random.default_rng(0).normal(size=(9, 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for common in (np.zeros(6, np.float32), vectors.mean(axis=0).astype(np.float32)):
        assert parts_score(vectors, vectors[:4], common) == pytest.approx(1, abs=1e-6)
        rest = vectors - common
        rest /= np.linalg.norm(rest, axis=1, keepdims=True)
        best = (rest[:4] @ rest[4:].T).max(axis=1)
        assert parts_score(vectors[4:], vectors[:4], common) == pytest.approx(best.mean(), abs=1e-6)


def test_several_pictures_make_one_query():
    a, b = np.array([[2, 0, 0], [0, 3, 0]], np.float32)
    np.testing.assert_allclose(combine([a, b]), [0.5**0.5, 0.5**0.5, 0], atol=1e-6)
    away = combine([a], [b])
    assert away @ a > 0 > away @ b
    with pytest.raises(IndexStoreError, match="nothing is left"):
        combine([a, -a])


def test_too_long_a_picture_goes_without_its_finest_windows(window_embedder):
    long = saved(noise(1, (6000, 60)))
    prepared = window_embedder.prepare(long)
    assert [grid.scale for grid, _ in prepared] == [1.0]
    (windows,) = window_embedder.embed([prepared])
    assert set(windows.scales) == {1.0}
    assert np.linalg.norm(windows.whole) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "text", ["0,0,1", "a,b,c,d", "0.5,0,0.4,1", "0,0,1.2,1", "-0.1,0,1,1", "0,0,nan,1"]
)
def test_what_is_no_region_is_told(text):
    with pytest.raises(RegionError, match="region"):
        parse_region(text)


def test_regions_are_cut_square_with_a_little_around_them():
    x0, y0, x1, y1 = square_around((0.4, 0.4, 0.5, 0.6), 1000, 500)
    assert ((x1 - x0) * 1000, (y1 - y0) * 500) == pytest.approx((120, 120))
    assert square_around((0, 0, 1, 1), 1000, 500) == pytest.approx((0.25, 0, 0.75, 1))
    assert square_around((0.9, 0.9, 1, 1), 100, 100)[2:] == pytest.approx((1, 1))
    data = saved(noise(0, (200, 100)))
    assert load_rgb(cut_region(data, (0.1, 0.1, 0.3, 0.5))).size == (48, 48)
    with pytest.raises(RegionError, match="draw a larger one"):
        cut_region(data, (0.1, 0.1, 0.11, 0.11))


def test_a_region_is_sought_with_a_little_and_with_more_around_it(
    scene_folder, window_embedder, index
):
    data = (scene_folder / "03.png").read_bytes()
    region = (0.5, 0.4, 0.7, 0.7)
    squares = cut_squares(data, region)
    assert [load_rgb(square).size for square in squares] == [(86, 86), (122, 122)]
    vectors = [
        windows.vectors[0].astype(np.float32)
        for windows in window_embedder.with_plan(WindowPlan((1.0,), 1)).embed(
            [window_embedder.with_plan(WindowPlan((1.0,), 1)).prepare(s) for s in squares]
        )
    ]
    query = embed_region(data, region, window_embedder, index)
    np.testing.assert_allclose(query, combine(vectors), atol=1e-5)
    assert len(cut_squares(data, (0, 0, 1, 1))) == 1  # there is no more around it


def test_plans_come_from_options_or_from_the_index():
    stored = WindowPlan((1.0, 2.0), 3)
    assert choose_plan(None, None, None, None) is None
    assert choose_plan(None, None, None, stored) == stored
    assert choose_plan(True, "1,3", None, None) == WindowPlan((1.0, 3.0), WindowPlan().stride)
    assert choose_plan(True, None, 8, None) == WindowPlan(stride=8)
    wrong: list[tuple[bool | None, str | None, int | None]] = [
        (None, "1,2", None),
        (True, "1,x", None),
        (True, None, 9),
        (True, "1,9", None),
    ]
    for windows, scales, stride in wrong:
        with pytest.raises(ScaleError):
            choose_plan(windows, scales, stride, None)


@pytest.mark.parametrize("stride", range(1, 9))
def test_thinning_keeps_the_outermost_windows(stride):
    grid = plan_grid(500, 375, 2.0, 64)
    vectors = np.random.default_rng(0).standard_normal((grid.rows, grid.columns, 4))
    kept = WindowPlan((2.0,), stride).keep([(grid, vectors.astype(np.float32))])
    assert kept.boxes[:, :2].min() == 0
    np.testing.assert_allclose(kept.boxes[:, 2:].max(0), 1)
    if stride == 1:
        assert len(kept) == grid.rows * grid.columns


def test_a_gateway_gives_the_same_windows(
    scene_folder, window_embedder, gateway, gateway_transport, index
):
    client = EmbedClient("http://gateway", transport=gateway_transport)
    remote = RemoteWindowEmbedder(client, window_embedder.plan)
    assert remote.origin.space(WINDOW_MEAN).dim == index.space.dim
    files = [path.read_bytes() for path in sorted(scene_folder.iterdir())[:3]]
    here = window_embedder.embed([window_embedder.prepare(file) for file in files])
    for mine, theirs in zip(here, remote.embed(files), strict=True):
        assert isinstance(mine, PictureWindows)
        assert isinstance(theirs, PictureWindows)
        np.testing.assert_allclose(mine.boxes, theirs.boxes, atol=1e-6)
        np.testing.assert_array_equal(mine.scales, theirs.scales)
        np.testing.assert_allclose(
            mine.vectors.astype(float), theirs.vectors.astype(float), atol=2e-3
        )
    gateway.max_windows = 60
    (fewer,), (broken,) = remote.embed(files[:1]), remote.embed([b"no picture"])
    assert isinstance(fewer, PictureWindows)
    assert set(fewer.scales) == {1.0, 1.5}
    assert isinstance(broken, ImageFailure)
    assert broken.code == "unsupported_media_type"


def test_windows_are_had_without_blocking(scene_folder, gateway):
    async def ask():
        transport = httpx.MockTransport(gateway.asynchronous)
        async with AsyncEmbedClient("http://gateway", transport=transport) as client:
            return await client.embed_windows(sorted(scene_folder.iterdir()), scales=(1, 2))

    result = asyncio.run(ask())
    assert sorted(result.windows) == list(range(12))
    grids = result.raise_for_errors().windows[5]
    assert [grid.scale for grid, _ in grids] == [1, 2]
    for grid, vectors in grids:
        assert vectors.shape[:2] == grid.boxes().shape[:2]


def test_boxes_that_do_not_fit_are_refused(scene_folder, gateway):
    def lie(request):
        response = gateway(request)
        content = response.content.replace(b'"first_box":[0.0', b'"first_box":[0.5')
        return httpx.Response(200, content=content)

    client = EmbedClient("http://gateway", transport=httpx.MockTransport(lie))
    with pytest.raises(ResponseError, match="boxes"):
        client.embed_windows(sorted(scene_folder.iterdir())[:1])
