"""Encoders and training runs on disk: safetensors beside JSON, written aside and renamed.

A checkpoint is a folder. `config.json` and `model.safetensors` are the encoder; a run that can
go on also leaves `training_state.safetensors`. No file here can execute code when read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import CheckpointError
from amdim_training.views import PIPELINE_OF, VIEWS, Normalization

FORMAT = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
STATE_FILE = "training_state.safetensors"
AVERAGED_FILE = "averaged.safetensors"
_STEP_PREFIX = "step-"


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        encoder: In evaluation mode, float32, on the CPU.
        normalization: What the encoder's pixels were normalised with.
        meta: Whatever else `config.json` holds.
        path: The folder it came from.
    """

    encoder: AmdimEncoder
    normalization: Normalization
    meta: Mapping[str, Any]
    path: Path


def load_encoder(path: str | Path) -> AmdimEncoder:
    """Returns the encoder of a checkpoint folder, of a run's newest, or of a reference file.

    Raises:
        CheckpointError: Nothing there, or the files are broken or of another shape.
    """
    return load_checkpoint(path).encoder


def load_checkpoint(path: str | Path, *, averaged: bool = False) -> Checkpoint:
    """Returns everything a checkpoint says of its encoder.

    Args:
        path: A folder of this package's, a run (its newest checkpoint counts), or a file of the
            original program or of its Lightning-Bolts port.
        averaged: Whether to take the averaged weights instead of the last ones.

    Raises:
        CheckpointError: Nothing there, or the files are broken or of another shape; the message
            names the key or value that is wrong.
    """
    if Path(path).is_file():
        return _load_reference(Path(path))
    folder = resolve(path)
    meta = _read_config(folder / CONFIG_FILE)
    try:
        config = EncoderConfig(**meta["encoder"])
        normalization = Normalization(
            mean=tuple(meta["normalization"]["mean"]), std=tuple(meta["normalization"]["std"])
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: missing or unknown key {error}") from error
    encoder = AmdimEncoder(config)
    weights = folder / (AVERAGED_FILE if averaged else WEIGHTS_FILE)
    load_weights(encoder, _read_tensors(weights), weights)
    return Checkpoint(encoder.eval(), normalization, meta, folder)


def _load_reference(path: Path) -> Checkpoint:
    from amdim_training.reference import load_reference

    reference = load_reference(path)
    normalization = VIEWS[PIPELINE_OF[reference.config.image_size]].normalization
    meta = {"converted_from": path.name, "score_clip": reference.extras.score_clip}
    return Checkpoint(reference.encoder, normalization, meta, path)


def load_weights(encoder: AmdimEncoder, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copies tensors of any float dtype into an encoder.

    Raises:
        CheckpointError: A key is missing, unknown, of another shape, or holds a NaN or infinity.
    """
    expected = encoder.state_dict()
    for key, value in expected.items():
        if key not in tensors:
            raise CheckpointError(f"{source}: no tensor named {key}")
        given = tensors[key]
        if given.shape != value.shape:
            raise CheckpointError(
                f"{source}: {key} is {tuple(given.shape)}, the encoder's is {tuple(value.shape)}"
            )
        if given.is_floating_point() and not torch.isfinite(given).all():
            raise CheckpointError(f"{source}: {key} holds a value that is not finite")
    unknown = sorted(set(tensors) - set(expected))
    if unknown:
        raise CheckpointError(f"{source}: unknown tensor {unknown[0]}")
    encoder.load_state_dict({key: tensors[key].to(value.dtype) for key, value in expected.items()})


def save_checkpoint(
    folder: str | Path,
    encoder: AmdimEncoder,
    normalization: Normalization,
    *,
    meta: Mapping[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
    averaged: AmdimEncoder | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a checkpoint folder beside its place and renames it there.

    Args:
        folder: Must not exist yet.
        encoder: The encoder to store.
        normalization: What its pixels were normalised with.
        meta: More JSON values for `config.json`.
        state: Tensors a training run needs to go on.
        averaged: The same encoder with averaged weights.
        dtype: What floating weights are stored as; float16 halves the file (`as_stored`).

    Raises:
        CheckpointError: The folder exists, or the disk refused; what stood there is untouched.
    """
    folder = Path(folder)
    if folder.exists():
        raise CheckpointError(f"{folder} exists already")
    config = {
        **(meta or {}),
        "format": FORMAT,
        "encoder": dataclasses.asdict(encoder.config),
        "normalization": dataclasses.asdict(normalization),
    }
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        aside.mkdir(parents=True)
        save_file(_weights(encoder, dtype), aside / WEIGHTS_FILE)
        if averaged is not None:
            save_file(_weights(averaged, dtype), aside / AVERAGED_FILE)
        if state is not None:
            save_file(dict(state), aside / STATE_FILE)
        (aside / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _sync(aside)
        aside.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(f"{folder} could not be written: {error}") from error
    return folder


def _weights(encoder: AmdimEncoder, dtype: torch.dtype) -> dict[str, Tensor]:
    return {key: as_stored(value, dtype) for key, value in encoder.state_dict().items()}


def as_stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a tensor on the CPU as files hold it.

    Kernels are of `dtype`. What has one dimension is small and stays as it is, since variances
    can be beyond float16's range; so does a kernel that `dtype` cannot hold.
    """
    value = value.detach().cpu().contiguous()
    if not value.is_floating_point() or value.ndim < 2:
        return value
    stored = value.to(dtype)
    return stored if torch.isfinite(stored).all() else value


def step_folder(run: Path, step: int) -> Path:
    """Returns where a run keeps the checkpoint of one update."""
    return run / f"{_STEP_PREFIX}{step:08d}"


def run_checkpoints(run: Path) -> list[Path]:
    """Returns a run's whole checkpoints, oldest first."""
    return sorted(folder for folder in run.glob(f"{_STEP_PREFIX}*") if _is_checkpoint(folder))


def load_state(folder: Path) -> dict[str, Tensor]:
    """Returns the tensors a run saved to go on from.

    Raises:
        CheckpointError: The checkpoint has none, or the file is broken.
    """
    return _read_tensors(folder / STATE_FILE)


def load_state_if_any(folder: Path) -> dict[str, Tensor]:
    """Returns `load_state`, or nothing where a checkpoint is an encoder alone.

    Raises:
        CheckpointError: The file is broken.
    """
    return load_state(folder) if (folder / STATE_FILE).exists() else {}


def load_averaged(folder: Path) -> dict[str, Tensor] | None:
    """Returns a checkpoint's averaged weights, or None where it has none.

    Raises:
        CheckpointError: The file is broken.
    """
    path = folder / AVERAGED_FILE
    return _read_tensors(path) if path.exists() else None


def resolve(path: str | Path) -> Path:
    """Returns the checkpoint folder that a path means: itself, or a run's newest one.

    Raises:
        CheckpointError: There is none.
    """
    folder = Path(path)
    if _is_checkpoint(folder):
        return folder
    newest = run_checkpoints(folder)
    if not newest:
        raise CheckpointError(f"no checkpoint at {folder}: it has no {CONFIG_FILE}")
    return newest[-1]


def _is_checkpoint(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of format {FORMAT}")
    return values


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def _sync(folder: Path) -> None:
    """Forces a folder's files to the disk, so that a rename never outlives their content."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
