import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from amdim_training.curve import read_log, read_logs, write_curve
from amdim_training.curve_command import curve as command
from amdim_training.errors import DataError

START = {
    "event": "start", "step": 0, "images": 40,
    "config": {
        "encoder": {"image_size": 32, "width": 4, "embed_dim": 16, "depth": 1},
        "optim": {"batch_size": 8},
    },
}  # fmt: skip


def step(number: int, loss: float) -> dict[str, object]:
    return {"event": "step", "step": number, "pairs": 8 * number, "global_to_5": loss}


def write_log(folder: Path, records: list[dict[str, object]]) -> Path:
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_a_log_becomes_a_picture_with_its_last_numbers(tmp_path: Path) -> None:
    knn = {"event": "knn", "step": 4, "knn_global": 0.25, "knn_embedding": 0.5}
    run = write_log(tmp_path, [START, step(2, 5.0), step(4, 3.0), knn])
    write_curve([run], tmp_path / "c.svg")
    texts = [node.text for node in ET.parse(tmp_path / "c.svg").iter() if node.text]
    assert "32 px, width 4, D 16, depth 1; 8 pairs an update, 40 images" in texts
    assert "1→5: 3" in texts and "kNN, embedding: 50" in texts and "kNN, global: 25" in texts
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.svg", "log.jsonl"]


def test_updates_made_twice_count_once(tmp_path: Path) -> None:
    records = [START, step(2, 5.0), step(4, 4.0), START | {"step": 2}, step(4, 3.0)]
    kept = read_log(write_log(tmp_path, records))
    assert [r["global_to_5"] for r in kept if r["event"] == "step"] == [5.0, 3.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no log at"), ("{", "is not a run's log"), (json.dumps(START), "no updates to draw")],
)
def test_what_cannot_be_drawn_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        write_curve([tmp_path], tmp_path / "c.svg")


def test_a_run_that_went_on_from_another_counts_on(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    knn = {"event": "knn", "step": 2, "knn_global": 0.5}
    write_log(first, [START, step(2, 5.0), step(4, 4.0)])
    write_log(second, [START, step(2, 3.0), knn])

    kept = read_logs([first, second])

    assert [r["step"] for r in kept if r["event"] == "step"] == [2, 4, 6]
    assert kept[-1] == knn | {"step": 6, "pairs": 48}
    app = Typer()
    app.command()(command)
    arguments = [str(first), str(second), str(tmp_path / "c.svg")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert "1→5: 3" in (tmp_path / "c.svg").read_text()


def test_runs_of_different_batches_are_joined_by_their_pairs(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    write_log(first, [START, step(2, 5.0)])
    write_log(second, [START, step(2, 3.0) | {"pairs": 32}, step(4, 2.0) | {"pairs": 64}])

    kept = read_logs([first, second])

    assert [r["pairs"] for r in kept if r["event"] == "step"] == [16, 48, 80]
    write_curve([first, second], tmp_path / "c.svg")
    assert "1→5: 2" in (tmp_path / "c.svg").read_text()
