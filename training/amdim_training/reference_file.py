"""Opens a foreign PyTorch file without running anything in it.

Lightning's checkpoints pickle objects of their own classes beside the weights. Those become inert
place-holders here; every other class is refused. Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from amdim_training.errors import CheckpointError

# Whose objects may be skipped: the port's, and those of the framework that saved it.
_SKIPPED_ROOTS = ("pl_bolts.", "pytorch_lightning.", "lightning.", "lightning_fabric.", "torch.nn.")
_BROKEN = (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError)


class _Skipped(dict[Any, Any]):
    """Stands where a file holds an object of a class that is not loaded."""

    def __init__(self, *_: object) -> None:
        super().__init__()

    def __setstate__(self, _: object) -> None:
        """Forgets the object's state."""


def read_file(path: Path) -> Mapping[str, Any]:
    """Returns the dictionary a `torch.save` file holds, every tensor on the CPU.

    Raises:
        CheckpointError: The file is missing, broken, holds an object that is refused, or no
            dictionary.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file at {path}")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_place_holders(path)):
            warnings.simplefilter("ignore")  # of pickle protocols: whatever cannot be read, fails
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, or is broken: {_reason(error)}"
        ) from error
    except _BROKEN as error:
        raise CheckpointError(f"{path} is not a whole PyTorch file: {_reason(error)}") from error
    if not isinstance(contents, Mapping):
        raise CheckpointError(f"{path} holds a {type(contents).__name__}, not a dictionary")
    return contents


def _place_holders(path: Path) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Returns a stand-in for each class of the port or its framework that the file names."""
    if not zipfile.is_zipfile(path):
        return []  # torch cannot list a legacy file's classes
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return [
        # a class of its own for each name: torch keeps them apart by it
        (type("_Skipped", (_Skipped,), {}), name)
        for name in names
        if name.startswith(_SKIPPED_ROOTS)
    ]


def _reason(error: Exception) -> str:
    """Returns the first sentence of torch's message, without its advice to switch safety off."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "GLOBAL" in line]
    sentence = (named or lines or [""])[0].partition(". ")[0]
    if not sentence or sentence.isdigit() or sentence.startswith("Weights only load failed"):
        return "it was not written by torch.save, or is cut off"
    return sentence
