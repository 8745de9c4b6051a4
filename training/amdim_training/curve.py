"""A run's log as a picture: losses and accuracies over the pairs seen, as SVG without a library.

Knows no training: it reads what `journal` wrote.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amdim_training.errors import DataError
from amdim_training.journal import LOG_FILE

_WIDTH, _HEIGHT, _GAP = 420, 260, 90  # of a panel, and beside it
_TOP = 46
_COLORS = ("#1b6ca8", "#d1495b", "#3a7d44", "#e09f3e", "#6a4c93")
_LOSSES = {"global_to_5": "1→5", "global_to_7": "1→7", "five_to_5": "5→5", "penalty": "penalty"}
_SHARES = {
    "knn_embedding": "kNN, embedding",
    "knn_global": "kNN, global",
    "mlp_accuracy": "MLP beside it, training views",
    "linear_accuracy": "linear beside it, training views",
}

Series = dict[str, list[tuple[float, float]]]


def read_log(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a run's folder or of its log file.

    Updates that a run made twice, because it died after its last checkpoint, count once. Every
    record of an update says how many `pairs` of views it had seen.

    Raises:
        DataError: There is no log, or it is broken.
    """
    path = path / LOG_FILE if path.is_dir() else path
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError as error:
        raise DataError(f"no log at {path}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a run's log: {error}") from error
    kept: list[dict[str, Any]] = []
    for record in records:
        if record["event"] == "start":
            kept = [old for old in kept if old.get("step", 0) <= record["step"]]
        kept.append(record)
    first = next((record for record in kept if record["event"] == "step"), None)
    if first is None:
        raise DataError(f"{path} has no updates to draw")
    batch = first["pairs"] // first["step"]
    return [old | {"pairs": old["step"] * batch} if "step" in old else old for old in kept]


def read_logs(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns the records of runs that went on from each other, steps and pairs counted on.

    Raises:
        DataError: A log is missing or broken.
    """
    joined: list[dict[str, Any]] = []
    steps = pairs = 0
    for path in paths:
        records = read_log(path)
        joined += [
            old | {"step": old["step"] + steps, "pairs": old["pairs"] + pairs}
            if "step" in old
            else old
            for old in records
        ]
        last = [record for record in records if record["event"] == "step"][-1]
        steps, pairs = steps + last["step"], pairs + last["pairs"]
    return joined


def draw_curve(records: Sequence[Mapping[str, Any]], title: str) -> str:
    """Returns an SVG of the objective's terms and of the accuracies, each over pairs of views."""
    losses, shares = Series(), Series()
    for record in records:
        if record["event"] not in ("step", "knn"):
            continue
        pairs = record["pairs"]
        for names, series, factor in ((_LOSSES, losses, 1.0), (_SHARES, shares, 100.0)):
            for key, label in names.items():
                if key in record:
                    series.setdefault(label, []).append((pairs, factor * record[key]))
    panels = [_panel(losses, "loss", 0)]
    if shares:
        panels.append(_panel(shares, "accuracy, %", _WIDTH + _GAP))
    width = len(panels) * (_WIDTH + _GAP)
    height = _TOP + _HEIGHT + 50
    body = "\n".join(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n'
        f'<text x="56" y="20" font-size="14">{_escaped(title)}</text>\n{body}\n</svg>\n'
    )


def write_curve(runs: Sequence[Path], target: Path) -> None:
    """Draws the log of a run, and of those that went on from it, into an SVG file.

    The file is written aside and renamed.

    Raises:
        DataError: A log is missing or broken, or the file cannot be written.
    """
    records = read_logs(runs)
    start = next((r for r in reversed(records) if r["event"] == "start"), None)
    title = _title(start) if start else runs[-1].name
    aside = target.with_name(f".{target.name}.partial")
    try:
        aside.write_text(draw_curve(records, title), encoding="utf-8")
        os.replace(aside, target)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error}") from error


def _title(start: Mapping[str, Any]) -> str:
    encoder, optim = start["config"]["encoder"], start["config"]["optim"]
    return (
        f"{encoder['image_size']} px, width {encoder['width']}, D {encoder['embed_dim']}, depth "
        f"{encoder['depth']}; {optim['batch_size']} pairs an update, {start['images']} images"
    )


def _panel(series: Series, label: str, left: float) -> str:
    """Returns one pair of axes with its lines, its left edge at `left`."""
    points = [point for line in series.values() for point in line]
    most_x, most_y = max(x for x, _ in points), max(max(y for _, y in points), 1e-9)
    step_x, step_y = _tick(most_x), _tick(most_y)
    top_y = step_y * -(-most_y // step_y)  # the next tick above
    x0, y0 = left + 56, _TOP + _HEIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        return x0 + _WIDTH * x / most_x, y0 - _HEIGHT * y / top_y

    parts = [f'<text x="{x0}" y="{_TOP - 8}">{_escaped(label)}</text>']
    y = 0.0
    while y <= top_y + 1e-9:
        at = place(0, y)[1]
        parts.append(f'<path d="M{x0} {at:.1f}h{_WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{x0 - 6}" y="{at + 4:.1f}" text-anchor="end">{y:g}</text>')
        y += step_y
    x = 0.0
    while x <= most_x + 1e-9:
        at = place(x, 0)[0]
        parts.append(f'<text x="{at:.1f}" y="{y0 + 18}" text-anchor="middle">{x / 1e3:g}k</text>')
        x += step_x
    parts.append(
        f'<text x="{x0 + _WIDTH}" y="{y0 + 36}" text-anchor="end">pairs of views seen</text>'
    )
    for number, (name, line) in enumerate(series.items()):
        color = _COLORS[number % len(_COLORS)]
        path = "L".join("{:.1f} {:.1f}".format(*place(*point)) for point in line)
        parts.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        last = line[-1][1]
        row = _TOP + 16 + 16 * number if label == "loss" else y0 - 12 - 16 * number
        parts.append(
            f'<text x="{x0 + _WIDTH - 6}" y="{row}" text-anchor="end" fill="{color}">'
            f"{_escaped(name)}: {last:.3g}</text>"
        )
    return "\n".join(parts)


def _tick(most: float) -> float:
    """Returns a round distance that divides 0..most into four to ten."""
    size = 10.0 ** (len(str(int(most))) - 1) if most >= 1 else 0.1
    return next(size * share for share in (2, 1, 0.5, 0.2, 0.1) if most / (size * share) >= 4)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
