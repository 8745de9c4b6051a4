from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture
def photos(photo_folder):
    return photo_folder / "class0"


@pytest.fixture
def example(repo_root, monkeypatch, tmp_path):
    """Loads an example by its name; it runs in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def load(name):
        path = repo_root / "clients" / "examples" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"example_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_embed_sync(example, served, photos, capsys):
    paths = [str(path) for path in sorted(photos.iterdir())] + [str(photos.parent / "broken.jpg")]
    example("embed_sync").main(paths, served)
    out = capsys.readouterr().out
    assert "broken.jpg: The bytes are not an image" in out
    assert f"1.0000  {paths[0]}" in out


def test_embed_async(example, served, photos, capsys):
    asyncio.run(example("embed_async").main(str(photos), served))
    out = capsys.readouterr().out
    assert "7 done" in out
    assert "local7: (7, 7, 7, " in out


@pytest.fixture
def alike(photos):
    """Three pictures, and what the examples print of them: their cosines with the first."""

    def check(out, paths, url):
        files = [("images", Path(path).read_bytes()) for path in paths]
        answer = httpx.post(f"{url}/embed", files=files).raise_for_status().json()
        vectors = np.array([entry["embedding"] for entry in answer["data"]])
        lines = [line.split("  ", 1) for line in out.splitlines()]
        assert [path for _, path in lines] == paths
        printed = [float(cosine) for cosine, _ in lines]
        np.testing.assert_allclose(printed, vectors @ vectors[0], atol=2e-4)

    return [str(path) for path in sorted(photos.iterdir())[:3]], check


@pytest.mark.parametrize("name", ["triton_tensors", "triton_bytes", "openai_client"])
def test_protocols_of_others(example, gateway_process, alike, capsys, name):
    url, grpc_address = gateway_process
    paths, check = alike
    example(name).main(paths, grpc_address if name.startswith("triton") else url)
    check(capsys.readouterr().out, paths, url)


def test_javascript(served, alike, repo_root):
    node = shutil.which("node")
    if node is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("needs Node")
    paths, check = alike
    command = [node, str(repo_root / "clients" / "examples" / "embed.mjs"), *paths]
    environment = {**os.environ, "AMDIM_URL": served}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    check(done.stdout, paths, served)


@pytest.mark.parametrize("name", ["search_faiss", "search_qdrant"])
def test_stores_of_others(example, served, photos, capsys, name):
    query = photos / "03.jpg"
    example(name).main(str(photos), str(query), served)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[0] == f"1.0000  {query}"
    scores = [float(line.split()[0]) for line in lines]
    assert scores == sorted(scores, reverse=True)


def test_search_lancedb(example, photos, repository, tmp_path, capsys):
    shutil.copytree(repository, tmp_path / "model_repository")
    query = photos / "03.jpg"
    example("search_lancedb").main(str(photos), str(query))
    out = capsys.readouterr().out
    assert out.startswith("7 added, 0 unchanged, 0 removed\n")
    assert f"1.0000  {query}" in out


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(served, photos, repo_root):
    script = repo_root / "clients" / "examples" / "curl.sh"
    command = ["sh", str(script), str(photos / "03.jpg"), served]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    raw, form, in_json = (json.loads(line) for line in out.splitlines())
    vector = raw["data"][0]["embedding"]
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert [len(entry["local7"]) for entry in form["data"]] == [7, 7]
    assert in_json["data"][0]["id"] == "a"
    assert in_json["data"][0]["embedding"]["shape"] == [len(vector)]


def test_recall_of_index(example, repository, photo_bytes, tmp_path, capsys):
    sizes = [(120, 90), (100, 75), (160, 120)]
    rows = [
        {
            "image": {"bytes": photo_bytes(label, size=size), "path": f"{label}.jpg"},
            "label": label,
            "split": "test",
        }
        for label in range(4)
        for size in sizes
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pack.parquet")
    example("recall_of_index").main("pack.parquet", "test", "pack.lancedb", str(repository))
    assert capsys.readouterr().out == "recall@1 1.000 over 12 pictures of pack.parquet\n"
