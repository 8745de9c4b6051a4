"""The commands end to end on the shipped model: in process, and through a real gateway."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from amdim_clients.embedders import LocalEmbedder, open_local_encoder
from amdim_clients.images import decode_image
from amdim_clients.lance_index import open_index


@pytest.fixture
def indexed(photo_folder, repository, tmp_path, run_amdim):
    db = tmp_path / "db"
    code, out, err = run_amdim("index", photo_folder, "--db", db, "--repository", repository)
    assert code == 3
    assert "20 added, 0 unchanged, 0 removed, 2 skipped" in out
    assert "broken.jpg: The bytes are not an image" in err
    return db


def search(run_amdim, db, *arguments):
    code, out, err = run_amdim("search", "--db", db, "--json", *arguments)
    assert code == 0, err
    return json.loads(out)


def test_index_then_search_finds_the_picture_itself(
    indexed, photo_folder, repository, tmp_path, run_amdim
):
    query = photo_folder / "class2" / "05.jpg"
    arguments = (query, "--repository", repository, "-k", 4, "--sheet", tmp_path / "sheet.png")
    found = search(run_amdim, indexed, *arguments)
    first, *others = found["neighbors"]
    assert first["path"] == str(query)
    assert first["score"] == pytest.approx(1, abs=1e-5)
    assert first["distance"] == pytest.approx(0, abs=1e-5)
    scores = [neighbor["score"] for neighbor in found["neighbors"]]
    assert scores == sorted(scores, reverse=True)
    assert [neighbor["rank"] for neighbor in others] == [2, 3, 4]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 176
    code, out, _ = run_amdim("search", "--db", indexed, query, "--repository", repository)
    assert code == 0
    assert out.splitlines()[0].split() == ["1", "1.0000", str(query)]


def test_failures_are_written_and_the_file_goes_when_none_are_left(
    indexed, photo_folder, repository, run_amdim
):
    listed = indexed.with_name("db.failures.jsonl")
    entries = [json.loads(line) for line in listed.read_text().splitlines()]
    assert {entry["code"] for entry in entries} == {"unsupported_media_type", "image_truncated"}
    for name in ("broken.jpg", "cut.png"):
        (photo_folder / name).unlink()
    code, out, err = run_amdim("index", photo_folder, "--db", indexed, "--repository", repository)
    assert (code, err) == (0, "")
    assert "0 added, 20 unchanged, 0 removed, 0 skipped" in out
    assert not listed.exists()


def test_index_of_another_encoder_is_refused(
    indexed, photo_folder, repository, tmp_path, run_amdim
):
    space = open_index(indexed).space
    other = tmp_path / "other"
    shutil.copytree(repository, other)
    for path in [other / "amdim" / "config.pbtxt", *other.glob("amdim/*/certificate.json")]:
        path.write_text(path.read_text().replace(space.encoder_digest, "sha256:" + "0" * 64))
    query = tmp_path / "query.jpg"  # one of the index itself would need no encoder
    shutil.copy(photo_folder / "class0" / "00.jpg", query)
    query.write_bytes(query.read_bytes() + b"!")
    for command in (("index", photo_folder), ("search", query)):
        code, _, err = run_amdim(*command, "--db", indexed, "--repository", other)
        assert code == 1
        assert err.startswith("amdim: the vectors are of another encoder")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("search", "--db", "nowhere", "photos/broken.jpg"), "there is no index at nowhere"),
        (("search", "--db", "db", "gone.jpg"), "there is no index at db: make one with"),
        (("index", "gone", "--db", "db"), "gone does not exist"),
        (("embed", "photos", "-o", "v.csv"), "v.csv must end in"),
        (("embed", "photos", "-o", "v.npy", "--outputs", "local9"), "no output local9"),
        (("embed", "photos", "-o", "v.npy", "--url", "http://127.0.0.1:9"), "no answer"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    photo_folder, repository, tmp_path, monkeypatch, run_amdim, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    place = () if "--url" in arguments else ("--repository", repository)
    code, out, err = run_amdim(*arguments, *place)
    assert (code, out) == (1, "")
    assert err.startswith("amdim: ")
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_query_that_is_no_picture_is_told(indexed, photo_folder, repository, run_amdim):
    code, _, err = run_amdim("search", "--db", indexed, "gone.jpg", "--repository", repository)
    assert (code, err) == (1, "amdim: cannot read gone.jpg\n")
    broken = photo_folder / "broken.jpg"
    code, _, err = run_amdim("search", "--db", indexed, broken, "--repository", repository)
    assert code == 1
    assert err == "amdim: The bytes are not an image in an accepted format.\n"


def test_embed_gives_the_engines_vectors(photo_folder, repository, tmp_path, run_amdim):
    target = tmp_path / "v.parquet"
    options = ("-o", target, "--outputs", "embedding,global", "--raw", "--repository", repository)
    code, out, _ = run_amdim("embed", photo_folder, *options)
    assert code == 3
    assert "20 pictures: embedding, global" in out
    table = pq.read_table(target)
    encoder = open_local_encoder(repository)
    pixels = [
        decode_image(Path(path).read_bytes(), encoder.spec.preprocess).pixels
        for path in table["path"].to_pylist()
    ]
    expected = encoder.encode(np.stack(pixels), ["embedding", "global"])
    encoder.close()
    for name, array in expected.items():
        found = table[name].combine_chunks().flatten().to_numpy().reshape(array.shape)
        np.testing.assert_allclose(found, array, atol=1e-5 * np.abs(array).max())


def test_only_broken_pictures_write_nothing(photo_folder, repository, tmp_path, run_amdim):
    code, _, err = run_amdim(
        "embed", photo_folder / "broken.jpg", "-o", tmp_path / "v.npy", "--repository", repository
    )
    assert code == 1
    assert "no picture could be embedded" in err
    assert not (tmp_path / "v.npy").exists()


def test_gateway_and_engine_agree(indexed, photo_folder, served, repository, tmp_path, run_amdim):
    for name, place in (("here", ("--repository", repository)), ("there", ("--url", served))):
        assert run_amdim("embed", photo_folder, "-o", tmp_path / f"{name}.npy", *place)[0] == 3
    here, there = np.load(tmp_path / "here.npy"), np.load(tmp_path / "there.npy")
    np.testing.assert_allclose(here, there, atol=1e-5)
    query = photo_folder / "class0" / "03.jpg"
    found = search(run_amdim, indexed, query, "--url", served)
    assert found["neighbors"][0]["path"] == str(query)
    code, out, _ = run_amdim("index", photo_folder, "--db", indexed, "--url", served)
    assert (code, "0 added, 20 unchanged" in out) == (3, True)


def test_packs_are_indexed_and_their_pictures_found_again(
    parquet_pack, repository, tmp_path, run_amdim
):
    place = ("--db", tmp_path / "db", "--repository", repository)
    assert run_amdim("index", parquet_pack, *place)[0] == 3
    key = f"{parquet_pack}#42:c/42.jpg"
    found = search(run_amdim, tmp_path / "db", key, "--repository", repository)
    assert found["neighbors"][0]["path"] == key


def test_local_embedder_is_the_real_engine(repository):
    embedder = LocalEmbedder(open_local_encoder(repository))
    assert embedder.origin.model == "amdim"
    embedder.close()
