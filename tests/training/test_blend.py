"""Between an encoder and what training on made of it lies one with batch norms of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from amdim_clients.cli import main
from amdim_training.blend import blend
from amdim_training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import ConfigError
from amdim_training.views import VIEWS

NORMALIZATION = VIEWS["stl10"].normalization


def saved(folder: Path, depth: int, seed: int, *, width: int = 8) -> Checkpoint:
    torch.manual_seed(seed)
    encoder = AmdimEncoder(EncoderConfig(64, width, 64, depth))
    for parameter in encoder.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return load_checkpoint(save_checkpoint(folder, encoder, NORMALIZATION, meta={"step": seed}))


@pytest.fixture
def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (128, 64, 64, 3), dtype=torch.uint8, generator=generator)


def test_weights_lie_on_the_line_and_norms_are_measured(tmp_path: Path, pixels) -> None:
    one, other = saved(tmp_path / "one", 1, 1), saved(tmp_path / "other", 1, 2)
    mixed = blend(one, other, 0.25, pixels)
    name = "layers.1.0.conv1.weight"
    line = 0.75 * one.encoder.get_parameter(name) + 0.25 * other.encoder.get_parameter(name)
    torch.testing.assert_close(mixed.get_parameter(name), line)
    mean = mixed.get_buffer("head5.bn_out.running_mean")
    assert not torch.allclose(mean, torch.zeros_like(mean))
    assert not mixed.training
    again = blend(one, other, 0.25, pixels)
    for key, value in mixed.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


def test_a_deeper_second_one_is_met_by_the_first_made_deeper(tmp_path: Path, pixels) -> None:
    one, other = saved(tmp_path / "one", 1, 1), saved(tmp_path / "other", 2, 2)
    mixed = blend(one, other, 0.5, pixels)
    added = "layers.1.1.conv2.weight"  # zero in the first, once that is made deeper
    torch.testing.assert_close(mixed.get_parameter(added), 0.5 * other.encoder.get_parameter(added))


def test_what_cannot_be_blended_is_named(tmp_path: Path, pixels) -> None:
    one, deep = saved(tmp_path / "one", 1, 1), saved(tmp_path / "deep", 2, 2)
    with pytest.raises(ConfigError, match="another shape"):
        blend(deep, one, 0.5, pixels)
    with pytest.raises(ConfigError, match="64 training images at least, not 10"):
        blend(one, deep, 0.5, pixels[:10])
    with pytest.raises(ConfigError, match="between 0 and 1"):
        blend(one, deep, 1.5, pixels)


def test_the_command_writes_a_checkpoint(tmp_path: Path, write_pack: Callable[..., Path]) -> None:
    one, other = saved(tmp_path / "one", 1, 1), saved(tmp_path / "other", 2, 2)
    words = ["blend", str(one.path), str(other.path), str(tmp_path / "mixed"), "--share", "0.7"]
    words += ["--data", str(write_pack(count=70)), "--half"]
    with pytest.raises(SystemExit, match=r"^0$"):
        main(words)
    mixed = load_checkpoint(tmp_path / "mixed")
    assert mixed.encoder.config.depth == 2
    assert (mixed.meta["blended_share"], mixed.meta["step"]) == (0.7, 2)
    with pytest.raises(SystemExit, match=r"^1$"):
        main(words)  # nothing is overwritten
