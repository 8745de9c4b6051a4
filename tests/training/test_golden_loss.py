from __future__ import annotations

from pathlib import Path

import pytest

from amdim_training.golden import LOSS_CASES, compare_loss


@pytest.mark.parametrize("case", LOSS_CASES)
def test_terms_gradients_and_intermediates_are_the_recorded_ones(
    shared_dir: Path, case: str
) -> None:
    comparisons = list(compare_loss(shared_dir / "amdim" / "golden", case))

    worst = max(comparisons, key=lambda comparison: comparison.share)
    print(f"worst: {worst.quantity} {worst.error:.2e}, allowed {worst.tolerance}")
    assert [comparison for comparison in comparisons if not comparison.holds] == []
    assert {comparison.quantity for comparison in comparisons} == {
        "loss_1t5",
        "loss_1t7",
        "loss_5t5",
        "lgt_reg",
        "loss_total",
        "grad_r1_x1",
        "grad_r5_x1",
        "grad_r7_x2",
        "dir_1t7_x1x2_logsoftmax",
        "dir_1t7_x1x2_pos_clipped",
        "dir_1t7_x1x2_reg",
    }
