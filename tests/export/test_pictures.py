from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from amdim_clients.images import Preprocess
from amdim_export.errors import PicturesError
from amdim_export.pictures import HELD_OUT, sample_pictures

PREPROCESS = Preprocess(8, 8)


def _png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pack(tmp_path):
    rows = [{"bytes": _png(level), "path": f"{level}.png"} for level in range(40)]
    rows[3]["bytes"] = b"broken"
    split = ["train" if level < 30 else "val" for level in range(40)]
    pq.write_table(pa.table({"image": rows, "split": split}), tmp_path / "pack.parquet")
    return tmp_path / "pack.parquet"


def _levels(pixels) -> list[int]:
    return [int(level) for level in pixels[:, 0, 0, 0]]


def test_only_the_split_asked_for_without_what_is_broken(pack):
    assert _levels(sample_pictures([pack], PREPROCESS, limit=99)) == [
        level for level in range(30) if level != 3
    ]
    held_out = sample_pictures([pack], PREPROCESS, limit=99, splits=HELD_OUT)
    assert _levels(held_out) == list(range(30, 40))


def test_the_draw_is_fixed_and_over_all_sources(pack, tmp_path):
    folder = tmp_path / "folder"
    (folder / "class").mkdir(parents=True)
    for level in range(100, 130):
        (folder / "class" / f"{level}.png").write_bytes(_png(level))
    first = _levels(sample_pictures([pack, folder], PREPROCESS, limit=20))
    assert first == _levels(sample_pictures([pack, folder], PREPROCESS, limit=20))
    assert 19 <= len(first) <= 20
    assert min(first) < 30 and max(first) >= 100
    assert first == sorted(first)


def test_what_cannot_be_read_is_named(tmp_path, pack):
    with pytest.raises(PicturesError, match="neither a folder"):
        sample_pictures([tmp_path / "none.parquet"], PREPROCESS, limit=1)
    with pytest.raises(PicturesError, match="no picture of test rows"):
        sample_pictures([pack], PREPROCESS, limit=5, splits=("test",))
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": np.arange(3)}), other)
    with pytest.raises(PicturesError, match="no column named image"):
        sample_pictures([other], PREPROCESS, limit=1)
    other.write_bytes(b"PAR1 not parquet")
    with pytest.raises(PicturesError, match="cannot be read"):
        sample_pictures([other], PREPROCESS, limit=1)
