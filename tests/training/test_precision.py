import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from amdim_training.config import TrainConfig
from amdim_training.errors import ConfigError
from amdim_training.precision import choose_compiled, choose_memory_format, choose_precision
from amdim_training.train import train


def sleeping(seconds: dict[object, float], steps: list[object]) -> Callable[[object], None]:
    def step(choice: object) -> None:
        steps.append(choice)
        time.sleep(seconds[choice])

    return step


@pytest.mark.parametrize(("fp32", "bf16", "chosen"), [(0.03, 0.0, "bf16"), (0.0, 0.03, "fp32")])
def test_the_faster_precision_is_taken(fp32, bf16, chosen) -> None:
    assert choose_precision("auto", sleeping({"fp32": fp32, "bf16": bf16}, [])) == chosen


@pytest.mark.parametrize("fast", ["channels_last", "contiguous"])
def test_the_faster_memory_format_is_taken(fast: str, caplog) -> None:
    caplog.set_level(logging.INFO)
    seconds: dict[object, float] = {"channels_last": 0.03, "contiguous": 0.03, fast: 0.0}
    assert choose_memory_format("auto", sleeping(seconds, [])) == fast
    assert f"memory_format auto: a step takes 0.0{'3' if fast != 'contiguous' else '0'}" in (
        caplog.text
    )


@pytest.mark.parametrize(("eager", "compiled", "chosen"), [(0.03, 0.0, True), (0.0, 0.03, False)])
def test_compiling_is_taken_where_it_is_faster(eager, compiled, chosen, caplog) -> None:
    caplog.set_level(logging.INFO)
    assert choose_compiled("auto", sleeping({False: eager, True: compiled}, [])) is chosen
    assert "compile auto" in caplog.text


@pytest.mark.parametrize("wanted", [True, False])
def test_a_named_choice_is_not_measured(wanted: bool) -> None:
    steps: list[object] = []
    assert choose_compiled(wanted, sleeping({}, steps)) is wanted
    assert choose_precision("bf16", sleeping({}, steps)) == "bf16"
    assert choose_memory_format("contiguous", sleeping({}, steps)) == "contiguous"
    assert steps == []


def test_where_nothing_compiles_steps_run_as_they_are(caplog) -> None:
    steps: list[bool] = []

    def step(compiled: bool) -> None:
        steps.append(compiled)
        if compiled:
            raise RuntimeError("no compiler\nand a long trace")

    assert choose_compiled("auto", step) is False
    assert "does not work here (no compiler)" in caplog.text
    assert steps[-1] is False


def test_compile_is_a_flag_or_auto() -> None:
    for value in (True, False, "auto"):
        assert TrainConfig.from_dict({"run": {"compile": value}}).run.compile == value
    with pytest.raises(ConfigError, match=r"run\.compile"):
        TrainConfig.from_dict({"run": {"compile": "maybe"}})
    with pytest.raises(ConfigError, match=r"data\.classifiers"):
        TrainConfig.from_dict({"data": {"classifiers": "auto"}})


@pytest.mark.parametrize("key", ["precision", "memory_format"])
def test_an_unknown_choice_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"run\.{key} is one of auto, .*, not 'fast'"):
        TrainConfig.from_dict({"run": {key: "fast"}})


def test_a_run_measures_whether_to_compile(write_pack, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("torch._dynamo.config.disable", True)  # building takes a minute
    values = {
        "encoder": {"image_size": 32, "width": 4, "embed_dim": 16},
        "data": {"train": [str(write_pack(count=16))]},
        "optim": {"batch_size": 8, "steps": 2, "schedule": "constant"},
        "run": {"out": str(tmp_path / "run"), "precision": "fp32", "compile": "auto"},
    }
    train(TrainConfig.from_dict(values))
    start = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert start["compiled"] in (True, False)
