import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from amdim_training.checkpoint import load_checkpoint
from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder, EncoderFeatures

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def contrast() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("contrast")
    sys.path.remove(str(BENCHMARKS))


def features(f1: torch.Tensor) -> EncoderFeatures:
    return EncoderFeatures(f1, f1.new_zeros(len(f1), 8, 5, 5), f1.new_zeros(len(f1), 8, 7, 7))


def test_simclr_is_the_papers_sum(contrast: ModuleType) -> None:
    torch.manual_seed(0)
    loss = contrast.SimCLR(8, temperature=0.5)
    a, b = torch.randn(2, 3, 8)
    with torch.no_grad():
        got = loss(features(a), features(b), ()).item()
        z = [row / row.norm() for row in loss.head(torch.cat([a, b]))]
    total = 0.0
    for i in range(6):
        scores = [math.exp(float(z[i] @ z[j]) / 0.5) for j in range(6)]
        total -= math.log(scores[(i + 3) % 6] / (sum(scores) - scores[i]))
    assert got == pytest.approx(total / 6, rel=1e-5)


def test_mocos_queue_forgets_the_oldest_and_its_encoder_follows(contrast: ModuleType) -> None:
    torch.manual_seed(0)
    encoder = AmdimEncoder(EncoderConfig(32, 4, 16, 1))
    loss = contrast.MoCo(encoder, queue=12, momentum=0.9)
    before = loss.queue.clone()
    views = tuple(torch.randn(2, 4, 3, 32, 32))
    total = loss(encoder(views[0]), encoder(views[1]), loss.targets(views))
    total.backward()
    torch.testing.assert_close(loss.queue[8:], before[:4])
    assert all(p.grad is None for p in loss.slow.parameters())
    weight = next(encoder.parameters())
    assert weight.grad is not None
    slow = next(loss.slow.parameters())
    old = slow.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    loss.after_update(encoder)
    torch.testing.assert_close(slow, old + 0.1)


@pytest.mark.parametrize("objective", ["amdim", "simclr", "moco"])
def test_a_run_spends_its_time_and_leaves_losses_a_checkpoint_and_its_score(
    objective: str,
    contrast: ModuleType,
    tmp_path: Path,
    write_pack: Callable[..., Path],
) -> None:
    write_pack("tiny_imagenet_200.parquet", 30, ("train", "val", "train"))
    write_pack("tiny_imagenet_200_rest_of_train.parquet", 8)
    objectives = importlib.import_module("objectives")
    out = tmp_path / "run"
    options = ["--objective", objective, "--out", str(out), "--data", str(tmp_path)]
    options += ["--cpu-minutes", "0.02", "--batch", "4", "--width", "4", "--dim", "32"]

    assert objectives.main([*options, "--precision", "fp32"]) == 0

    result = json.loads((out / "result.json").read_text())
    assert result["objective"] == objective
    assert result["command"].startswith(f"python benchmarks/objectives.py --objective {objective}")
    assert result["pairs"] == 4 * result["step"] > 0
    assert set(result["knn"]) == {"global", "embedding"}
    assert load_checkpoint(out / f"step-{result['step']:08d}").meta["objective"] == objective
