"""Encoders as fp16 files of bounded size, to be carried where whole checkpoints cannot be.

A folder of pieces holds `<name>-<i>-of-<n>.safetensors` and `config.json`. Knows no optimiser.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from amdim_training.checkpoint import Checkpoint, as_stored, load_weights
from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import CheckpointError
from amdim_training.views import Normalization

PIECE_BYTES = 15 * 2**20 - 2**16  # room for a file's own header
CONFIG_FILE = "config.json"


def save_pieces(
    folder: Path, weights: Mapping[str, Tensor], name: str, *, piece_bytes: int = PIECE_BYTES
) -> list[Path]:
    """Writes tensors as fp16 files of at most `piece_bytes`, each written aside and renamed.

    Raises:
        CheckpointError: One tensor alone is larger than a piece, or the disk refused.
    """
    groups: list[dict[str, Tensor]] = [{}]
    room = piece_bytes
    for key, value in weights.items():
        stored = as_stored(value, torch.float16)
        size = stored.numel() * stored.element_size()
        if size > piece_bytes:
            raise CheckpointError(f"{key} alone is {size} bytes, a piece at most {piece_bytes}")
        if size > room:
            groups.append({})
            room = piece_bytes
        groups[-1][key] = stored
        room -= size
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, group in enumerate(groups, 1):
            path = folder / f"{name}-{number}-of-{len(groups)}.safetensors"
            aside = path.with_suffix(".partial")
            save_file(group, aside)
            aside.rename(path)
            written.append(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: pieces could not be written: {error}") from error
    return written


def save_pieces_config(
    folder: Path, config: EncoderConfig, normalization: Normalization, meta: Mapping[str, Any]
) -> None:
    """Writes what the pieces are of."""
    values = {
        **meta,
        "encoder": dataclasses.asdict(config),
        "normalization": dataclasses.asdict(normalization),
    }
    aside = folder / f".{CONFIG_FILE}.partial"
    aside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    aside.rename(folder / CONFIG_FILE)


def is_pieces(path: Path) -> bool:
    """Returns whether a folder holds pieces rather than a checkpoint."""
    return next(path.glob("*-of-*.safetensors"), None) is not None


def load_pieces(folder: Path, name: str) -> Checkpoint:
    """Puts an encoder together again.

    Raises:
        CheckpointError: Pieces are missing or broken; the message says which.
    """
    try:
        meta = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        config = EncoderConfig(**meta["encoder"])
        normalization = Normalization(
            tuple(meta["normalization"]["mean"]), tuple(meta["normalization"]["std"])
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: no {CONFIG_FILE} that can be read") from error
    found = sorted(folder.glob(f"{name}-*-of-*.safetensors"))
    count = int(found[0].stem.rpartition("-of-")[2]) if found else 0
    expected = [folder / f"{name}-{i}-of-{count}.safetensors" for i in range(1, count + 1)]
    missing = [path.name for path in expected if not path.exists()]
    if missing or not expected:
        raise CheckpointError(f"{folder}: {missing[0] if missing else name + '-*'} is missing")
    tensors: dict[str, Tensor] = {}
    for path in expected:
        try:
            tensors |= load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} is not a whole safetensors file") from error
    encoder = AmdimEncoder(config)
    load_weights(encoder, tensors, folder)
    return Checkpoint(encoder.eval(), normalization, meta, folder)
