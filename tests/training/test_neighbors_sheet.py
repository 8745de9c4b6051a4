from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def sheet(repo_root: Path) -> Iterator[ModuleType]:
    sys.path.insert(0, str(repo_root / "benchmarks"))
    yield importlib.import_module("neighbors_sheet")
    sys.path.remove(str(repo_root / "benchmarks"))


def test_nobody_answers_itself_and_the_nearest_come_first(sheet: ModuleType) -> None:
    angles = np.array([0.0, 0.1, 0.5, 2.0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert sheet.ranking(vectors).tolist() == [[1, 2, 3], [0, 2, 3], [1, 0, 3], [2, 1, 0]]


def test_average_precision_is_the_mean_of_precisions_at_the_right_ones(sheet: ModuleType) -> None:
    hits = np.array([[True, False, True], [False, True, False], [False, False, False]])
    assert sheet.average_precisions(hits) == pytest.approx([(1 + 2 / 3) / 2, 0.5, 0.0])


def test_a_sheet_stays_within_its_bytes(sheet: ModuleType) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 840, 3), dtype=np.uint8)
    data = sheet.as_jpeg(Image.fromarray(noise))
    assert data[:2] == b"\xff\xd8"
    assert len(data) <= sheet.MOST_BYTES
    with pytest.raises(SystemExit, match="above"):
        sheet.as_jpeg(Image.fromarray(np.tile(noise, (4, 1, 1))))
