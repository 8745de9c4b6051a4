from __future__ import annotations

import dataclasses
import shutil

import lancedb
import numpy as np
import pytest

from amdim_clients.answers import QueryPicture, draw_answers
from amdim_clients.errors import DigestMismatchError, IndexStoreError, SourceError
from amdim_clients.exact_index import ExactIndex
from amdim_clients.indexing import update_index
from amdim_clients.lance_index import create_index, open_index, open_or_create_index
from amdim_clients.pipeline import Record
from amdim_clients.searching import embed_picture, find_neighbors, find_pictures, read_query
from amdim_clients.space import VectorSpace

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
SPACE = VectorSpace("amdim", "embedding", 6, True, A, B)


@pytest.fixture
def index(tmp_path, toy_embedder):
    return create_index(tmp_path / "db", toy_embedder.origin.space("embedding"))


def update(paths, embedder, index):
    report = update_index(paths, embedder, index, output="embedding")
    return report.added, report.unchanged, report.removed, len(report.failed)


def fill(index, count=50, dim=6, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    records = [Record(f"it's #{n}.jpg", f"{n:064}") for n in range(count)]
    index.add(records, vectors, space=index.space, artifact_digest=A)
    return vectors


@pytest.mark.parametrize("count", [1, 3, 200])
def test_lance_agrees_with_exact_search(tmp_path, count):
    lance, exact = create_index(tmp_path / "db", SPACE), ExactIndex(SPACE)
    queries = fill(lance, 90)[:7] + np.float32(0.1)
    fill(exact, 90)
    for index in (lance, exact):
        index.remove(["it's #3.jpg", "unknown"])
        fill(index, 20, seed=1)
    assert len(lance) == len(exact) == 90 - 1 + 1
    for mine, oracle in zip(
        lance.search(queries, count, space=SPACE),
        exact.search(queries, count, space=SPACE),
        strict=True,
    ):
        assert mine.keys == oracle.keys
        np.testing.assert_allclose(mine.scores, oracle.scores, atol=1e-6)
        np.testing.assert_allclose(mine.distances, 1 - mine.scores, atol=1e-6)
        assert len(mine.keys) == min(count, 90)
    assert set(lance.rows("it's #5.jpg")) == set(exact.rows("it's #5.jpg")) != set()


def test_empty_index_finds_nothing(tmp_path):
    query = np.ones((1, 6), np.float32)
    for index in (create_index(tmp_path / "db", SPACE), ExactIndex(SPACE)):
        (found,) = index.search(query, 5, space=SPACE)
        assert found.keys == ()
        assert found.scores.shape == (0,)


def test_approximate_index_is_built_only_from_a_size_and_stays_near_exact(tmp_path):
    space = dataclasses.replace(SPACE, dim=16)
    index = create_index(tmp_path / "db", space)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 16))
    vectors = (centres[rng.integers(0, 40, 1200)] + 0.3 * rng.standard_normal((1200, 16))).astype(
        np.float32
    )
    records = [Record(f"/p/{n}", f"{n:064}") for n in range(1200)]
    index.add(records, vectors, space=space, artifact_digest=A)
    index.tune()
    assert not index.is_approximate
    index.tune(ann_min_rows=1000)
    assert index.is_approximate
    index.tune(ann_min_rows=1000)
    late = [Record("/late", "0" * 64)]
    index.add(late, vectors[:1] * 2, space=space, artifact_digest=A)
    queries = vectors[:50]
    near = index.search(queries, 10, space=space)
    exact = index.search(queries, 10, space=space, exact=True)
    recall = np.mean(
        [len(set(n.keys) & set(e.keys)) / 10 for n, e in zip(near, exact, strict=True)]
    )
    assert recall >= 0.95
    assert "/late" in near[0].keys[:2]
    # by key too, whether the index of keys has seen the row or not
    assert set(index.vectors(["/late", "/p/3", "/none"])) == {"/late", "/p/3"}
    assert len(index.sample(2000)) == len(index.sample(2000)) == 1201
    index.remove(["/late", "/p/3"])
    assert len(index.sample(2000)) == 1199
    assert not index.vectors(["/late", "/p/3"])
    index.tune(ann_min_rows=1000)
    assert set(index.vectors(["/p/4", "/p/3"])) == {"/p/4"}


def test_rows_below_a_folder_file_or_pack_are_told_apart(tmp_path):
    index, exact = create_index(tmp_path / "db", SPACE), ExactIndex(SPACE)
    keys = ["/a/b", "/a/b.jpg", "/a/b/c.jpg", "/a/b#0", "/a/b/p.tar#x", "/a/bc/d", "/a/%"]
    for each in (index, exact):
        each.add(
            [Record(key, "0" * 64) for key in keys],
            np.eye(7, 6, dtype=np.float32) + 1,
            space=SPACE,
            artifact_digest=A,
        )
        below = {row.key for row in each.rows("/a/b")}
        assert below == {"/a/b", "/a/b/c.jpg", "/a/b#0", "/a/b/p.tar#x"}
        assert len(list(each.rows("/"))) == 7


@pytest.mark.parametrize(
    "change",
    [
        {"encoder_digest": B},
        {"preprocess_digest": A},
        {"output": "global"},
        {"normalized": False},
        {"dim": 5},
    ],
)
def test_vectors_of_another_space_are_refused_everywhere(tmp_path, change):
    other = dataclasses.replace(SPACE, **change)
    index = create_index(tmp_path / "db", SPACE)
    fill(index)
    vectors = np.ones((1, other.dim), np.float32)
    for each in (index, ExactIndex(SPACE)):
        with pytest.raises(DigestMismatchError, match="another"):
            each.search(vectors, 1, space=other)
        with pytest.raises(DigestMismatchError):
            each.add([Record("k", "0")], vectors, space=other, artifact_digest=A)
    with pytest.raises(DigestMismatchError):
        open_or_create_index(tmp_path / "db", other)
    assert len(open_index(tmp_path / "db")) == 50


def test_other_artifact_of_the_same_encoder_is_welcome_and_recorded(tmp_path):
    index = create_index(tmp_path / "db", SPACE)
    fill(index)
    one = np.ones((1, 6), np.float32)
    index.add([Record("k", "0")], one, space=SPACE, artifact_digest=B)
    assert index.artifact_digests == {A, B}


def test_what_is_no_index_is_told(tmp_path):
    with pytest.raises(IndexStoreError, match="no index at"):
        open_index(tmp_path / "nowhere")
    with pytest.raises(IndexStoreError, match="no index at"):
        open_index(tmp_path)
    lancedb.connect(tmp_path / "foreign").create_table("images", [{"x": 1}])
    with pytest.raises(IndexStoreError, match="where its vectors come from"):
        open_index(tmp_path / "foreign")
    with pytest.raises(IndexStoreError, match="later version"):
        VectorSpace.from_json(SPACE.to_json().replace('"format": 1', '"format": 2'))


def test_second_run_encodes_only_what_changed(
    photo_folder, toy_embedder, toy_encoder, index, photo_bytes
):
    assert update([photo_folder], toy_embedder, index) == (20, 0, 0, 2)
    toy_encoder.batches.clear()
    assert update([photo_folder], toy_embedder, index) == (0, 20, 0, 2)
    assert toy_encoder.batches == []
    (photo_folder / "class0" / "00.jpg").write_bytes(photo_bytes(100))
    (photo_folder / "class1" / "new.jpg").write_bytes(photo_bytes(101))
    (photo_folder / "class2" / "02.jpg").unlink()
    (photo_folder / "class1" / "01.jpg").write_text("now broken")
    assert update([photo_folder], toy_embedder, index) == (2, 17, 2, 3)
    assert len(index) == 19
    keys = {row.key for row in index.rows(str(photo_folder))}
    assert str(photo_folder / "class2" / "02.jpg") not in keys
    assert str(photo_folder / "class1" / "01.jpg") not in keys


def test_other_folders_of_the_index_are_left_alone(photo_folder, toy_embedder, index, tmp_path):
    update([photo_folder], toy_embedder, index)
    other = tmp_path / "photos2"
    shutil.copytree(photo_folder / "class0", other)
    assert update([other], toy_embedder, index) == (7, 0, 0, 0)
    assert update([photo_folder / "class0"], toy_embedder, index) == (0, 7, 0, 0)
    assert update([photo_folder], toy_embedder, index) == (0, 20, 0, 2)
    shutil.rmtree(photo_folder / "class0")
    assert update([photo_folder], toy_embedder, index) == (0, 13, 7, 2)
    assert len(index) == 20


def test_pack_rows_are_indexed_and_updated(parquet_pack, toy_embedder, index):
    assert update([parquet_pack], toy_embedder, index) == (68, 0, 0, 2)
    assert update([parquet_pack.parent / "*.parquet"], toy_embedder, index) == (0, 68, 0, 2)


def test_pack_that_breaks_keeps_its_rows(parquet_pack, toy_embedder, index, tmp_path):
    folder = tmp_path / "packs"
    folder.mkdir()
    pack = parquet_pack.rename(folder / "pack.parquet")
    assert update([folder], toy_embedder, index)[0] == 68
    pack.write_bytes(pack.read_bytes()[:1000])
    assert update([folder], toy_embedder, index) == (0, 0, 0, 1)
    assert len(index) == 68


def test_folder_without_pictures_removes_nothing(photo_folder, toy_embedder, index):
    update([photo_folder], toy_embedder, index)
    shutil.rmtree(photo_folder)
    photo_folder.mkdir()
    with pytest.raises(SourceError, match="no pictures in"):
        update([photo_folder], toy_embedder, index)
    assert len(index) == 20


def test_interrupted_run_is_taken_up_again(photo_folder, toy_embedder, index):
    def interrupt(done, failed):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update_index([photo_folder], toy_embedder, index, output="embedding", progress=interrupt)
    kept = len(index)
    assert 0 < kept < 20
    assert update([photo_folder], toy_embedder, index) == (20 - kept, kept, 0, 2)


def test_picture_finds_itself_then_its_like(photo_folder, toy_embedder, index, photo_bytes):
    smaller = photo_folder / "class0" / "smaller.jpg"
    smaller.write_bytes(photo_bytes(4, size=(100, 75)))
    update([photo_folder], toy_embedder, index)
    query = str(photo_folder / "class1" / "04.jpg")
    found = find_neighbors(read_query(query), toy_embedder, index, count=3)
    assert found.keys[:2] == (query, str(smaller))
    assert found.scores[0] == pytest.approx(1, abs=1e-5)
    answers = find_pictures(embed_picture(read_query(query), toy_embedder, index), index, count=3)
    assert tuple(answer.key for answer in answers) == found.keys
    sheet = draw_answers([QueryPicture(query, read_query(query))], answers)
    assert sheet.mode == "RGB"
    assert sheet.width > 4 * 176
    with pytest.raises(SourceError):
        read_query(str(photo_folder / "gone.jpg"))
