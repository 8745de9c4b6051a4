import json
import os
import signal
from pathlib import Path

import pytest

from amdim_training import ablate as ablation
from amdim_training.ablate import ROWS, ablate, row_config
from amdim_training.ablate_command import ablate as command
from amdim_training.config import TrainConfig
from amdim_training.errors import ConfigError, DataError, StoppedError

ENCODER = "[encoder]\nimage_size = 32\nwidth = 4\nembed_dim = 16\n"


@pytest.fixture
def config_file(write_pack, tmp_path: Path) -> Path:
    pack = write_pack(count=24, splits=("train", "train", "val"))
    path = tmp_path / "base.toml"
    path.write_text(
        f"{ENCODER}[data]\ntrain = {json.dumps(str(pack))}\ngallery = {json.dumps(str(pack))}\n"
        f"queries = {json.dumps(str(pack))}\n"
        '[optim]\nbatch_size = 8\nschedule = "constant"\nwarmup_steps = 500\n'
        '[run]\nprecision = "fp32"\nmemory_format = "channels_last"\n'
        "log_every = 1\nsave_every = 1\n"
    )
    return path


def test_rows_differ_from_the_base_in_what_they_name_only(config_file: Path) -> None:
    base = TrainConfig.load(config_file, ['data.without=["flip"]'])
    same = row_config(base, "amdim", Path("out"))
    assert same.loss == base.loss and same.data == base.data and same.optim == base.optim
    assert row_config(base, "no-jitter", Path("out")).data.without == ("flip", "jitter")
    assert row_config(base, "strong", Path("out")).data.views == "strong"
    assert row_config(base, "no-multiscale", Path("out")).loss.tasks == ("1to7",)
    stable = row_config(base, "no-stabilise", Path("out")).loss
    assert (stable.score_clip, stable.penalty_weight, stable.tasks) == (0.0, 0.0, base.loss.tasks)
    plain, augmented = (row_config(base, name, Path("out")) for name in ("dim", "dim-augmented"))
    assert plain.loss == augmented.loss
    assert set(plain.data.without) == {"jitter", "gray", "crop", "flip"}
    assert row_config(base, "mixtures", Path("out")).loss.mixtures > 1
    assert {name: row_config(base, name, Path("out")).run.out for name in ROWS} == {
        name: f"out/{name}" for name in ROWS
    }


def test_rows_train_equally_long_and_are_not_trained_again(config_file, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    command(config_file, steps=3, out=out, rows="amdim,dim")
    printed = capsys.readouterr().out
    assert "AMDIM" in printed and "local DIM, not augmented" in printed
    results = json.loads((out / "ablation.json").read_text())
    assert list(results["rows"]) == ["amdim", "dim"]
    for row in results["rows"].values():
        assert row["last_record"]["step"] == 3
        assert 0 <= row["knn_global"] <= 1 and 0 <= row["knn_embedding"] <= 1
    assert results["base"]["optim"]["warmup_steps"] == 0  # a tenth of three updates
    before = (out / "amdim" / "log.jsonl").read_bytes()
    command(config_file, steps=3, out=out, rows="amdim,no-gray", as_json=True)
    assert list(json.loads(capsys.readouterr().out)["rows"]) == ["amdim", "dim", "no-gray"]
    assert (out / "amdim" / "log.jsonl").read_bytes() == before


def test_a_signal_ends_the_ablation_and_the_next_call_goes_on(config_file, tmp_path) -> None:
    base = TrainConfig.load(config_file)

    def interrupt(record) -> None:
        if record["event"] == "step" and record["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError, match="after update 2 of 4"):
        ablate(base, ["amdim"], steps=4, out=tmp_path / "out", report=interrupt)
    seen: list[int] = []
    ablate(base, ["amdim"], steps=4, out=tmp_path / "out", report=lambda r: seen.append(r["step"]))
    assert seen == [2, 3, 4, 4]


def test_a_row_that_diverges_is_told_and_the_next_one_runs(config_file, tmp_path, capsys) -> None:
    overrides = ["optim.learning_rate=1e30"]
    command(config_file, overrides, steps=4, out=tmp_path / "out", rows="no-stabilise")
    assert "diverged" in capsys.readouterr().out


def test_what_cannot_be_an_ablation_is_refused(config_file: Path, tmp_path: Path) -> None:
    base = TrainConfig.load(config_file)
    with pytest.raises(ConfigError, match="no ablation row 'amdmi'; known: amdim"):
        ablate(base, ["amdmi"], steps=3, out=tmp_path)
    with pytest.raises(ConfigError, match="gallery"):
        ablate(TrainConfig(), ["amdim"], steps=3, out=tmp_path)
    ablate(base, [], steps=3, out=tmp_path)
    (tmp_path / "ablation.json").write_text("{}")
    with pytest.raises(DataError, match="no ablation results"):
        ablate(base, ["amdim"], steps=3, out=tmp_path)
    ablation._write(tmp_path / "ablation.json", {"base": base.to_dict(), "rows": {}})
    with pytest.raises(ConfigError, match=r"another \[optim\]"):
        ablate(base, ["amdim"], steps=3, out=tmp_path)
