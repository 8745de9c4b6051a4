import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from amdim_training import infomax_loss
from amdim_training.checkpoint import load_checkpoint, load_state, run_checkpoints
from amdim_training.cli import convert
from amdim_training.config import EncoderConfig, LossConfig, TrainConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import ConfigError, DataError
from amdim_training.run import Run
from amdim_training.step import train_step
from amdim_training.train import train


@pytest.fixture
def make_config(write_pack, tmp_path: Path):
    pack = write_pack(count=40)

    def make(**changes: dict[str, Any]) -> TrainConfig:
        values: dict[str, dict[str, Any]] = {
            "encoder": {"image_size": 32, "width": 4, "embed_dim": 16},
            "data": {"train": [str(pack)], "views": "stl10"},
            "optim": {
                "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 2, "steps": 6,
                "schedule": "linear",
            },
            "loss": {},
            "run": {
                "out": str(tmp_path / "run"), "precision": "fp32",
                "memory_format": "channels_last", "log_every": 1, "save_every": 3,
            },
        }  # fmt: skip
        for section, table in changes.items():
            values[section].update(table)
        return TrainConfig.from_dict(values)

    return make


def records(config: TrainConfig, event: str) -> list[dict[str, Any]]:
    lines = (Path(config.run.out) / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


def test_a_run_leaves_a_log_and_a_checkpoint_that_loads(make_config) -> None:
    config = make_config()
    seen: list[Any] = []
    folder = train(config, report=seen.append)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.meta["step"] == 6
    assert [record["step"] for record in records(config, "step")] == [1, 2, 3, 4, 5, 6]
    assert [record["event"] for record in seen] == ["start"] + ["step"] * 6
    first = records(config, "step")[0]
    parts = ("global_to_5", "global_to_7", "five_to_5", "penalty")
    assert first["total"] == pytest.approx(sum(first[part] for part in parts), abs=1e-3)
    assert first["lr"] == pytest.approx(1e-3 / 2)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_resumed_run_repeats_the_uninterrupted_ones_losses_exactly(
    make_config, tmp_path, optimizer: str
) -> None:
    # wide enough that muon has matrices to move
    shape = {"encoder": {"width": 32, "embed_dim": 128}, "optim": {"optimizer": optimizer}}
    whole = make_config(**shape)
    train(whole)
    halved = make_config(**shape, run={"out": str(tmp_path / "halved")})
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        train(halved)
    assert [f.name for f in run_checkpoints(Path(halved.run.out))] == ["step-00000003"]
    train(halved)
    losses = [[r["total"] for r in records(c, "step")] for c in (whole, halved)]
    assert losses[0] == losses[1]
    weights = [load_checkpoint(c.run.out).encoder.state_dict() for c in (whole, halved)]
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key


def stop_after(patch: pytest.MonkeyPatch, updates: int) -> None:
    """Raises SIGTERM for this process after so many updates, as a scheduler would."""
    original = Run.update
    made = 0

    def update(self, *args):
        nonlocal made
        terms = original(self, *args)
        made += 1
        if made == updates:
            os.kill(os.getpid(), signal.SIGTERM)
        return terms

    patch.setattr(Run, "update", update)


def test_only_the_newest_checkpoints_are_kept(make_config) -> None:
    config = make_config(run={"save_every": 1})
    train(config)
    names = [folder.name for folder in run_checkpoints(Path(config.run.out))]
    assert names == ["step-00000005", "step-00000006"]


def test_another_configuration_does_not_go_on_with_a_run(make_config) -> None:
    train(make_config())
    with pytest.raises(ConfigError, match=r"another \[optim\]"):
        train(make_config(optim={"learning_rate": 5e-3}))


def test_a_run_begins_from_another_ones_weights_and_moments(make_config, tmp_path) -> None:
    first = train(make_config())
    config = make_config(run={"out": str(tmp_path / "next"), "init_from": str(first)})
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, warmup_steps=0))
    train(config)
    # going on from trained weights, the loss starts lower than from fresh ones
    fresh = make_config(run={"out": str(tmp_path / "fresh")})
    train(fresh)
    assert records(config, "step")[0]["total"] < records(fresh, "step")[0]["total"]
    with pytest.raises(ConfigError, match="another shape"):
        train(
            make_config(
                encoder={"embed_dim": 24},
                run={"out": str(tmp_path / "other"), "init_from": str(first)},
            )
        )


def test_a_run_begins_from_a_shallower_encoder(make_config, tmp_path) -> None:
    first = train(make_config(optim={"ema_decay": 0.9}))  # its average is a shallow one too
    deeper = {"depth": make_config().encoder.depth + 1}
    config = make_config(
        encoder=deeper,
        optim={"ema_decay": 0.9},
        run={"out": str(tmp_path / "deeper"), "init_from": str(first)},
    )
    train(config)
    fresh = make_config(encoder=deeper, run={"out": str(tmp_path / "fresh")})
    train(fresh)
    assert records(config, "step")[0]["total"] < records(fresh, "step")[0]["total"]


def test_a_run_begins_from_a_published_encoder_without_moments(make_config, tmp_path) -> None:
    train(make_config())
    convert(tmp_path / "run", tmp_path / "published", half=True)
    config = make_config(
        run={"out": str(tmp_path / "on"), "init_from": str(tmp_path / "published")}
    )
    train(config)
    assert len(records(config, "step")) == 6


def test_knn_is_scored_while_training(make_config, write_pack) -> None:
    queries = write_pack(name="queries.parquet", count=12, splits=("val",))
    gallery = write_pack(name="gallery.parquet", count=32)
    config = make_config(
        data={"gallery": [str(gallery)], "queries": str(queries)}, run={"evaluate_every": 3}
    )
    train(config)
    scores = records(config, "knn")
    assert [record["step"] for record in scores] == [3, 6]
    # the queries' pictures stand in the gallery too
    assert scores[-1]["knn_global"] > 0.5 and scores[-1]["knn_embedding"] > 0.5


def test_too_few_pictures_for_a_batch_are_refused(make_config) -> None:
    with pytest.raises(DataError, match="cannot fill a batch of 64"):
        train(make_config(optim={"batch_size": 64}))


def test_auto_precision_is_measured_and_leaves_no_trace(make_config, tmp_path) -> None:
    config = make_config(run={"precision": "auto", "out": str(tmp_path / "auto")})
    train(config)
    chosen = records(config, "start")[0]["precision"]
    named = make_config(run={"precision": chosen, "out": str(tmp_path / "named")})
    train(named)
    losses = [[r["total"] for r in records(c, "step")] for c in (config, named)]
    assert losses[0] == losses[1]


def test_memory_formats_are_measured_logged_and_change_no_more_than_rounding(
    make_config, tmp_path
) -> None:
    totals = {}
    for layout in ("auto", "channels_last", "contiguous"):
        config = make_config(run={"memory_format": layout, "out": str(tmp_path / layout)})
        train(config)
        chosen = records(config, "start")[0]["memory_format"]
        assert layout in ("auto", chosen)
        totals[layout] = [record["total"] for record in records(config, "step")]
        if layout == "auto":
            measured = chosen
    assert totals["auto"] == totals[measured]  # the measurement left no trace
    meta = load_checkpoint(tmp_path / "auto").meta
    assert meta["settled"]["memory_format"] == measured
    assert totals["contiguous"] == pytest.approx(totals["channels_last"], abs=1e-3)


def test_a_run_that_goes_on_keeps_what_it_measured(make_config, caplog) -> None:
    config = make_config(run={"precision": "auto", "memory_format": "auto"})
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        train(config)
    caplog.set_level("INFO")
    train(config)
    first, second = records(config, "start")
    for key in ("precision", "memory_format", "compiled"):
        assert first[key] == second[key]
    assert "auto: a step takes" not in caplog.text  # the second part measured nothing


def test_fp16_scales_the_loss_skips_what_overflows_and_resumes_exactly(
    make_config, tmp_path
) -> None:
    whole = make_config(run={"precision": "fp16"})
    train(whole)
    halved = make_config(run={"precision": "fp16", "out": str(tmp_path / "halved")})
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        train(halved)
    train(halved)
    losses = [[r["total"] for r in records(c, "step")] for c in (whole, halved)]
    assert losses[0] == losses[1]
    state = load_state(run_checkpoints(Path(whole.run.out))[-1])
    assert 0 < state["loss_scale.scale"].item() <= 65536.0


def test_images_from_a_cache_train_as_images_in_memory_do(make_config, tmp_path) -> None:
    plain = make_config()
    cached = make_config(run={"cache": str(tmp_path / "cache"), "out": str(tmp_path / "cached")})
    train(plain)
    train(cached)
    losses = [[r["total"] for r in records(c, "step")] for c in (plain, cached)]
    assert losses[0] == losses[1]


def test_a_run_with_parts_and_an_average_resumes_exactly(make_config, tmp_path) -> None:
    optim = {"part_size": 4, "ema_decay": 0.9}
    whole = make_config(optim=optim)
    train(whole)
    halved = make_config(optim=optim, run={"out": str(tmp_path / "halved")})
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        train(halved)
    train(halved)
    for averaged in (False, True):
        first, second = (
            load_checkpoint(config.run.out, averaged=averaged).encoder.state_dict()
            for config in (whole, halved)
        )
        for key, value in first.items():
            assert torch.equal(value, second[key]), (averaged, key)
    plain = load_checkpoint(whole.run.out).encoder.state_dict()
    average = load_checkpoint(whole.run.out, averaged=True).encoder.state_dict()
    assert not torch.equal(plain["head5.conv1.weight"], average["head5.conv1.weight"])


def test_classifiers_learn_beside_the_encoder_and_do_not_change_it(make_config, tmp_path) -> None:
    plain, scored = (
        make_config(data={"classifiers": on}, run={"out": str(tmp_path / f"c{on}")})
        for on in (False, True)
    )
    train(plain)
    train(scored)
    without, beside = records(plain, "step")[-1], records(scored, "step")[-1]
    assert beside["total"] == without["total"]
    assert 0.0 <= beside["linear_accuracy"] <= 1.0 and 0.0 <= beside["mlp_accuracy"] <= 1.0
    first = records(scored, "step")[0]
    assert beside["classifiers"] < first["classifiers"]


def test_mixtures_and_classifiers_resume_exactly(make_config, tmp_path) -> None:
    sections = {"loss": {"mixtures": 3}, "data": {"classifiers": True}}
    whole = make_config(**sections)
    train(whole)
    halved = make_config(**sections, run={"out": str(tmp_path / "halved")})
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        train(halved)
    train(halved)
    keys = ("total", "global_to_7", "classifiers")
    losses = [[[r[k] for k in keys] for r in records(c, "step")] for c in (whole, halved)]
    assert losses[0] == losses[1]


def test_local_dim_trains_one_task_alone(make_config) -> None:
    config = make_config(loss={"tasks": ["1to7"]}, data={"without": ["jitter", "gray", "crop"]})
    train(config)
    record = records(config, "step")[-1]
    assert record["global_to_5"] == record["five_to_5"] == 0.0
    assert record["total"] == pytest.approx(record["global_to_7"] + record["penalty"], abs=1e-3)


def test_one_batch_overfits() -> None:
    torch.manual_seed(0)
    encoder = AmdimEncoder(EncoderConfig(image_size=32, width=8, embed_dim=64))
    optimizer = torch.optim.Adam(encoder.parameters(), 4e-3)
    first = torch.randn(16, 3, 32, 32)
    second = first + 0.1 * torch.randn_like(first)
    totals = []
    for _ in range(100):
        terms = train_step(encoder, LossConfig(), (first, second))
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        totals.append(terms.total.item())
    assert totals[-1] < 0.35 * totals[0], totals[::20]


def test_bf16_forward_passes_leave_float32_scores() -> None:
    torch.manual_seed(0)
    encoder = AmdimEncoder(EncoderConfig(image_size=32, width=4, embed_dim=16))
    views = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32)
    sources = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    exact = train_step(encoder, LossConfig(), views, sources=sources)
    rounded = train_step(encoder, LossConfig(), views, precision="bf16", sources=sources)
    assert rounded.total.dtype == torch.float32
    assert rounded.total.item() == pytest.approx(exact.total.item(), rel=0.02)
    with torch.no_grad():
        direct = infomax_loss(encoder(views[0]), encoder(views[1]), sources=sources)
    assert direct.total.item() == pytest.approx(exact.total.item(), rel=1e-5)


@pytest.mark.slow
def test_sigterm_saves_and_exits_cleanly(make_config, tmp_path, write_pack) -> None:
    config = make_config(optim={"steps": 1_000_000})
    path = tmp_path / "run.toml"
    path.write_text(
        f"[encoder]\nimage_size = 32\nwidth = 4\nembed_dim = 16\n[data]\n"
        f"train = [{json.dumps(config.data.train[0])}]\n"
        f'[optim]\nbatch_size = 8\nsteps = 1000000\n[run]\nout = "{config.run.out}"\n'
        f'precision = "fp32"\nmemory_format = "channels_last"\nlog_every = 1\nsave_every = 100000\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "amdim_clients.cli", "train", str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    log = Path(config.run.out) / "log.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and '"step"' in log.read_text()):
        time.sleep(0.2)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert load_checkpoint(config.run.out).meta["step"] >= 1
