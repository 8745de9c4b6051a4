from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture
def photos(photo_folder):
    return photo_folder / "class0"


def run_example(name, *arguments, cwd, repo_root):
    script = repo_root / "clients" / "examples" / name
    program = [sys.executable, "-W", "error"] if name.endswith(".py") else ["sh"]
    command = [*program, str(script), *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def at(served, name, *arguments):
    """A program that calls an example's main with the address of the gateway under test."""
    call = f"example.main({', '.join(repr(a) for a in arguments)}, url={served!r})"
    if name == "embed_async":
        call = f"import asyncio; asyncio.run({call})"
    return f"import {name} as example; {call}"


def run_main(served, name, *arguments, repo_root):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", at(served, name, *arguments)],
        capture_output=True,
        text=True,
        cwd=repo_root / "clients" / "examples",
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_embed_sync(served, photos, repo_root):
    paths = [str(path) for path in sorted(photos.iterdir())] + [str(photos.parent / "broken.jpg")]
    out = run_main(served, "embed_sync", paths, repo_root=repo_root)
    assert "broken.jpg: The bytes are not an image" in out
    assert f"1.0000  {paths[0]}" in out


def test_embed_async(served, photos, repo_root):
    out = run_main(served, "embed_async", str(photos), repo_root=repo_root)
    assert "7 done" in out
    assert "local7: (7, 7, 7, " in out


def test_search_lancedb(photos, repository, tmp_path, repo_root):
    shutil.copytree(repository, tmp_path / "model_repository")
    query = photos / "03.jpg"
    out = run_example("search_lancedb.py", photos, query, cwd=tmp_path, repo_root=repo_root)
    assert out.startswith("7 added, 0 unchanged, 0 removed\n")
    assert f"1.0000  {query}" in out


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(served, photos, tmp_path, repo_root):
    out = run_example("curl.sh", photos / "03.jpg", served, cwd=tmp_path, repo_root=repo_root)
    raw, form, in_json = (json.loads(line) for line in out.splitlines())
    vector = raw["data"][0]["embedding"]
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert [len(entry["local7"]) for entry in form["data"]] == [7, 7]
    assert in_json["data"][0]["id"] == "a"
    assert in_json["data"][0]["embedding"]["shape"] == [len(vector)]


def test_recall_of_index(repository, photo_bytes, tmp_path, repo_root):
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
    arguments = ("pack.parquet", "--split", "test", "--repository", repository)
    out = run_example("recall_of_index.py", *arguments, cwd=tmp_path, repo_root=repo_root)
    assert out == "recall@1 1.000 over 12 pictures of pack.parquet\n"
