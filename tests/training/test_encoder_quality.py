from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from amdim_training.checkpoint import save_checkpoint
from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.views import VIEWS


@pytest.fixture
def benchmark(repo_root: Path) -> ModuleType:
    path = repo_root / "benchmarks" / "encoder_quality.py"
    spec = importlib.util.spec_from_file_location("encoder_quality", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_gets_every_number_and_later_rows_join_earlier_ones(
    tmp_path: Path, write_pack: Callable[..., Path], benchmark: ModuleType
) -> None:
    write_pack("tiny_imagenet_200.parquet", 51, ("train", "val", "train"))
    write_pack("tiny_imagenet_200_rest_of_train.parquet", 8)
    write_pack("caltech101_s144.parquet", 24, ("train", "test", "train"))
    write_pack("grocery_retrieval.parquet", 40, ("natural", "iconic", "natural"))
    checkpoint = tmp_path / "checkpoint"
    encoder = AmdimEncoder(EncoderConfig(32, 4, 16, 1))
    save_checkpoint(checkpoint, encoder, VIEWS["cifar"].normalization)
    out = tmp_path / "results.json"
    common = ["--data", str(tmp_path), "--cache", str(tmp_path / "cache"), "--out", str(out)]
    common += ["--size", "32", "--width", "4", "--embed-dim", "16"]

    assert benchmark.main([*common, "--rows", "random,pixels,hog"]) == 0
    assert benchmark.main([*common, "--rows", "model", "--checkpoint", str(checkpoint)]) == 0

    rows = json.loads(out.read_text())["rows"]
    names = {key.partition(" | ")[0] for key in rows}
    assert names == {
        "random weights",
        "pixels 16x16",
        "HOG",
        str(checkpoint),
    }
    assert {key for key in rows if key.startswith("HOG")} == {"HOG | raw", "HOG | whitened"}
    for key, scores in rows.items():
        assert len(benchmark._numbers(scores)) == len(benchmark.COLUMNS), key
    assert rows["HOG | whitened"]["tasks"]["tiny val->train"]["gallery"] == 42
