import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from amdim_training.checkpoint import load_checkpoint
from amdim_training.config import TrainConfig
from amdim_training.errors import ConfigError
from amdim_training.tensorboard import BOARD_FOLDER, side_by_side, split_scores
from amdim_training.train import train


@pytest.fixture
def make_config(write_pack: Callable[..., Path], tmp_path: Path) -> Callable[..., TrainConfig]:
    pack = str(write_pack(count=24, splits=("train", "val")))

    def make(out: str = "run", **run: Any) -> TrainConfig:
        return TrainConfig.from_dict(
            {
                "encoder": {"image_size": 32, "width": 4, "embed_dim": 16},
                "data": {"train": [pack], "gallery": [pack], "queries": pack},
                "optim": {"batch_size": 4, "steps": 4, "schedule": "constant"},
                "run": {
                    "out": str(tmp_path / out), "precision": "fp32",
                    "memory_format": "channels_last", "log_every": 1,
                    "save_every": 2, "tensorboard": True, **run,
                },
            }
        )  # fmt: skip

    return make


def events(folder: Path) -> dict[str, list[int]]:
    """The steps of every tag."""
    from tensorboard.backend.event_processing import (  # type: ignore[import-untyped]
        event_accumulator,
    )

    everything = {"histograms": 0, "images": 0, "scalars": 0}
    board = event_accumulator.EventAccumulator(str(folder / BOARD_FOLDER), everything)
    board.Reload()
    tags = board.Tags()
    read = {"scalars": board.Scalars, "histograms": board.Histograms, "images": board.Images}
    return {tag: [e.step for e in get(tag)] for kind, get in read.items() for tag in tags[kind]}


def test_curves_histograms_and_pictures_are_written(make_config) -> None:
    config = make_config()
    train(config)
    found = events(Path(config.run.out))
    assert found["loss/total"] == found["schedule/lr"] == [1, 2, 3, 4]
    assert found["knn/global"] == found["knn/embedding"] == [4]
    for tag in ("views", "scores_1to7/positive", "scores_1to5/negative"):
        assert found[tag] == [2, 4], tag
    assert {"loss/penalty", "loss/five_to_5", "speed/pairs_per_s"} <= set(found)


def test_looking_changes_nothing(make_config) -> None:
    watched, alone = make_config(), make_config("alone", tensorboard=False)
    states = [load_checkpoint(train(config)).encoder.state_dict() for config in (watched, alone)]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    logs = [
        Path(config.run.out, "log.jsonl").read_text().splitlines() for config in (watched, alone)
    ]
    losses = [[json.loads(line).get("total") for line in log] for log in logs]
    assert losses[0] == losses[1]
    assert not (Path(alone.run.out) / BOARD_FOLDER).exists()


def test_a_missing_tensorboard_is_told(make_config, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        train(make_config())


def test_scores_are_split_by_image() -> None:
    scores = torch.arange(2 * 2 * 3).view(2, 2, 3)
    positives, negatives = split_scores(scores)
    assert positives.tolist() == [0, 1, 2, 9, 10, 11]
    assert negatives.tolist() == [3, 4, 5, 6, 7, 8]


def test_partners_stand_below_each_other() -> None:
    first = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    board = side_by_side(first, first + 10)
    assert board.shape == (3, 8, 8)
    assert board[0, 0, ::4].tolist() == [0, 1] and board[0, 4, ::4].tolist() == [10, 11]
