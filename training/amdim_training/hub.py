"""Encoders from and to the Hugging Face hub: a checkpoint folder is what a repository holds.

Only the encoder's own files travel; a run's state stays at home.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from amdim_training.checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    load_checkpoint,
    resolve,
)
from amdim_training.errors import CheckpointError

SEARCH_FILE = "embedding.safetensors"
"""The fitted search vector that export keeps beside the weights, where there is one."""
CARD_FILE = "README.md"
_FILES = (CONFIG_FILE, WEIGHTS_FILE, SEARCH_FILE, CARD_FILE)


class Hub(Protocol):
    """What is used of `huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> object:
        """Makes a model repository."""
        ...

    def upload_folder(
        self, *, repo_id: str, folder_path: str, allow_patterns: list[str], commit_message: str
    ) -> object:
        """Puts a folder's files there in one commit."""
        ...


def from_pretrained(
    name: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None
) -> Checkpoint:
    """Returns the encoder of a local path or of a hub repository, `owner/name`.

    Args:
        name: A checkpoint folder, a reference file, or a repository's name.
        revision: A branch, tag or commit of the repository.
        cache_dir: Where downloads are kept; the hub library's own place by default.

    Raises:
        CheckpointError: There is no such path or repository, or what it holds is broken.
    """
    if Path(name).exists():
        return load_checkpoint(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            str(name), revision=revision, cache_dir=cache_dir, allow_patterns=list(_FILES)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{name} is neither a path nor a hub repository that can be reached"
        ) from error
    return load_checkpoint(folder)


def push_to_hub(
    path: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    message: str = "Upload an AMDIM encoder",
    hub: Hub | None = None,
) -> None:
    """Uploads a checkpoint's encoder, in one commit; the repository is made where it is missing.

    Args:
        path: A checkpoint folder or a run; it is loaded first, so that nothing broken travels.
        repo_id: `owner/name`.
        private: Whether a repository made here is private.
        message: The commit's message.
        hub: Another client than `huggingface_hub.HfApi()`.

    Raises:
        CheckpointError: The checkpoint is missing or broken.
    """
    folder = resolve(path)
    load_checkpoint(folder)
    if hub is None:
        from huggingface_hub import HfApi

        hub = HfApi()
    hub.create_repo(repo_id, private=private, exist_ok=True)
    hub.upload_folder(
        repo_id=repo_id,
        folder_path=str(folder),
        allow_patterns=[name for name in _FILES if (folder / name).exists()],
        commit_message=message,
    )
