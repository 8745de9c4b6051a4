"""What the training package's tests share."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image


def encoded_picture(seed: int, side: int = 40, format_name: str = "PNG") -> bytes:
    """A picture of its own: blocks of colour around a class colour."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((side, side), Image.Resampling.BILINEAR).save(buffer, format_name)
    return buffer.getvalue()


@pytest.fixture
def write_pack(tmp_path: Path) -> Callable[..., Path]:
    """Writes a Parquet pack of `count` pictures, alternately of the given splits."""

    def write(name: str = "pack.parquet", count: int = 32, splits=("train",), extra=()) -> Path:
        rows = [
            {
                "image": {"bytes": encoded_picture(number), "path": f"{number}.png"},
                "label": number % 4,
                "split": splits[number % len(splits)],
            }
            for number in range(count)
        ]
        rows += [
            {"image": {"bytes": data, "path": f"extra{number}"}, "label": 0, "split": splits[0]}
            for number, data in enumerate(extra)
        ]
        path = tmp_path / name
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path

    return write


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Runs torch on one thread: on tensors this small, threads only wait for each other.

    It also makes sums in one order, so that two runs can be compared to the last bit.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
