"""Congruence: exact search, LanceDB and Qdrant answer alike to the same calls."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient

from amdim_clients.conditions import parse_conditions
from amdim_clients.errors import DigestMismatchError, IndexStoreError, ScaleError
from amdim_clients.exact_index import ExactIndex
from amdim_clients.facts import PictureFacts
from amdim_clients.lance_index import open_or_create_index
from amdim_clients.lance_tables import window_rows
from amdim_clients.pipeline import Record
from amdim_clients.qdrant_index import connect, open_or_create_qdrant, open_qdrant
from amdim_clients.qdrant_points import window_points
from amdim_clients.searching import Sought, find_pictures, find_windows, in_common
from amdim_clients.space import VectorSpace
from amdim_clients.stores import failures_file, open_store, stored_plan
from amdim_clients.window_rows import PictureWindows, WindowPlan

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
SPACE = VectorSpace("amdim_windows", "window_mean", 12, True, A, B)
PLAN = WindowPlan((1.0, 2.0), 4)
COUNT = 40


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def windows_of(rng, count):
    corners = rng.random((count, 2)).astype(np.float32) / 2
    vectors = unit(rng.standard_normal((count, 12))).astype(np.float16)
    scales = np.where(np.arange(count) % 2, 2.0, 1.0).astype(np.float32)
    return PictureWindows(scales, np.concatenate([corners, corners + 0.5], axis=1), vectors)


def record(n, content=None):
    facts = PictureFacts(100 * n, 1_000_000 + n, 10 + n, None, ["cat", "it's", None][n % 3])
    return Record(f"/photos/{n % 4}/it's {n}.jpg", content or f"{n:064x}", facts)


@pytest.fixture
def qdrant():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the local mode says that it is not meant for production
        client = QdrantClient(":memory:")
        yield client
        client.close()


@pytest.fixture
def stores(tmp_path, qdrant):
    """The same pictures in all three: added, some changed, some removed."""
    made: list[Any] = [
        ExactIndex(SPACE, PLAN),
        open_or_create_index(tmp_path / "db", SPACE, PLAN),
        open_or_create_qdrant(qdrant, "photos", SPACE, PLAN),
    ]
    for store in made:
        rng = np.random.default_rng(0)
        for numbers, suffix in ((range(COUNT), ""), (range(5, 9), "f")):
            records = [record(n, f"{n:063x}{suffix}" if suffix else None) for n in numbers]
            windows = [windows_of(rng, 3 + n % 4) for n in numbers]
            vectors = unit(rng.standard_normal((len(records), 12)))
            store.add(records, vectors, space=SPACE, artifact_digest=A, windows=windows)
        store.remove([record(3).key, "/unknown"])
    return made


def queries():
    return unit(np.random.default_rng(9).standard_normal((5, 12)))


@pytest.mark.parametrize(
    "where",
    [
        (),
        ("label=it's",),
        ("label!=cat", "width>20"),
        ("path=/photos/1",),
        ("path!=/photos/1", "bytes<=2000"),
        ("modified>=1970-01-12T13:46:50", "width<48"),
        ("label=dog",),
    ],
)
def test_all_stores_find_the_same_pictures_and_windows(stores, where):
    oracle, *others = stores
    conditions = parse_conditions(where)
    for store in others:
        assert (len(store), store.window_count) == (COUNT - 1, oracle.window_count)
        pairs = zip(
            oracle.search(queries(), 7, space=SPACE, where=conditions),
            store.search(queries(), 7, space=SPACE, where=conditions),
            strict=True,
        )
        for right, mine in pairs:
            assert mine.keys == right.keys
            np.testing.assert_allclose(mine.scores, right.scores, atol=2e-3)
        pairs = zip(
            oracle.search_windows(queries(), 9, space=SPACE, where=conditions),
            store.search_windows(queries(), 9, space=SPACE, where=conditions),
            strict=True,
        )
        for right, mine in pairs:
            assert mine.keys == right.keys
            np.testing.assert_allclose(mine.scores, right.scores, atol=2e-3)
            np.testing.assert_allclose(mine.boxes, right.boxes, atol=1e-6)
            np.testing.assert_allclose(mine.scales, right.scales)


def test_all_stores_give_back_what_they_hold(stores):
    oracle, *others = stores
    keys = [record(n).key for n in (1, 3, 6, 30)]
    for store in others:
        assert set(store.rows("/photos/2")) == set(oracle.rows("/photos/2"))
        assert len(list(store.rows("/"))) == COUNT - 1
        assert store.facts(keys) == oracle.facts(keys)
        hashes = [f"{n:064x}" for n in range(COUNT)]
        assert store.holders(hashes) == oracle.holders(hashes)
        for key, vector in oracle.vectors(keys).items():
            np.testing.assert_allclose(store.vectors(keys)[key], vector, atol=1e-6)
        mine = store.windows(keys)
        assert set(mine) == set(oracle.windows(keys))
        for key, windows in oracle.windows(keys).items():
            np.testing.assert_array_equal(mine[key].boxes, windows.boxes)
            np.testing.assert_allclose(
                mine[key].vectors.astype(float), windows.vectors.astype(float), atol=2e-3
            )


def test_answers_are_the_same_from_all_stores(stores):
    whole = Sought(queries()[0])
    in_parts = Sought(queries()[0], queries())
    for found in (
        [find_pictures(whole, store, count=6) for store in stores],
        [find_pictures(in_parts, store, count=6) for store in stores],
        [find_windows(whole.vector, store, count=6) for store in stores],
    ):
        right, *others = found
        for mine in others:
            assert [answer.key for answer in mine] == [answer.key for answer in right]
            assert [answer.box for answer in mine] == [answer.box for answer in right]
            assert mine[0].cosines is not None
            assert mine[0].score == pytest.approx(right[0].score, abs=2e-3)


def test_all_stores_give_a_sample_of_themselves(stores):
    oracle, *others = stores
    right = sorted(oracle.sample(1000).tolist())
    assert len(right) == len(oracle)
    for store in others:
        np.testing.assert_allclose(sorted(store.sample(1000).tolist()), right, atol=1e-6)
        held = {tuple(vector) for vector in store.sample(1000).tolist()}
        some = store.sample(7)
        assert some.shape == (7, 12)
        assert {tuple(vector) for vector in some.tolist()} <= held
        np.testing.assert_array_equal(store.sample(7), some)


def test_what_a_collection_has_in_common_is_taken_off(stores):
    for store in stores:
        common = in_common(store)
        mean = store.sample(1000).mean(axis=0)
        np.testing.assert_allclose(common, mean * (len(store) / (len(store) + 50)), atol=1e-5)
        query = queries()[0] - common
        held = {row.key: store.vectors([row.key])[row.key] - common for row in store.rows("/")}
        scores = {
            key: float(query @ vector / np.linalg.norm(query) / np.linalg.norm(vector))
            for key, vector in held.items()
        }
        answers = find_pictures(Sought(queries()[0]), store, count=len(store))
        assert [a.key for a in answers] == sorted(scores, key=lambda key: -scores[key])
        assert [a.score for a in answers] == pytest.approx(sorted(scores.values())[::-1], abs=1e-5)


def test_an_empty_index_has_nothing_in_common_and_no_answers(tmp_path, qdrant):
    for store in (
        ExactIndex(SPACE),
        open_or_create_index(tmp_path / "empty", SPACE),
        open_or_create_qdrant(qdrant, "empty", SPACE),
    ):
        assert store.sample(5).shape == (0, 12)
        assert not in_common(store).any()
        assert find_pictures(Sought(queries()[0]), store, count=3) == []


def test_other_spaces_and_other_windows_are_refused_everywhere(stores, tmp_path, qdrant):
    other = dataclasses.replace(SPACE, encoder_digest=B)
    vector = np.ones((1, 12), np.float32)
    for store in stores:
        for search in (store.search, store.search_windows):
            with pytest.raises(DigestMismatchError):
                search(vector, 1, space=other)
        with pytest.raises(DigestMismatchError):
            store.add([record(1)], vector, space=other, artifact_digest=A)
    for reopen in (
        lambda space, plan: open_or_create_index(tmp_path / "db", space, plan),
        lambda space, plan: open_or_create_qdrant(qdrant, "photos", space, plan),
    ):
        assert len(reopen(SPACE, PLAN)) == COUNT - 1
        with pytest.raises(DigestMismatchError):
            reopen(other, PLAN)
        for plan in (None, WindowPlan((1.0,), 4)):
            with pytest.raises(ScaleError, match="make a new index"):
                reopen(SPACE, plan)
    assert open_qdrant(qdrant, "photos").plan == PLAN
    assert stored_plan(str(tmp_path / "db")) == PLAN
    assert stored_plan(str(tmp_path / "none")) is None


def test_without_windows_regions_cannot_be_sought(tmp_path, qdrant):
    for store in (
        ExactIndex(SPACE),
        open_or_create_index(tmp_path / "plain", SPACE),
        open_or_create_qdrant(qdrant, "plain", SPACE),
    ):
        assert store.plan is None
        assert store.window_count == 0
        with pytest.raises(IndexStoreError, match="amdim index --windows"):
            store.search_windows(queries(), 3, space=SPACE)


def test_a_server_that_is_not_there_or_not_named_is_told(tmp_path):
    with pytest.raises(IndexStoreError, match="no answer from the Qdrant server"):
        open_store("qdrant+http://127.0.0.1:9/photos")
    for address in ("http://127.0.0.1:6333", "ftp://x/y", "http://x/a/b"):
        with pytest.raises(IndexStoreError, match="is not like http://HOST"):
            connect(address)
    with pytest.raises(IndexStoreError, match="make one with amdim index"):
        open_store(str(tmp_path))
    assert failures_file(str(tmp_path / "db")) == tmp_path / "db.failures.jsonl"


def test_windows_without_a_picture_do_not_count_and_are_repaired(stores):
    _, lance, qdrant_index = stores
    for store, orphan in ((lance, _orphan_in_lance), (qdrant_index, _orphan_in_qdrant)):
        before = store.window_count
        orphan(store, windows_of(np.random.default_rng(1), 30))
        assert store.window_count == before + 30
        (found,) = store.search_windows(queries()[:1], 200, space=SPACE)
        assert "/orphan.jpg" not in found.keys
        assert len(found.keys) == before
        store.repair()
        assert store.window_count == before
        assert len(store) == COUNT - 1


def _orphan_in_lance(store, windows):
    rows = window_rows([Record("/orphan.jpg", "0" * 64)], [windows], SPACE, PLAN)
    store._windows.add(rows)


def _orphan_in_qdrant(store, windows):
    store._upsert("photos_windows", window_points(Record("/orphan.jpg", "0" * 64), windows))
