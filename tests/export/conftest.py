from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from amdim_export.artifact import Artifact, build_artifact
from amdim_export.pipeline import ExportOptions, export_encoder
from amdim_training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.views import Normalization

STL10 = Normalization(mean=(0.43, 0.42, 0.39), std=(0.27, 0.26, 0.27))
MAX_BATCH = 9


def trained_like(config: EncoderConfig) -> AmdimEncoder:
    """An encoder none of whose parts is at its initial zero or one."""
    generator = torch.Generator().manual_seed(7)
    encoder = AmdimEncoder(config)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.Conv2d):
                spread = 1.0 / module.weight[0].numel() ** 0.5
                module.weight.normal_(0.0, spread, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0.0, 0.3, generator=generator)
                module.running_mean.normal_(0.0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
    return encoder.eval()


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    def make(
        image_size: int = 64, *, depth: int = 1, batch_norm: bool = False, width: int = 4
    ) -> Checkpoint:
        config = EncoderConfig(image_size, width, width * 10, depth, batch_norm)
        folder = tmp_path_factory.mktemp("checkpoint") / "encoder"
        return load_checkpoint(save_checkpoint(folder, trained_like(config), STL10))

    return make


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 varied photos of sorts: noise of several grains, tinted."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(3)
    for index in range(60):
        grain = int(rng.integers(2, 40))
        small = rng.random((grain, grain, 3)) * rng.uniform(0.3, 1.0, 3)
        image = Image.fromarray((small * 255).astype(np.uint8))
        image.resize((96, 80), Image.Resampling.BICUBIC).save(folder / f"{index:03}.png")
    return folder


@pytest.fixture(scope="session")
def plain(make_checkpoint: Callable[..., Checkpoint]) -> tuple[Checkpoint, Artifact]:
    """An encoder and its exported file without a search vector, not to be changed."""
    checkpoint = make_checkpoint(width=8)
    return checkpoint, build_artifact(checkpoint, None)


@pytest.fixture(scope="session")
def published(
    make_checkpoint: Callable[..., Checkpoint],
    pictures: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A repository with one exported encoder; read only, see `repository`."""
    root = tmp_path_factory.mktemp("published")
    checkpoint = make_checkpoint(depth=2, batch_norm=True)
    options = ExportOptions(
        fit_on=(pictures,), weights="fp16", max_batch_size=MAX_BATCH, embedding_dim=16
    )
    export_encoder(checkpoint.path, root, options)
    return root


@pytest.fixture
def repository(published: Path, tmp_path: Path) -> Path:
    """A copy of the published repository that a test may damage."""
    return Path(shutil.copytree(published, tmp_path / "repository"))


@pytest.fixture(scope="session")
def compile_for_tensorrt(
    repo_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, dict[str, Any]]]:
    """Compiles ONNX files with TensorRT-RTX ahead of time; what it says of each, by name.

    Where it cannot be installed a test is skipped; in CI it fails, lest a green run prove nothing.
    """
    tools = repo_root / "export" / "tensorrt_builder"
    build = subprocess.run(["bash", tools / "build.sh"], capture_output=True, text=True)
    if build.returncode != 0:
        problem = f"TensorRT-RTX cannot be installed: {build.stderr[-500:]}"
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)

    def compile_files(
        files: Mapping[str, bytes], *profiles: Sequence[str]
    ) -> dict[str, dict[str, Any]]:
        folder = tmp_path_factory.mktemp("tensorrt")
        for name, data in files.items():
            (folder / name).write_bytes(data)
        asked = [word for profile in profiles for word in ("--profile", *profile)]
        command = [repo_root / ".venv/tensorrt/bin/python", tools / "compile.py"]
        done = subprocess.run(
            [*command, *(folder / name for name in files), *asked], capture_output=True, text=True
        )
        said = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(said) == len(files), done.stderr[-2000:]
        assert done.returncode == (1 if any("refused" in one for one in said) else 0)
        return {one["file"]: one for one in said}

    return compile_files
