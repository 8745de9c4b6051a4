from pathlib import Path

import pytest
import torch

from amdim_training import load_encoder
from amdim_training.checkpoint import load_checkpoint, save_checkpoint
from amdim_training.cli import convert
from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import CheckpointError
from amdim_training.views import VIEWS


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    encoder = AmdimEncoder(EncoderConfig(image_size=32, width=4, embed_dim=16))
    return save_checkpoint(tmp_path / "saved", encoder, VIEWS["cifar"].normalization)


def same_weights(first: Path, second: Path) -> bool:
    a, b = (load_encoder(path).state_dict() for path in (first, second))
    return all(torch.equal(value, b[key]) for key, value in a.items())


def test_the_originals_layout_round_trips(saved: Path, tmp_path: Path) -> None:
    convert(saved, tmp_path / "there.pth")
    convert(tmp_path / "there.pth", tmp_path / "back")
    assert same_weights(saved, tmp_path / "back")
    back = load_checkpoint(tmp_path / "back")
    assert back.normalization == VIEWS["cifar"].normalization
    assert back.meta["converted_from"] == "there.pth"


def test_nothing_is_overwritten(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "there.pth").write_bytes(b"mine")
    with pytest.raises(CheckpointError, match="exists already"):
        convert(saved, tmp_path / "there.pth")
    assert (tmp_path / "there.pth").read_bytes() == b"mine"


@pytest.mark.parametrize("size", [32, 64, 128])
def test_the_original_programs_files_convert(shared_dir: Path, tmp_path: Path, size: int) -> None:
    source = shared_dir / "amdim" / "golden" / f"enc{size}_bn.pth"
    convert(source, tmp_path / "native")
    assert same_weights(source, tmp_path / "native")
    assert load_encoder(tmp_path / "native").config.batch_norm
