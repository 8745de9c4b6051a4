from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def benchmark(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    yield importlib.import_module("training")
    for name in ("training", "plain_step"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["32:4/16/2", "64:4/32/1"])
def test_the_plain_step_is_the_same_method(benchmark: ModuleType, name: str) -> None:
    shape = benchmark.Shape.parse(name, 4)
    assert benchmark.compare(shape) < 1e-4
    assert benchmark.flop_per_pair(shape) > 1e5


@pytest.mark.slow
def test_all_sides_are_timed_and_written(benchmark: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "training.json"
    options = ["--shapes", "32:4/16/1", "--batch", "4", "--rounds", "2", "--threads", "1"]
    assert benchmark.main([*options, "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    row = results["shapes"]["32:4/16/1"]
    assert set(row["sides"]) == {"plain", "project"} and row["ratio"]["plain"] == 1.0
    assert all(len(side["seconds"]) == 2 for side in row["sides"].values())
    assert results["machine"]["cpu"]
