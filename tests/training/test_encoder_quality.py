from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from amdim_training.checkpoint import save_checkpoint
from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.views import VIEWS


@pytest.fixture
def benchmark(repo_root: Path) -> Iterator[ModuleType]:
    sys.path.insert(0, str(repo_root / "benchmarks"))
    yield importlib.import_module("encoder_quality")
    sys.path.remove(str(repo_root / "benchmarks"))


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

    baselines = ["--rows", "random,pixels,hog", "--protocol", "knn,retrieval"]
    assert benchmark.main([*common, *baselines]) == 0
    assert benchmark.main([*common, "--rows", "model", "--checkpoint", str(checkpoint)]) == 0

    rows = json.loads(out.read_text())["rows"]
    names = {key.partition(" | ")[0] for key in rows}
    assert names == {
        "random weights",
        "pixels 16x16",
        "HOG",
        str(checkpoint),
    }
    assert {key for key in rows if key.startswith("HOG")} == {
        "HOG | raw",
        "HOG | recipe",
        "HOG | whitened",
    }
    for key, scores in rows.items():
        probed = key.startswith(str(checkpoint)) and not key.endswith(" | mean7")
        expected = {name for name in benchmark.COLUMNS if probed or name not in ("linear", "MLP")}
        assert set(benchmark._numbers(scores)) == expected, key
    assert rows["HOG | whitened"]["tasks"]["tiny val->train"]["gallery"] == 42
