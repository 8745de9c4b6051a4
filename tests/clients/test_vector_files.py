from __future__ import annotations

import json

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from amdim_clients.embedders import LocalEmbedder
from amdim_clients.embedding import embed_to_file
from amdim_clients.errors import SourceError
from amdim_clients.pipeline import embed_sources
from amdim_clients.walk import walk_images


@pytest.fixture
def expected(photo_folder, toy_encoder):
    embedder = LocalEmbedder(toy_encoder, outputs=["embedding", "local5"])
    outcomes = list(embed_sources(walk_images([photo_folder]), embedder))
    keys = [record.key for outcome in outcomes for record in outcome.records]
    return (
        embedder,
        keys,
        {
            name: np.concatenate([o.arrays[name] for o in outcomes if o.records])
            for name in ("embedding", "local5")
        },
    )


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_parquet_holds_paths_hashes_and_vectors(tmp_path, photo_folder, expected):
    embedder, keys, arrays = expected
    report = embed_to_file([photo_folder], embedder, tmp_path / "v.parquet")
    assert (report.written, len(report.failed)) == (20, 2)
    table = pq.read_table(tmp_path / "v.parquet")
    assert table.column_names == ["path", "content_hash", "embedding", "local5"]
    assert table["path"].to_pylist() == keys
    flat = table["local5"].combine_chunks().flatten().to_numpy().reshape(20, 5, 5, 8)
    np.testing.assert_array_equal(flat, arrays["local5"])
    metadata = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    assert metadata["amdim.encoder_digest"] == "sha256:" + "a" * 64
    assert metadata["amdim.normalized"] == "true"
    assert json.loads(metadata["amdim.shapes"])["local5"] == [5, 5, 8]
    assert leftovers(tmp_path) == []


def test_safetensors_holds_every_output(tmp_path, photo_folder, expected):
    embedder, keys, arrays = expected
    embed_to_file([photo_folder], embedder, tmp_path / "v.safetensors")
    with safe_open(tmp_path / "v.safetensors", "np") as file:
        assert set(file.keys()) == {"embedding", "local5"}
        np.testing.assert_array_equal(file.get_tensor("local5"), arrays["local5"])
        assert file.metadata()["amdim.model"] == "amdim"
    rows = json.loads((tmp_path / "v.safetensors.json").read_text())["rows"]
    assert [row["path"] for row in rows] == keys
    assert leftovers(tmp_path) == []


def test_npy_holds_one_output(tmp_path, photo_folder, expected, toy_embedder):
    _, _, arrays = expected
    embed_to_file([photo_folder], toy_embedder, tmp_path / "v.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), arrays["embedding"])
    assert json.loads((tmp_path / "v.npy.json").read_text())["amdim.version"] == "1"


def test_faiss_index_finds_each_row_by_its_number(tmp_path, photo_folder, expected, toy_embedder):
    _, _, arrays = expected
    embed_to_file([photo_folder], toy_embedder, tmp_path / "v.faiss")
    index = faiss.read_index(str(tmp_path / "v.faiss"))
    scores, rows = index.search(arrays["embedding"], 1)
    np.testing.assert_array_equal(rows[:, 0], np.arange(20))
    np.testing.assert_allclose(scores, 1, atol=1e-5)
    assert len(json.loads((tmp_path / "v.faiss.json").read_text())["rows"]) == 20
    assert leftovers(tmp_path) == []


def test_what_cannot_be_written_is_refused(tmp_path, photo_folder, expected):
    embedder = expected[0]
    with pytest.raises(SourceError, match="one output"):
        embed_to_file([photo_folder], embedder, tmp_path / "v.npy")
    with pytest.raises(SourceError, match="one output"):
        embed_to_file([photo_folder], embedder, tmp_path / "v.faiss")
    with pytest.raises(SourceError, match="must end in"):
        embed_to_file([photo_folder], embedder, tmp_path / "v.csv")
    with pytest.raises(SourceError, match="does not exist"):
        embed_to_file([photo_folder], embedder, tmp_path / "none" / "v.parquet")


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors", ".npy", ".faiss"])
def test_interrupted_run_leaves_the_old_file(tmp_path, photo_folder, toy_embedder, suffix):
    target = tmp_path / f"v{suffix}"
    target.write_bytes(b"old")

    def interrupt(done, failed):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_to_file([photo_folder], toy_embedder, target, progress=interrupt)
    assert target.read_bytes() == b"old"
    assert leftovers(tmp_path) == [f".v{suffix}.partial"]


def test_no_pictures_is_an_error_and_only_broken_ones_a_report(tmp_path, toy_embedder):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SourceError, match="no pictures"):
        embed_to_file([empty], toy_embedder, tmp_path / "v.parquet")
    (empty / "a.jpg").write_text("broken")
    report = embed_to_file([empty], toy_embedder, tmp_path / "v.parquet")
    assert (report.written, len(report.failed)) == (0, 1)
    assert not (tmp_path / "v.parquet").exists()


def test_run_that_was_cut_off_goes_on_and_gives_the_same_file(
    tmp_path, photo_folder, toy_embedder, toy_encoder, photo_bytes
):
    embed_to_file([photo_folder], toy_embedder, tmp_path / "whole.npy")

    def interrupt(done, failed):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_to_file([photo_folder], toy_embedder, tmp_path / "v.npy", progress=interrupt)
    done = toy_encoder.batches[-1]
    assert 0 < done < 20
    toy_encoder.batches.clear()
    report = embed_to_file([photo_folder], toy_embedder, tmp_path / "v.npy")
    assert (report.written, report.resumed, len(report.failed)) == (20, done, 2)
    assert sum(toy_encoder.batches) == 20 - done
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), np.load(tmp_path / "whole.npy"))
    assert leftovers(tmp_path) == []


def test_what_changed_since_the_cut_is_not_taken_over(
    tmp_path, photo_folder, toy_embedder, expected, photo_bytes
):
    def interrupt(done, failed):
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            embed_to_file([photo_folder], toy_embedder, tmp_path / "v.npy", progress=interrupt)
        (photo_folder / "class0" / "00.jpg").write_bytes(photo_bytes(77))
    (photo_folder / "class0" / "03.jpg").unlink()
    embed_to_file([photo_folder], toy_embedder, tmp_path / "v.npy")
    rows = json.loads((tmp_path / "v.npy.json").read_text())["rows"]
    assert len({row["path"] for row in rows}) == len(rows) == 19
    embed_to_file([photo_folder], toy_embedder, tmp_path / "anew.npy")
    order = {row["path"]: at for at, row in enumerate(rows)}
    anew = json.loads((tmp_path / "anew.npy.json").read_text())["rows"]
    at = [order[row["path"]] for row in anew]
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy")[at], np.load(tmp_path / "anew.npy"))
    with pytest.raises(KeyboardInterrupt):
        embed_to_file([photo_folder], toy_embedder, tmp_path / "v.parquet", progress=interrupt)
    report = embed_to_file([photo_folder], expected[0], tmp_path / "v.parquet")
    assert report.resumed == 0  # other outputs: nothing to go on from
