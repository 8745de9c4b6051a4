from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from amdim_training.classifiers import OnlineClassifiers
from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import CheckpointError
from amdim_training.golden import ENCODER_CASES, LEGACY_CASE
from amdim_training.reference import ReferenceExtras, load_reference, save_reference

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def golden(shared_dir: Path) -> Path:
    return shared_dir / "amdim" / "golden"


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A small checkpoint in the original's layout, with classifiers."""
    torch.manual_seed(0)
    path = tmp_path / "amdim_cpt.pth"
    encoder = AmdimEncoder(EncoderConfig(32, 4, 16, 2))
    extras = ReferenceExtras(15.0, OnlineClassifiers(16, 3), {"info_epoch": 7})
    save_reference(path, encoder, extras=extras)
    return path


def rewrite(path: Path, edit: Edit, **save_options: Any) -> Path:
    contents = torch.load(path, weights_only=True)
    edit(contents)
    torch.save(contents, path, **save_options)
    return path


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("case", ENCODER_CASES)
def test_original_files_round_trip_key_by_key(golden: Path, tmp_path: Path, case: str) -> None:
    loaded = load_reference(golden / f"{case}.pth")
    save_reference(tmp_path / "again.pth", loaded.encoder, extras=loaded.extras)

    before = torch.load(golden / f"{case}.pth", weights_only=True)
    after = torch.load(tmp_path / "again.pth", weights_only=True)
    assert before["hyperparams"] == after["hyperparams"]
    assert before["cursor"] == after["cursor"]
    assert before["model"].keys() == after["model"].keys()
    kept = set(before["model"])
    if not loaded.config.batch_norm:  # unused norms are left behind and written fresh
        kept = {key for key in kept if "bn1" not in key and "bn_hid" not in key}
        trunk_norm = 5 if loaded.config.image_size == 128 else 4
        kept = {key for key in kept if f"layer_list.{trunk_norm}.bn" not in key}
    for key in before["model"]:
        assert before["model"][key].shape == after["model"][key].shape, key
        assert before["model"][key].dtype == after["model"][key].dtype, key
        if key in kept:
            assert torch.equal(before["model"][key], after["model"][key]), key


def test_stored_flags_are_honoured(golden: Path, original: Path) -> None:
    assert load_reference(golden / "enc64_bn.pth").config == EncoderConfig(64, 6, 56, 2, True)
    extras = load_reference(original).extras
    assert extras.score_clip == 15.0
    assert extras.cursor == {"info_epoch": 7}


def test_half_precision_legacy_file_becomes_float32_on_the_cpu(golden: Path) -> None:
    encoder = load_reference(golden / f"{LEGACY_CASE}.pth").encoder

    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert {parameter.device.type for parameter in encoder.parameters()} == {"cpu"}
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_legacy_serialisation_and_old_depth_name_are_read(original: Path) -> None:
    expected = load_reference(original)

    def rename(contents: dict[str, Any]) -> None:
        contents["hyperparams"]["res_block_depth"] = contents["hyperparams"].pop("n_depth")

    rewrite(original, rename, _use_new_zipfile_serialization=False)

    got = load_reference(original)
    assert got.config == expected.config
    assert_same_weights(got.encoder, expected.encoder)


def test_file_without_classifiers_or_masks_is_read(original: Path) -> None:
    def drop(contents: dict[str, Any]) -> None:
        model = contents["model"]
        for key in [key for key in model if key.startswith(("evaluator.", "g2l_loss."))]:
            del model[key]

    assert load_reference(original).extras.classifiers is not None
    assert load_reference(rewrite(original, drop)).extras.classifiers is None


def _delete(key: str) -> Edit:
    return lambda contents: contents["model"].pop(key)


def _set(section: str, key: str, value: Any) -> Edit:
    return lambda contents: contents[section].__setitem__(key, value)


CONV = "encoder.module.layer_list.2.layer_list.1.conv1.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_delete(CONV), r"no tensor named layer_list\.2\.layer_list\.1\.conv1\.weight"),
        (_set("model", CONV, torch.zeros(8, 4, 1, 1)), r"2\.layer_list\.1.*\(8, 4, 1, 1\).*\(8, 8"),
        (_set("model", CONV, torch.full((8, 8, 1, 1), torch.nan)), "conv1.*not finite"),
        (_set("model", "encoder.module.extra.weight", torch.zeros(1)), "unknown tensor.*extra"),
        (_delete("evaluator.block_glb_lin.block_forward.2.bias"), "block_glb_lin.*2.bias"),
        (_delete("evaluator.block_glb_mlp.block_forward.6.weight"), "block_glb_mlp.*6.weight"),
        (lambda contents: contents["hyperparams"].pop("ndf"), "no hyper-parameter named ndf"),
        (_set("hyperparams", "ndf", "wide"), "ndf is 'wide'"),
        (_set("hyperparams", "encoder_size", 48), "image_size must be 32, 64 or 128, not 48"),
        (_set("hyperparams", "n_depth", 3), r"no tensor named layer_list\.2\.layer_list\.2"),
        (_set("hyperparams", "n_depth", 1), r"unknown tensor.*layer_list\.2\.layer_list\.1"),
        (_set("hyperparams", "use_bn", True), None),
    ],
)
def test_wrong_key_shape_or_hyperparameter_is_named(
    original: Path, edit: Edit, message: str | None
) -> None:
    rewrite(original, edit)

    if message is None:  # the norms are in every file: switching them on only applies them
        assert load_reference(original).config.batch_norm
    else:
        with pytest.raises(CheckpointError, match=message):
            load_reference(original)


@pytest.mark.parametrize("legacy", [False, True])
def test_broken_files_are_checkpoint_errors(original: Path, tmp_path: Path, legacy: bool) -> None:
    rewrite(original, lambda _: None, _use_new_zipfile_serialization=not legacy)
    whole = original.read_bytes()
    broken = tmp_path / "broken.pth"
    for contents in (b"", b"not a checkpoint", whole[: len(whole) // 2], whole[: len(whole) - 40]):
        broken.write_bytes(contents)
        with pytest.raises(CheckpointError, match=r"broken\.pth .*[a-z]{3}") as caught:
            load_reference(broken)
        assert "weights_only" not in str(caught.value)  # torch would have safety switched off
    with pytest.raises(CheckpointError, match="no checkpoint file"):
        load_reference(tmp_path / "absent.pth")
    torch.save([1, 2], broken)
    with pytest.raises(CheckpointError, match="holds a list"):
        load_reference(broken)
    torch.save({"fc.weight": torch.zeros(2)}, broken)
    with pytest.raises(CheckpointError, match="no AMDIM checkpoint"):
        load_reference(broken)


def bolts_state(encoder: AmdimEncoder, tmp_path: Path) -> dict[str, torch.Tensor]:
    """The port's names for an encoder, made from the original's by SPEC.md 9's renaming."""
    save_reference(tmp_path / "renamed.pth", encoder)
    model = torch.load(tmp_path / "renamed.pth", weights_only=True)["model"]
    state = {
        key.replace("encoder.module.", "encoder.").replace(".bn_hid.", ".bn1."): value
        for key, value in model.items()
        if key.startswith("encoder.")
    }
    for stem in (0, 1) if encoder.config.image_size == 128 else (0,):
        state[f"encoder.layer_list.{stem}.bn.bn.weight"] = torch.ones(encoder.config.width)
    return state


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_bolts_files_are_read_with_and_without_hyper_parameters(
    tmp_path: Path, size: int, batch_norm: bool
) -> None:
    encoder = AmdimEncoder(EncoderConfig(size, 4, 40, 3, batch_norm)).eval()
    state = bolts_state(encoder, tmp_path)
    hyper: dict[str, float] = {
        "image_height": size,
        "encoder_feature_dim": 4,
        "embedding_fx_dim": 40,
    }
    hyper |= {"conv_block_depth": 3, "use_bn": batch_norm, "tclip": 20.0}
    path = tmp_path / "epoch=1.ckpt"

    torch.save({"state_dict": state, "hyper_parameters": hyper, "epoch": 1}, path)
    loaded = load_reference(path)
    assert loaded.config == encoder.config
    assert loaded.extras.score_clip == 10.0
    assert_same_weights(loaded.encoder, encoder)
    if not batch_norm:  # a bare state dict cannot say that norms are applied
        torch.save(state, path)
        assert_same_weights(load_reference(path).encoder, encoder)


def test_objects_of_the_port_are_skipped_and_others_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = AmdimEncoder(EncoderConfig(32, 4, 16, 1)).eval()
    contents: dict[str, Any] = {"state_dict": bolts_state(encoder, tmp_path)}

    def instance_of(module_name: str) -> object:
        module = types.ModuleType(module_name)
        kind = type("Task", (torch.nn.Linear,), {"__module__": module_name})
        module.Task = kind  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module_name, module)
        monkeypatch.setitem(sys.modules, module_name.partition(".")[0], module)
        return kind(2, 2)

    contents["hyper_parameters"] = {"contrastive_task": instance_of("pl_bolts.losses")}
    torch.save(contents, tmp_path / "port.ckpt")
    contents["hyper_parameters"] = {"contrastive_task": instance_of("elsewhere.losses")}
    torch.save(contents, tmp_path / "other.ckpt")
    monkeypatch.undo()  # neither module can be imported any more

    assert_same_weights(load_reference(tmp_path / "port.ckpt").encoder, encoder)
    with pytest.raises(CheckpointError, match=r"elsewhere\.losses"):
        load_reference(tmp_path / "other.ckpt")


def test_failed_write_leaves_the_old_file(original: Path, tmp_path: Path) -> None:
    before = original.read_bytes()
    (tmp_path / "readonly").mkdir()
    target = tmp_path / "missing" / "amdim_cpt.pth"

    with pytest.raises(CheckpointError, match="could not be written"):
        save_reference(target, AmdimEncoder(EncoderConfig(32, 4, 16, 1)))

    assert original.read_bytes() == before
    assert not list(tmp_path.glob("**/*.partial"))
