"""The paper's ablation as configurations of one program: each row changes a few keys.

Every row trains from scratch on the same images, for the same number of updates, with the same
seed; only what its name says differs. Knows no encoder: `train` makes the rows.

Source: SPEC.md 7 (c), the rows; no numbers of the paper's were to be had.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from amdim_training.config import TrainConfig
from amdim_training.errors import ConfigError, DataError, DivergedError, StoppedError
from amdim_training.journal import Report
from amdim_training.train import train

RESULTS_FILE = "ablation.json"
MIXTURES = 4
_LOCAL_DIM = {"tasks": ["1to7"], "score_clip": 0.0, "penalty_weight": 0.0}
_SCORES = ("knn_global", "knn_embedding")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        label: What the table calls it.
        changes: Keys by section, in place of the base configuration's.
    """

    label: str
    changes: Mapping[str, Mapping[str, Any]]


ROWS: dict[str, Row] = {
    "amdim": Row("AMDIM", {}),
    "strong": Row("+ strong augmentation", {"data": {"views": "strong"}}),
    "no-jitter": Row("- colour jitter", {"data": {"without": ["jitter"]}}),
    "no-gray": Row("- random gray", {"data": {"without": ["gray"]}}),
    "no-crop": Row("- random crop", {"data": {"without": ["crop"]}}),
    "no-multiscale": Row("- multiscale (1->7 alone)", {"loss": {"tasks": ["1to7"]}}),
    "no-stabilise": Row(
        "- stabilise (no clip, no penalty)", {"loss": {"score_clip": 0.0, "penalty_weight": 0.0}}
    ),
    "dim-augmented": Row("local DIM, augmented", {"loss": _LOCAL_DIM}),
    "dim": Row(
        "local DIM, not augmented",
        {"loss": _LOCAL_DIM, "data": {"without": ["jitter", "gray", "crop", "flip"]}},
    ),
    "mixtures": Row(f"AMDIM, {MIXTURES} mixtures", {"loss": {"mixtures": MIXTURES}}),
}
"""By name. Local DIM is one global-to-local pair and knows neither clip nor penalty."""


def ablate(
    base: TrainConfig,
    rows: Sequence[str],
    *,
    steps: int,
    out: Path,
    report: Report | None = None,
    on_row: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Trains and scores each row; rows that `out` already holds are not trained again.

    Args:
        base: What all rows share; `optim.steps`, `run.out` and `run.init_from` are set here.
        rows: Names out of `ROWS`, in the table's order.
        steps: Updates of each row.
        out: A folder: a run of every row, and the results in `ablation.json`, written after each.
        report: Called with each log record of the row in hand.
        on_row: Called with a row's name before it trains.

    Returns:
        The results: `base`, `steps`, and by row its scores in 0..1, losses and minutes.

    Raises:
        ConfigError: A row is unknown, there is nothing to score on, or `out` holds an ablation
            of another configuration.
        StoppedError: A signal came; called again, it goes on from the row's checkpoint.
    """
    unknown = [name for name in rows if name not in ROWS]
    if unknown:
        raise ConfigError(f"no ablation row {unknown[0]!r}; known: {', '.join(ROWS)}")
    if not base.data.gallery or not base.data.queries:
        raise ConfigError("an ablation is scored by kNN: set data.gallery and data.queries")
    if steps < 1:
        raise ConfigError("an ablation needs at least 1 update a row")
    shared = _shared(base, steps)
    results = _read(out / RESULTS_FILE, shared)
    for name in rows:
        if name in results["rows"]:
            continue
        if on_row is not None:
            on_row(name)
        results["rows"][name] = _train_row(row_config(shared, name, out), report)
        _write(out / RESULTS_FILE, results)
    return results


def row_config(base: TrainConfig, name: str, out: Path) -> TrainConfig:
    """Returns a row's configuration; what the base leaves out of its views stays left out."""
    values = base.to_dict()
    for section, changes in ROWS[name].changes.items():
        values[section] |= changes
    values["data"]["without"] = list(
        dict.fromkeys([*base.data.without, *values["data"]["without"]])
    )
    values["run"]["out"] = str(out / name)
    return TrainConfig.from_dict(values)


def _shared(base: TrainConfig, steps: int) -> TrainConfig:
    """Returns the base with the budget; a warm-up never takes more than a tenth of it."""
    optim = dataclasses.replace(
        base.optim, steps=steps, warmup_steps=min(base.optim.warmup_steps, steps // 10)
    )
    run = dataclasses.replace(
        base.run, out="", init_from="", evaluate_every=0, stop_after_minutes=0
    )
    return dataclasses.replace(base, optim=optim, run=run)


def _train_row(config: TrainConfig, report: Report | None) -> dict[str, Any]:
    last: dict[str, Mapping[str, Any]] = {}
    reached = 0

    def listen(record: Mapping[str, Any]) -> None:
        nonlocal reached
        last[record["event"]] = record
        reached = max(reached, int(record["step"]))
        if report is not None:
            report(record)

    started = time.monotonic()
    row: dict[str, Any] = {"changes": _differences(config)}
    try:
        train(config, report=listen)
    except DivergedError as error:
        return row | {"diverged": str(error)}
    if "knn" not in last:
        raise StoppedError(
            f"{config.run.out} stopped after update {reached} of {config.optim.steps}; "
            "the same command goes on from there"
        )
    step = {key: value for key, value in last.get("step", {}).items() if key not in ("event", "of")}
    return row | {
        **{name: last["knn"][name] for name in _SCORES},
        "minutes": round((time.monotonic() - started) / 60, 2),
        "precision": last["start"]["precision"],
        "images": last["start"]["images"],
        "last_record": step,
    }


def _differences(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Returns the sections that a row may change, as it has them."""
    values = config.to_dict()
    return {
        "loss": values["loss"],
        "data": {key: values["data"][key] for key in ("views", "without")},
    }


def _read(path: Path, shared: TrainConfig) -> dict[str, Any]:
    """Returns what was measured before, or an empty table.

    Raises:
        ConfigError: The file belongs to another base configuration or budget.
        DataError: The file is no table of results.
    """
    values = json.loads(json.dumps(shared.to_dict()))
    fresh: dict[str, Any] = {"base": values, "steps": shared.optim.steps, "rows": {}}
    if not path.exists():
        return fresh
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        was = TrainConfig.from_dict(results["base"])
        rows = dict(results["rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} holds no ablation results") from error
    for section in ("encoder", "loss", "data", "optim"):
        if getattr(was, section) != getattr(shared, section):
            raise ConfigError(
                f"{path.parent} holds an ablation with another [{section}]; choose another --out"
            )
    return fresh | {"rows": rows}


def _write(path: Path, results: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
