"""A writer of an index is killed at random points; the index opens and is brought up to date."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from amdim_clients.errors import IndexStoreError
from amdim_clients.lance_index import has_index, open_index
from amdim_clients.window_rows import PictureWindows, WindowPlan

PICTURES = 24

# Adds pictures with windows one transaction each, changes and removes some; as `amdim index` does.
WRITER = """
import sys
import numpy as np
from amdim_clients.lance_index import open_or_create_index
from amdim_clients.pipeline import Record
from amdim_clients.space import VectorSpace
from amdim_clients.window_rows import PictureWindows, WindowPlan

place, turn = sys.argv[1], int(sys.argv[2])
digest = "sha256:" + "a" * 64
space = VectorSpace("amdim_windows", "window_mean", 8, True, digest, digest)
index = open_or_create_index(place, space, WindowPlan((1.0,), 8))
index.repair()
known = {row.key: row.content_hash for row in index.rows("/")}
print("open", flush=True)
for n in range(%d):
    content = f"{turn if n %% 3 == 0 else 0:032x}{n:032x}"
    if known.get(f"/p/{n}") == content:
        if n %% 10 == 9:  # the writer before was killed between adding and removing it
            index.remove([f"/p/{n}"])
        continue
    rng = np.random.default_rng([turn if n %% 3 == 0 else 0, n])
    vectors = rng.standard_normal((1 + n %% 4, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    boxes = np.tile(np.float32([0, 0, 1, 1]), (len(vectors), 1))
    windows = PictureWindows(np.ones(len(vectors), np.float32), boxes, vectors)
    index.add([Record(f"/p/{n}", content)], vectors.astype(np.float32).mean(0)[None], space=space,
              artifact_digest=digest, windows=[windows])
    if n %% 10 == 9:
        index.remove([f"/p/{n}"])
index.tune()
print("done", flush=True)
"""


def write(place, turn, **options):
    command = [sys.executable, "-c", WRITER % PICTURES, str(place), str(turn)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def check(place):
    """Every picture that counts has exactly its windows, and nothing else is ever shown."""
    index = open_index(place)
    rows = {row.key: row for row in index.rows("/")}
    held = index.windows(rows)
    query = np.ones((1, 8), np.float32)
    (found,) = index.search_windows(query, 10_000, space=index.space)
    (pictures,) = index.search(query, 10_000, space=index.space)
    assert set(found.keys) <= set(rows) == set(pictures.keys)
    for key, row in rows.items():
        windows = held[key]
        assert isinstance(windows, PictureWindows)
        assert len(windows) == row.windows == found.keys.count(key)
        mean = windows.vectors.astype(np.float32).mean(0)
        np.testing.assert_allclose(index.vectors([key])[key], mean, atol=1e-3)
    return index


@pytest.mark.slow
def test_killed_writer_leaves_an_index_that_opens_and_can_be_brought_up_to_date(tmp_path):
    place = tmp_path / "db"
    rng = random.Random(7)
    killed = opened = 0
    for turn in range(11):
        writer = write(place, turn)
        if turn >= 4:  # the first are killed while they start and create
            assert writer.stdout.readline() == "open\n"
            time.sleep(rng.uniform(0, 0.6))
        else:
            time.sleep(0.4 + 0.15 * turn)
        killed += writer.poll() is None
        writer.send_signal(signal.SIGKILL)
        writer.communicate(timeout=30)
        if has_index(place):
            opened += 1
            check(place)
    assert killed >= 7
    assert opened >= 6
    last = write(place, 99)
    assert last.communicate(timeout=60)[0] == "open\ndone\n"
    index = check(place)
    assert index.is_whole
    assert index.plan == WindowPlan((1.0,), 8)
    contents = {row.key: row.content_hash for row in index.rows("/")}
    assert contents == {
        f"/p/{n}": f"{99 if n % 3 == 0 else 0:032x}{n:032x}" for n in range(PICTURES) if n % 10 < 9
    }


def test_full_disk_is_told_and_leaves_what_was_there(tmp_path):
    place = tmp_path / "db"
    assert write(place, 0).communicate(timeout=60)[0] == "open\ndone\n"
    before = len(check(place))

    def nothing_fits():
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))

    writer = write(place, 1, preexec_fn=nothing_fits, stderr=subprocess.PIPE)
    _, errors = writer.communicate(timeout=60)
    assert writer.returncode == 1
    assert errors.splitlines()[-1].startswith("amdim_clients.errors.IndexStoreError: the disk of")
    assert len(check(place)) == before


def test_damaged_files_are_told(tmp_path):
    place = tmp_path / "db"
    assert write(place, 0).communicate(timeout=60)[0] == "open\ndone\n"
    for file in place.glob("images.lance/data/*"):
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(IndexStoreError, match="is damaged: delete it and run amdim index again"):
        open_index(place).search(np.ones((1, 8), np.float32), 3, space=open_index(place).space)
    for file in place.glob("images.lance/_versions/*.manifest"):
        file.write_bytes(b"no manifest")
    with pytest.raises(IndexStoreError, match="is damaged"):
        open_index(place)
