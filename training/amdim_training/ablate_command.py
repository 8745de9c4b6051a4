"""The command that trains the paper's ablation: `amdim ablate`. Imports torch only once it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer


def ablate(
    config: Annotated[Path, typer.Argument(help="A TOML file, such as those of training/configs.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value, in TOML syntax, for all rows.")
    ] = None,
    *,
    steps: Annotated[int, typer.Option(min=1, help="Updates of each row.")],
    out: Annotated[Path, typer.Option(help="Folder of the rows' runs and of ablation.json.")],
    rows: Annotated[
        str, typer.Option(help="Joined by commas; all: every row; a wrong one lists them.")
    ] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Train the paper's ablation rows on an equal budget; run it again to go on."""
    import json
    import logging

    from rich.console import Console

    from amdim_training.ablate import RESULTS_FILE, ROWS
    from amdim_training.ablate import ablate as run
    from amdim_training.config import TrainConfig
    from amdim_training.progress import training_progress

    base = TrainConfig.load(config, overrides or [])
    names = list(ROWS) if rows == "all" else [part.strip() for part in rows.split(",")]
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    with training_progress() as report:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        results = run(
            base,
            names,
            steps=steps,
            out=out,
            report=report,
            on_row=lambda name: progress.print(f"row {name}: {ROWS[name].label}"),
        )
    if as_json:
        print(json.dumps(results, indent=2))
    else:
        _print_table(results, names)
        print(f"results: {out / RESULTS_FILE}")


def _print_table(results: Mapping[str, Any], names: list[str]) -> None:
    """Prints a line for each row; differences are to the first row, in points."""
    from rich.console import Console
    from rich.table import Table

    from amdim_training.ablate import ROWS

    base = results["base"]
    shape, batch = base["encoder"], base["optim"]["batch_size"]
    table = Table(
        title=f"{shape['image_size']} px, width {shape['width']}, D {shape['embed_dim']}, depth "
        f"{shape['depth']}; {results['steps']} updates of {batch} pairs a row"
    )
    table.add_column("row", no_wrap=True)
    for heading in ("kNN global %", "diff", "kNN embedding %", "diff", "minutes", "precision"):
        table.add_column(heading, justify="right", no_wrap=True)
    first = results["rows"][names[0]]
    for name in names:
        row = results["rows"][name]
        if "diverged" in row:
            table.add_row(ROWS[name].label, "diverged", *[""] * 5)
            continue
        cells = []
        for score in ("knn_global", "knn_embedding"):
            cells.append(f"{100 * row[score]:.2f}")
            has_difference = name != names[0] and score in first
            cells.append(f"{100 * (row[score] - first[score]):+.2f}" if has_difference else "")
        table.add_row(ROWS[name].label, *cells, f"{row['minutes']:.1f}", row["precision"])
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file or a pipe has no width to keep to
    console.print(table)
