import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from amdim_training.checkpoint import load_checkpoint, save_checkpoint
from amdim_training.color import Jitter, color_jitter
from amdim_training.config import EncoderConfig
from amdim_training.device_views import DeviceViews, jitter_in_turn
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import CheckpointError, ConfigError, DataError
from amdim_training.parts import PartsFolder, cut_parts, read_part
from amdim_training.pieces import load_pieces, save_pieces, save_pieces_config
from amdim_training.slices import Slice, SliceConfig
from amdim_training.views import VIEWS, draw_jitter, draw_pair

ROOT = Path(__file__).resolve().parents[2]
TINY = EncoderConfig(image_size=32, width=4, embed_dim=16, depth=1)
CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    normalization = VIEWS["stl10"].normalization
    return save_checkpoint(tmp_path / "start", AmdimEncoder(TINY), normalization)


def run_script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "training" / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_a_slice_takes_in_parts_as_they_come_and_leaves_encoders(
    tmp_path: Path, checkpoint: Path, write_pack
) -> None:
    done = run_script("cut_parts.py", write_pack(count=64), "--to", tmp_path / "cut")
    assert done.returncode == 0, done.stderr
    (first,) = (tmp_path / "cut").iterdir()
    parts, out = tmp_path / "parts", tmp_path / "out"
    parts.mkdir()
    late = threading.Timer(5.0, lambda: _arrive(first, parts / "b.npz"))
    _arrive(first, parts / "a.npz")
    late.start()
    done = run_script(
        "gpu_slice.py", "--parts", parts, "--resume", checkpoint, "--deadline", 14, "--out", out,
        "--batch", 16, "--rate", 0.005, "--log-every", 5, "--decay", 0.3, "--no-compile",
    )  # fmt: skip
    late.join()
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["pictures"] == 128  # the late part was taken in
    log = json.loads((out / "config.json").read_text())["log"]
    assert log[-1]["lr"] < log[len(log) // 2]["lr"]
    assert min(record["total"] for record in log[1:]) < log[0]["total"]
    for name in ("undecayed", "raw", "ema"):
        target = tmp_path / name
        joined = run_script("join_pieces.py", out, name, target)
        assert joined.returncode == 0, joined.stderr
        weights = load_checkpoint(target).encoder.state_dict()
        assert all(torch.isfinite(value).all() for value in weights.values())
    again = run_script(
        "gpu_slice.py", "--parts", parts, "--resume", out, "--deadline", 6, "--out",
        tmp_path / "again", "--batch", 16, "--no-compile",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr


def _arrive(source: Path, target: Path) -> None:
    aside = target.with_suffix(".partial")
    shutil.copy(source, aside)
    aside.rename(target)


def test_without_parts_a_slice_says_so(tmp_path: Path, checkpoint: Path) -> None:
    done = run_script(
        "gpu_slice.py", "--parts", tmp_path, "--resume", checkpoint, "--deadline", 0.5, "--out",
        tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 1
    assert "0 pictures do not fill a batch" in done.stderr
    assert "Traceback" not in done.stderr


def test_parts_hold_the_pictures_of_the_pack(tmp_path: Path, write_pack) -> None:
    from amdim_clients.images import Preprocess
    from amdim_training.data import load_images

    pack = write_pack(count=20)
    written = cut_parts([pack], tmp_path / "parts", part_bytes=4_000, splits=("train",))
    assert len(written) > 1
    got = np.concatenate([read_part(path, 32) for path in written])
    expected = load_images([pack], Preprocess(32, 32)).pixels
    np.testing.assert_array_equal(got, expected)


def test_a_broken_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(DataError, match=r"broken\.npz is not a part"):
        PartsFolder(tmp_path, 32).take_new()


def test_pieces_are_bounded_and_give_the_encoder_back(tmp_path: Path) -> None:
    encoder = AmdimEncoder(TINY).eval()
    weights = encoder.state_dict()
    largest = max(value.numel() * 2 for value in weights.values())
    written = save_pieces(tmp_path, weights, "raw", piece_bytes=2 * largest)
    save_pieces_config(tmp_path, TINY, VIEWS["stl10"].normalization, {"step": 3})
    assert len(written) > 1
    assert all(path.stat().st_size < 3 * largest + 8192 for path in written)
    images = torch.randn(2, 3, 32, 32)
    got = load_pieces(tmp_path, "raw").encoder(images).f1
    torch.testing.assert_close(got, encoder(images).f1, atol=0.02, rtol=0.02)
    written[0].unlink()
    with pytest.raises(CheckpointError, match="raw-1-of-"):
        load_pieces(tmp_path, "raw")


def test_jitter_in_turn_is_the_jitter_of_training() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(32, 3, 8, 8, generator=generator)
    jitter = draw_jitter(32, VIEWS["stl10"], generator)
    expected = color_jitter(images.clone(), Jitter(jitter.order, jitter.factors))
    torch.testing.assert_close(jitter_in_turn(images, jitter.order, jitter.factors), expected)


def test_device_views_have_the_statistics_of_training_views() -> None:
    pixels = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (512, 8, 8, 3), np.uint8)
    ).repeat_interleave(4, 1).repeat_interleave(4, 2)  # fmt: skip
    views = DeviceViews(32, VIEWS["stl10"], CPU)
    got = views.draw_pair(pixels, torch.Generator().manual_seed(1))
    expected = draw_pair(pixels, 32, VIEWS["stl10"], torch.Generator().manual_seed(2))
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours.mean(), theirs.mean(), atol=0.05, rtol=0)
        torch.testing.assert_close(ours.std(), theirs.std(), atol=0.05, rtol=0)
        gray = ((ours - ours.mean(1, keepdim=True)).std(dim=(1, 2, 3)) < 0.1).float().mean()
        assert 0.1 < gray < 0.45


def test_shifted_pipelines_are_refused() -> None:
    with pytest.raises(ConfigError):
        DeviceViews(32, VIEWS["cifar"], CPU)


def test_an_update_moves_weights_and_average() -> None:
    torch.manual_seed(0)
    work = Slice(
        AmdimEncoder(TINY),
        VIEWS["stl10"],
        SliceConfig(batch_size=8, precision="fp32", compiled=False, warmup_steps=0),
        CPU,
    )
    work.take(torch.randint(0, 256, (24, 32, 32, 3), dtype=torch.uint8))
    before = next(work.encoder.parameters()).detach().clone()
    for _ in range(4):
        work.update()
    after = next(work.encoder.parameters()).detach()
    averaged = next(work.averaged().parameters())
    assert not torch.equal(before, after)
    assert not torch.equal(averaged, after)
    assert work.step == 4
