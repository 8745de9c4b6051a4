"""Checkpoints of the original program and of its Lightning-Bolts port, read and written.

People's trained encoders are in these files. Only tensors and plain values are ever unpickled.
Knows no training; what the files say beyond the encoder is handed over as `ReferenceExtras`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from amdim_training.classifiers import OnlineClassifiers
from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import CheckpointError, ConfigError
from amdim_training.reference_file import read_file
from amdim_training.reference_keys import (
    CLASSIFIER_PREFIX,
    ORIGINAL_PREFIX,
    canonical_key,
    classifier_key,
    reference_key,
)

DEFAULT_SCORE_CLIP = 20.0
BOLTS_SCORE_CLIP = 10.0  # the port never passes its tclip on (SPEC.md 9)


@dataclasses.dataclass(frozen=True, slots=True)
class ReferenceExtras:
    """What a reference checkpoint says beyond the encoder.

    Attributes:
        score_clip: The bound of the scores it was trained with (`tclip`).
        classifiers: The online classifiers, in evaluation mode; None where the file has none.
        cursor: The original's progress counters, empty for the port's files.
    """

    score_clip: float = DEFAULT_SCORE_CLIP
    classifiers: OnlineClassifiers | None = None
    cursor: Mapping[str, int] = dataclasses.field(default_factory=dict)


class ReferenceCheckpoint(NamedTuple):
    """A file of the original program or of the port, read; the encoder is in evaluation mode."""

    encoder: AmdimEncoder
    config: EncoderConfig
    extras: ReferenceExtras


def load_reference(path: str | Path) -> ReferenceCheckpoint:
    """Reads a checkpoint of the original program or of the Lightning-Bolts port.

    Zip and legacy serialisation, storages of any device and weights of any float type are read;
    everything becomes float32 on the CPU. Batch norms that `use_bn` switches off are left behind.

    Raises:
        CheckpointError: The file is missing, broken or neither layout; the message names the key,
            hyper-parameter or shape that is wrong.

    Source: SPEC.md 6 and 9.
    """
    path = Path(path)
    contents = read_file(path)
    if "model" in contents and "hyperparams" in contents:
        tensors, config, score_clip = _read_original(contents, path)
        cursor = {key: int(value) for key, value in contents.get("cursor", {}).items()}
    else:
        tensors, config, score_clip = _read_bolts(contents, path)
        cursor = {}
    encoder = _fill_encoder(config, tensors, path)
    extras = ReferenceExtras(score_clip, _fill_classifiers(config, tensors, path), cursor)
    return ReferenceCheckpoint(encoder, config, extras)


def save_reference(
    path: str | Path, encoder: AmdimEncoder, *, extras: ReferenceExtras | None = None
) -> None:
    """Writes an encoder in the original program's layout, beside its place and then renamed.

    Batch norms that the encoder does not have are written fresh (weight 1, mean 0, variance 1),
    and the 5x5 masks the original keeps in its files are added.

    Raises:
        CheckpointError: The disk refused; a file that stood there is untouched.
    """
    path, extras, config = Path(path), extras or ReferenceExtras(), encoder.config
    own = encoder.state_dict()
    tensors: dict[str, Tensor] = {}
    for key, fresh in _all_keys(config).items():
        value = own.get(key)
        if value is None:
            ones = key.endswith((".weight", ".running_var"))
            value = torch.full(fresh.shape, float(ones), dtype=fresh.dtype)
        tensors[ORIGINAL_PREFIX + reference_key(key)] = value.detach().cpu()
    tensors["g2l_loss.masks_r5"] = torch.eye(25, dtype=torch.uint8).view(25, 1, 5, 5)
    n_classes = 0
    if extras.classifiers is not None:
        n_classes = extras.classifiers.n_classes
        for key, value in extras.classifiers.state_dict().items():
            tensors[classifier_key(key)] = value.detach().cpu()
    hyperparams = {
        "ndf": config.width,
        "n_classes": n_classes,
        "n_rkhs": config.embed_dim,
        "tclip": extras.score_clip,
        "n_depth": config.depth,
        "encoder_size": config.image_size,
        "use_bn": config.batch_norm,
    }
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    contents = {"model": tensors, "hyperparams": hyperparams, "cursor": dict(extras.cursor)}
    try:
        torch.save(contents, aside)
        aside.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        aside.unlink(missing_ok=True)
        raise CheckpointError(f"{path} could not be written: {error}") from error


class _Tensors(NamedTuple):
    """A file's tensors by canonical key, and the name each has in the file."""

    values: dict[str, Tensor]
    names: dict[str, str]


_Read = tuple[_Tensors, EncoderConfig, float]


def _read_original(contents: Mapping[str, Any], path: Path) -> _Read:
    hyperparams = contents["hyperparams"]
    if not isinstance(hyperparams, Mapping):
        raise CheckpointError(f"{path}: hyperparams is not a dictionary")
    value = _hyperparameters(hyperparams, path)
    depth = "res_block_depth" if "n_depth" not in hyperparams else "n_depth"
    config = _config(
        path,
        image_size=value("encoder_size", None),
        width=value("ndf", None),
        embed_dim=value("n_rkhs", None),
        depth=value(depth, None),
        batch_norm=bool(value("use_bn", 0)),
    )
    return _tensors(contents["model"], path), config, float(value("tclip", DEFAULT_SCORE_CLIP))


def _read_bolts(contents: Mapping[str, Any], path: Path) -> _Read:
    """Reads the port's file; its hyper-parameters win over what the shapes say."""
    tensors = _tensors(contents.get("state_dict", contents), path)
    hyperparams = contents.get("hyper_parameters") or {}
    value = _hyperparameters(hyperparams, path)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.values.items()}
    for key in ("layers.0.conv.weight", "head5.conv1.weight"):
        if key not in shapes:
            raise CheckpointError(
                f"{path} is no AMDIM checkpoint: it has neither `model` and `hyperparams`, "
                f"nor a tensor encoder.{reference_key(key)}"
            )
    size = 128 if "layers.1.conv.weight" in shapes else 64
    size = 32 if "layers.1.conv1.weight" in shapes else size
    trunk = 6 if size == 128 else 5  # the block after the 7x7 tap
    depth = sum(key.startswith(f"layers.{trunk}.") and "conv1" in key for key in shapes)
    config = _config(
        path,
        image_size=value("image_height", size),
        width=value("encoder_feature_dim", shapes["layers.0.conv.weight"][0]),
        embed_dim=value("embedding_fx_dim", shapes["head5.conv1.weight"][0]),
        depth=value("conv_block_depth", depth),
        batch_norm=bool(value("use_bn", 0)),
    )
    return tensors, config, BOLTS_SCORE_CLIP


def _hyperparameters(given: Mapping[str, Any], path: Path) -> Callable[[str, Any], Any]:
    def value(name: str, default: float | None) -> Any:
        found = given.get(name, default)
        if found is None:
            raise CheckpointError(f"{path}: no hyper-parameter named {name}")
        if not isinstance(found, int | float):
            raise CheckpointError(f"{path}: hyper-parameter {name} is {found!r}, not a number")
        return found

    return value


def _config(path: Path, **values: Any) -> EncoderConfig:
    try:
        return EncoderConfig(**values)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _tensors(model: object, path: Path) -> _Tensors:
    if not isinstance(model, Mapping):
        raise CheckpointError(f"{path}: the model entry is not a dictionary of tensors")
    names: dict[str, str] = {}
    for name in model:
        key = canonical_key(str(name))
        if key is None:
            continue
        if not isinstance(model[name], Tensor):
            raise CheckpointError(f"{path}: {name} is not a tensor")
        names[key] = str(name)
    return _Tensors({key: model[name] for key, name in names.items()}, names)


def _all_keys(config: EncoderConfig) -> dict[str, Tensor]:
    """Returns the state of the encoder as the reference stores it: every batch norm is there."""
    with torch.device("meta"):
        return AmdimEncoder(dataclasses.replace(config, batch_norm=True)).state_dict()


def _fill_encoder(config: EncoderConfig, tensors: _Tensors, path: Path) -> AmdimEncoder:
    with torch.device("meta"):  # every tensor is replaced: no weights are drawn
        encoder = AmdimEncoder(config)
    allowed = _all_keys(config)
    given = {k: v for k, v in tensors.values.items() if not k.startswith(CLASSIFIER_PREFIX)}
    for key in given:
        if key not in allowed:
            raise CheckpointError(f"{path}: unknown tensor {tensors.names[key]} for {config}")
    _fill(encoder, given, tensors.names, path)
    return encoder.eval()


def _fill_classifiers(
    config: EncoderConfig, tensors: _Tensors, path: Path
) -> OnlineClassifiers | None:
    prefix = CLASSIFIER_PREFIX
    given = {
        key.removeprefix(prefix): value
        for key, value in tensors.values.items()
        if key.startswith(prefix)
    }
    if not given:
        return None
    if given.get("linear.bias") is None:
        raise CheckpointError(f"{path}: no tensor named {classifier_key('linear.bias')}")
    classifiers = OnlineClassifiers(config.embed_dim, len(given["linear.bias"]))
    names = {key: tensors.names[prefix + key] for key in given}
    _fill(classifiers, given, names, path)
    return classifiers.eval()


def _fill(
    module: nn.Module, given: Mapping[str, Tensor], names: Mapping[str, str], path: Path
) -> None:
    """Gives a module its tensors as float32, after checking that each is there and fits."""
    state: dict[str, Tensor] = {}
    is_encoder = isinstance(module, AmdimEncoder)
    for key, expected in module.state_dict().items():
        if key not in given:
            wanted = reference_key(key) if is_encoder else classifier_key(key)
            raise CheckpointError(f"{path}: no tensor named {wanted} (whatever its prefix)")
        value = given[key]
        if value.shape != expected.shape:
            raise CheckpointError(
                f"{path}: {names[key]} is {tuple(value.shape)}, "
                f"its hyper-parameters make it {tuple(expected.shape)}"
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: {names[key]} holds a value that is not finite")
        state[key] = value.to(expected.dtype)
    module.load_state_dict(state, assign=True)
