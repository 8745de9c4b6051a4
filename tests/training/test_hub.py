from pathlib import Path
from typing import Any

import pytest
import torch

from amdim_training import from_pretrained, push_to_hub
from amdim_training.checkpoint import save_checkpoint
from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import CheckpointError
from amdim_training.views import VIEWS


class RecordingHub:
    """Keeps what would have been uploaded."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create", {"repo_id": repo_id, **options}))

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload", options))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    encoder = AmdimEncoder(EncoderConfig(image_size=32, width=4, embed_dim=16))
    return save_checkpoint(
        tmp_path / "saved", encoder, VIEWS["stl10"].normalization, state={"x": torch.ones(1)}
    )


def test_a_local_folder_needs_no_hub(saved: Path) -> None:
    assert from_pretrained(saved).encoder.config.width == 4


def test_only_the_encoders_own_files_travel(saved: Path) -> None:
    hub = RecordingHub()
    push_to_hub(saved, "owner/name", private=True, hub=hub)
    (create, created), (upload, uploaded) = hub.calls
    assert (create, upload) == ("create", "upload")
    assert created == {"repo_id": "owner/name", "private": True, "exist_ok": True}
    assert uploaded["allow_patterns"] == ["config.json", "model.safetensors"]
    assert uploaded["folder_path"] == str(saved)


def test_a_broken_checkpoint_does_not_travel(saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(b"")
    hub = RecordingHub()
    with pytest.raises(CheckpointError):
        push_to_hub(saved, "owner/name", hub=hub)
    assert hub.calls == []


def test_a_name_that_is_nowhere_is_said_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="neither a path nor a hub repository"):
        from_pretrained("nobody/nothing", cache_dir=tmp_path)
    with pytest.raises(CheckpointError, match="neither a path"):
        from_pretrained("not a name at all/x/y", cache_dir=tmp_path)
