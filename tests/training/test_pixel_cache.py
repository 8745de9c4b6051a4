import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from amdim_clients.images import Preprocess
from amdim_training.data import load_images
from amdim_training.errors import DataError
from amdim_training.pixel_cache import PIXELS_FILE, cache_key, write_cache

SIDE = Preprocess(image_size=32, resize=32)


def folders(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


def test_a_cache_holds_what_memory_would(write_pack, tmp_path: Path) -> None:
    pack = write_pack(count=9, extra=[b"no picture"])
    plain = load_images([pack], SIDE)
    cached = load_images([pack], SIDE, cache=tmp_path / "cache")
    assert isinstance(cached.pixels, np.memmap)
    assert np.array_equal(cached.pixels, plain.pixels)
    assert cached.labels.tolist() == plain.labels.tolist()
    assert cached.skipped == plain.skipped == ("extra0",)


def test_a_cache_is_decoded_into_once(write_pack, tmp_path: Path, monkeypatch) -> None:
    pack, cache = write_pack(count=5), tmp_path / "cache"
    first = load_images([pack], SIDE, cache=cache)
    monkeypatch.setattr("amdim_training.data.decode_image", None)  # whoever decodes, fails
    again = load_images([pack], SIDE, cache=cache)
    assert np.array_equal(first.pixels, again.pixels)
    assert len(folders(cache)) == 1


def test_other_pictures_splits_or_sizes_are_another_cache(write_pack, tmp_path: Path) -> None:
    pack = write_pack(count=6, splits=("train", "val"))
    keys = [
        cache_key([pack], SIDE, ("train",)),
        cache_key([pack], SIDE, ("val",)),
        cache_key([pack], Preprocess(image_size=16, resize=18), ("train",)),
        cache_key([pack, pack], SIDE, ("train",)),
    ]
    moved = pack.rename(tmp_path / "moved.parquet")
    assert cache_key([moved], SIDE, ("train",)) == keys[0]  # the content counts
    pq.write_table(pq.read_table(moved).slice(0, 4), moved)
    keys.append(cache_key([moved], SIDE, ("train",)))
    assert len(set(keys)) == len(keys)


def test_a_folder_that_changes_is_decoded_anew(write_pack, tmp_path: Path) -> None:
    folder, cache = tmp_path / "set", tmp_path / "cache"
    rows = pq.read_table(write_pack(count=3)).to_pylist()
    folder.mkdir()
    for number, row in enumerate(rows[:2]):
        (folder / f"{number}.png").write_bytes(row["image"]["bytes"])
    assert len(load_images([folder], SIDE, cache=cache)) == 2
    (folder / "2.png").write_bytes(rows[2]["image"]["bytes"])
    assert len(load_images([folder], SIDE, cache=cache)) == 3


def test_a_cut_off_cache_is_refused(write_pack, tmp_path: Path) -> None:
    pack, cache = write_pack(count=5), tmp_path / "cache"
    load_images([pack], SIDE, cache=cache)
    pixels = cache / folders(cache)[0] / PIXELS_FILE
    pixels.write_bytes(pixels.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"no whole cache .*delete it"):
        load_images([pack], SIDE, cache=cache)


def test_decoding_that_fails_leaves_nothing_behind(tmp_path: Path, write_pack) -> None:
    def rows():
        yield "a.png", np.zeros((4, 4, 3), np.uint8), 0
        raise OSError("No space left on device")

    with pytest.raises(DataError, match="could not be written: No space left"):
        write_cache(tmp_path / "cache" / "0", rows(), 4)
    broken = write_pack(count=0, extra=[b"no picture"])
    with pytest.raises(DataError, match="no picture could be read"):
        load_images([broken], SIDE, cache=tmp_path / "cache")
    assert folders(tmp_path / "cache") == []


CHILD = """
import re, sys
from pathlib import Path
from amdim_clients.images import Preprocess
from amdim_training.data import load_images

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

cache = Path(sys.argv[2]) if sys.argv[2] else None
before = peak()
load_images([sys.argv[1]], Preprocess(image_size=160, resize=160), cache=cache)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's peak memory")
def test_decoding_into_a_cache_takes_bounded_memory(write_pack, tmp_path: Path) -> None:
    count, bytes_each = 1200, 160 * 160 * 3
    pack = write_pack(count=count)
    grown = {}
    for cache in ("", str(tmp_path / "cache")):
        command = [sys.executable, "-c", CHILD, str(pack), cache]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        grown[bool(cache)] = int(done.stdout)
    # all of it twice over in memory; into a cache, a chunk of it
    assert grown[False] > count * bytes_each
    assert grown[True] < 0.5 * count * bytes_each
