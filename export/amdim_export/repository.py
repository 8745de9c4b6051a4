"""A Triton model repository on disk: versions appear whole, stay as they are, and can be retired.

A version is written into a folder that Triton ignores and renamed into place. Each keeps the
configuration it was published with, so that the model's own `config.pbtxt` can always be made to
describe the newest. Knows no graph and no vector.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from amdim_export.errors import RepositoryError
from amdim_export.names import CONFIG_FILE

_PARTIAL = ".publishing-"
RETIRED = "retired"
_STALE_S = 3600.0
"""An unfinished publish older than this is of a killed process."""


def publish_version(
    repository: Path,
    model: str,
    files: Mapping[str, bytes],
    *,
    config: str,
    version: int | None = None,
) -> Path:
    """Adds a version to a model, whole or not at all, and points its configuration at it.

    Args:
        repository: Made where it does not exist.
        model: Folder name.
        files: What the version holds, by file name.
        config: The text of config.pbtxt that describes the version.
        version: 1 or more; the next free one where None.

    Returns:
        The version's folder.

    Raises:
        RepositoryError: The version exists or was retired, or the disk refused; what stood there
            is untouched.
    """
    folder = _model_folder(repository, model)
    number = next_version(folder) if version is None else version
    if number < 1:
        raise RepositoryError(f"a version is a number from 1 on, not {number}")
    if (folder / str(number)).exists() or (folder / RETIRED / str(number)).exists():
        raise RepositoryError(f"{model} version {number} exists already; versions never change")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        aside = folder / f"{_PARTIAL}{os.getpid()}-{number}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            for name, content in {**files, CONFIG_FILE: config.encode()}.items():
                _write(aside / name, content)
            _sync_folder(aside)
            target = folder / str(number)
            aside.rename(target)  # refuses a folder that holds anything
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        _sync_folder(folder)
        restore_config(folder)
    except OSError as error:
        raise RepositoryError(f"{model} version {number} was not published: {error}") from error
    return target


def list_versions(folder: Path) -> list[int]:
    """Returns a model's served versions, rising; folders of other names are no versions."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if _is_version(path))


def next_version(folder: Path) -> int:
    """Returns the number after every version that is or was there."""
    return max([0, *list_versions(folder), *list_versions(folder / RETIRED)]) + 1


def list_models(repository: Path) -> list[Path]:
    """Returns the folders of a repository's models.

    Raises:
        RepositoryError: There is no such folder.
    """
    if not repository.is_dir():
        raise RepositoryError(f"no model repository at {repository}")
    return sorted(path for path in repository.iterdir() if (path / CONFIG_FILE).is_file())


def retire_version(repository: Path, model: str, version: int) -> Path:
    """Takes a version out of service and keeps its files; its number is never used again.

    Retiring the newest rolls the model back to the one before.

    Raises:
        RepositoryError: There is no such version, or it is the model's only one.
    """
    folder = _model_folder(repository, model)
    served = list_versions(folder)
    if version not in served:
        raise RepositoryError(f"{model} has no version {version}")
    if len(served) == 1:
        raise RepositoryError(f"version {version} is the only one of {model}")
    try:
        (folder / RETIRED).mkdir(exist_ok=True)
        target = folder / RETIRED / str(version)
        (folder / str(version)).rename(target)
        restore_config(folder)
    except OSError as error:
        raise RepositoryError(f"{model} version {version} was not retired: {error}") from error
    return target


def roll_back(repository: Path, model: str, to: int | None = None) -> list[Path]:
    """Retires every version after one, so that it is the newest again.

    Args:
        repository: The model repository.
        model: Folder name.
        to: The version to serve; the one before the newest where None.

    Returns:
        Where the retired versions are kept, newest first.

    Raises:
        RepositoryError: There is no such version, or none before the newest.
    """
    served = list_versions(_model_folder(repository, model))
    if to is None:
        if len(served) < 2:
            raise RepositoryError(f"{model} has no version to roll back to")
        to = served[-2]
    if to not in served:
        raise RepositoryError(f"{model} has no version {to}")
    newer = [version for version in reversed(served) if version > to]
    if not newer:
        raise RepositoryError(f"version {to} of {model} is served already")
    return [retire_version(repository, model, version) for version in newer]


def restore_config(folder: Path) -> None:
    """Makes a model's configuration describe its newest version, as a publish left it."""
    versions = list_versions(folder)
    own = folder / str(versions[-1]) / CONFIG_FILE if versions else None
    if own is None or not own.is_file():
        return
    aside = folder / f".{CONFIG_FILE}.{os.getpid()}.partial"
    _write(aside, own.read_bytes())
    os.replace(aside, folder / CONFIG_FILE)
    _sync_folder(folder)


def remove_leftovers(folder: Path, *, older_than_s: float = _STALE_S) -> None:
    """Removes what killed publishes left, but nothing that another may be writing now."""
    now = time.time()
    for path in [*folder.glob(f"{_PARTIAL}*"), *folder.glob(f".{CONFIG_FILE}.*.partial")]:
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime < older_than_s and _is_running(path):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _is_running(path: Path) -> bool:
    """Returns whether the process that a leftover names may still be writing it."""
    digits = "".join(c if c.isdigit() else " " for c in path.name).split()
    try:
        os.kill(int(digits[0]), 0)
    except (IndexError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _is_version(path: Path) -> bool:
    return path.is_dir() and path.name.isdecimal() and not path.name.startswith("0")


def _model_folder(repository: Path, model: str) -> Path:
    if not model or model.startswith(".") or "/" in model or model != model.strip():
        raise RepositoryError(f"{model!r} is no model's name")
    return repository / model


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
