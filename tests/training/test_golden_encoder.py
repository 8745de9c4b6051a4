from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from amdim_training.golden import ENCODER_CASES, LEGACY_CASE, Comparison, compare_encoder


@pytest.fixture
def golden(shared_dir: Path) -> Path:
    return shared_dir / "amdim" / "golden"


def assert_all_hold(comparisons: Iterable[Comparison]) -> set[str]:
    found = list(comparisons)
    worst = max(found, key=lambda comparison: comparison.share)
    # shown by `pytest -rP`
    print(f"worst of {len(found)}: {worst.quantity} {worst.error:.2e}, allowed {worst.tolerance}")
    assert [comparison for comparison in found if not comparison.holds] == []
    return {comparison.quantity for comparison in found}


@pytest.mark.parametrize("case", ENCODER_CASES)
def test_encoder_gives_the_recorded_features_and_activations(golden: Path, case: str) -> None:
    quantities = assert_all_hold(compare_encoder(golden, case))

    expected = {"f1", "f5", "f7", "act1", "act5", "act7", "act_shapes", "act_mean", "act_absmean"}
    assert quantities >= expected | {"logits_mlp", "logits_lin"}


@pytest.mark.parametrize("case", ["enc32_nobn", "enc32_bn"])
def test_train_mode_gives_the_recorded_features_and_running_statistics(
    golden: Path, case: str
) -> None:
    quantities = assert_all_hold(
        comparison
        for comparison in compare_encoder(golden, case)
        if comparison.quantity.startswith(("train", "after_train"))
    )

    assert quantities >= {"train_f1", "train_f5", "train_f7", "after_train layers.8.running_mean"}
    has_trunk_norm = "after_train layers.4.running_var" in quantities
    assert has_trunk_norm == (case == "enc32_bn")


def test_half_precision_cuda_legacy_file_gives_the_recorded_features(golden: Path) -> None:
    assert assert_all_hold(compare_encoder(golden, LEGACY_CASE)) == {"f1", "f5", "f7"}
