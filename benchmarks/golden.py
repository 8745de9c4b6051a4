"""Prints every comparison with the original program's recorded outputs, worst error first.

    python benchmarks/golden.py [--golden ../shared/amdim/golden] [--all]

Without `--all`, the worst quantity of each recording. Exits 1 when a tolerance is broken.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table

from amdim_training.golden import Comparison, compare_all

DEFAULT_GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "amdim" / "golden"


def worst_of_each_case(comparisons: list[Comparison]) -> list[tuple[Comparison, int]]:
    """Returns each recording's comparison nearest to its tolerance, and how many it has."""
    groups = itertools.groupby(comparisons, key=lambda comparison: comparison.case)
    cases = [list(group) for _, group in groups]
    return [(max(case, key=lambda c: (c.share, c.error)), len(case)) for case in cases]


def main() -> int:
    """Runs the comparisons and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=Path, default=DEFAULT_GOLDEN)
    parser.add_argument("--all", action="store_true", help="every quantity, not only the worst")
    arguments = parser.parse_args()

    comparisons = list(compare_all(arguments.golden))
    rows = [(c, 1) for c in comparisons] if arguments.all else worst_of_each_case(comparisons)
    table = Table(title=f"{len(comparisons)} comparisons, torch {torch.__version__}, CPU, fp32")
    for column in ("recording", "of", "worst quantity", "error", "largest", "allowed", "share"):
        justify: Literal["left", "right"] = "left" if "quantity" in column else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    for comparison, count in rows:
        table.add_row(
            comparison.case,
            str(count),
            comparison.quantity,
            f"{comparison.error:.2e}",
            f"{comparison.largest:.3g}",
            comparison.tolerance,
            f"{comparison.share:.4f}",
        )
    console = Console(width=None if sys.stdout.isatty() else 124, highlight=False)
    console.print(table)
    broken = [comparison for comparison in comparisons if not comparison.holds]
    console.print(f"{len(broken)} of {len(comparisons)} outside their tolerance")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
