import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from amdim_training import load_encoder
from amdim_training.checkpoint import (
    load_checkpoint,
    run_checkpoints,
    save_checkpoint,
    step_folder,
)
from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import CheckpointError
from amdim_training.pieces import load_pieces, save_pieces, save_pieces_config
from amdim_training.views import VIEWS

CONFIG = EncoderConfig(image_size=32, width=4, embed_dim=16, depth=2)
NORMALIZATION = VIEWS["stl10"].normalization


@pytest.fixture
def encoder() -> AmdimEncoder:
    torch.manual_seed(0)
    encoder = AmdimEncoder(CONFIG)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return encoder


@pytest.fixture
def saved(encoder: AmdimEncoder, tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "saved", encoder, NORMALIZATION, meta={"step": 7})


def test_a_checkpoint_gives_the_same_encoder_back(encoder, saved) -> None:
    loaded = load_checkpoint(saved)
    assert loaded.encoder.config == CONFIG
    assert loaded.normalization == NORMALIZATION
    assert loaded.meta["step"] == 7
    assert not loaded.encoder.training
    images = torch.randn(3, 3, 32, 32)
    for ours, theirs in zip(encoder.eval()(images), load_encoder(saved)(images), strict=True):
        assert torch.equal(ours, theirs)


def test_float16_halves_the_file_and_rounds_the_weights(encoder, saved, tmp_path) -> None:
    small = save_checkpoint(tmp_path / "half", encoder, NORMALIZATION, dtype=torch.float16)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (small, saved)]
    assert sizes[0] < 0.6 * sizes[1]
    rounded = load_encoder(small).state_dict()
    for key, value in encoder.state_dict().items():
        kernel = value.is_floating_point() and value.ndim > 1
        assert torch.equal(rounded[key], value.half().float() if kernel else value)


def test_float16_loses_no_variance_and_no_kernel_beyond_its_range(encoder, tmp_path) -> None:
    variance = next(one for key, one in encoder.named_buffers() if key.endswith("running_var"))
    kernel = next(one for one in encoder.parameters() if one.ndim > 1)
    with torch.no_grad():
        variance.fill_(1e6)
        kernel.view(-1)[0] = 1e6
    small = save_checkpoint(tmp_path / "half", encoder, NORMALIZATION, dtype=torch.float16)
    save_pieces(tmp_path / "pieces", encoder.state_dict(), "raw")
    save_pieces_config(tmp_path / "pieces", CONFIG, NORMALIZATION, {})
    for got in (load_encoder(small), load_pieces(tmp_path / "pieces", "raw").encoder):
        values = got.state_dict()
        assert any((one == 1e6).all() for key, one in values.items() if "running_var" in key)
        assert any((one == 1e6).any() for one in values.values() if one.ndim > 1)


def test_an_existing_checkpoint_is_never_overwritten(encoder, saved) -> None:
    before = (saved / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="exists already"):
        save_checkpoint(saved, encoder, NORMALIZATION)
    assert (saved / "model.safetensors").read_bytes() == before


def test_a_full_disk_leaves_nothing_half_written(encoder, tmp_path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("amdim_training.checkpoint.save_file", refuse)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(tmp_path / "full", encoder, NORMALIZATION)
    assert list(tmp_path.iterdir()) == []


def test_a_run_means_its_newest_whole_checkpoint(encoder, tmp_path) -> None:
    for step in (5, 40, 300):
        save_checkpoint(step_folder(tmp_path, step), encoder, NORMALIZATION, meta={"step": step})
    step_folder(tmp_path, 999).mkdir()  # a folder without config.json is no checkpoint
    assert [folder.name for folder in run_checkpoints(tmp_path)] == [
        "step-00000005", "step-00000040", "step-00000300",
    ]  # fmt: skip
    assert load_checkpoint(tmp_path).meta["step"] == 300


def rewrite_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_another_shape_is_named(saved) -> None:
    rewrite_config(saved, encoder={"image_size": 32, "width": 4, "embed_dim": 24, "depth": 2})
    with pytest.raises(CheckpointError, match=r"layers\.7\.conv1\.weight is \(16, 16, 3, 3\)"):
        load_encoder(saved)


def test_a_missing_an_unknown_and_a_broken_tensor_are_named(saved) -> None:
    path = saved / "model.safetensors"
    whole = load_file(path)
    save_file({key: value for key, value in whole.items() if key != "head5.conv2.weight"}, path)
    with pytest.raises(CheckpointError, match=r"no tensor named head5\.conv2\.weight"):
        load_encoder(saved)
    save_file({**whole, "more": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="unknown tensor more"):
        load_encoder(saved)
    save_file({**whole, "head7.conv1.weight": whole["head7.conv1.weight"] * torch.nan}, path)
    with pytest.raises(CheckpointError, match=r"head7\.conv1\.weight holds a value"):
        load_encoder(saved)


def test_a_truncated_file_is_refused(saved) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_encoder(saved)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 99}', "{"])
def test_a_config_of_another_kind_is_refused(saved, text) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_encoder(saved)


def test_a_config_without_a_key_names_it(saved) -> None:
    rewrite_config(saved, normalization={"mean": [0, 0, 0]})
    with pytest.raises(CheckpointError, match="std"):
        load_encoder(saved)


def test_nothing_there_is_said_so(saved, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_encoder(tmp_path / "nowhere")
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_encoder(saved)
    shutil.rmtree(saved)
