import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from amdim_training.checkpoint import save_checkpoint
from amdim_training.config import EncoderConfig, ViewsName
from amdim_training.data import ImageSet
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import ConfigError, DataError
from amdim_training.evaluate_command import evaluate as command
from amdim_training.features import TorchEncoder, Vectors
from amdim_training.frozen import (
    ExportedBackbone,
    FrozenOptions,
    FrozenSchedule,
    TorchBackbone,
    frozen_scores,
    open_backbone,
    paper_schedule,
)
from amdim_training.views import VIEWS

VIEWS_CIFAR = VIEWS["cifar"]


@pytest.fixture
def encoder() -> AmdimEncoder:
    torch.manual_seed(0)
    return AmdimEncoder(EncoderConfig(32, 4, 32, 1)).eval()


def coloured(count: int, seed: int) -> ImageSet:
    """Pictures whose brightness is their class, of four."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    pixels = 30 + 60 * labels.reshape(-1, 1, 1, 1) + rng.integers(-20, 20, (count, 32, 32, 3))
    return ImageSet(pixels.astype(np.uint8), labels)


def scores(backbone, schedule: FrozenSchedule, test: ImageSet | None = None):
    lines: list[str] = []
    found = frozen_scores(
        backbone,
        coloured(64, 0),
        test or coloured(42, 1),
        size=32,
        views=VIEWS_CIFAR,
        schedule=schedule,
        report=lines.append,
    )
    return found, lines


def test_schedules_are_the_papers_and_shorten_in_proportion() -> None:
    assert paper_schedule("cifar10") == paper_schedule("stl10-labelled") == FrozenSchedule()
    assert (FrozenSchedule().epochs, FrozenSchedule().milestones) == (120, (80, 110))
    assert paper_schedule("imagenet").milestones == (15, 25)
    assert (paper_schedule("places205").epochs, paper_schedule("places205").milestones) == (
        15,
        (7, 12),
    )
    short = FrozenOptions(epochs=12, reference_scoring=True).schedule("cifar10")
    assert (short.epochs, short.milestones, short.reference_scoring) == (12, (8, 11), True)
    optim = short.optim()
    assert (optim.betas, optim.weight_decay, optim.warmup_steps) == ((0.8, 0.999), 1e-5, 0)


def test_both_classifiers_learn_from_views_and_the_encoder_stays_as_it_was(encoder) -> None:
    before = copy.deepcopy(encoder.state_dict())
    schedule = FrozenSchedule(epochs=30, milestones=(25,), batch_size=16, learning_rate=1e-2)
    backbone = TorchBackbone(encoder, VIEWS_CIFAR.normalization)
    (shares, scored), lines = scores(backbone, schedule)
    assert scored == 42 and set(shares) == {"linear", "mlp"}
    assert shares["linear"] > 0.5 and shares["mlp"] > 0.4  # chance is 0.25
    assert len(lines) == 30
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not encoder.training


def test_test_images_touch_nothing_unless_the_references_scoring_is_asked_for(encoder) -> None:
    schedule = FrozenSchedule(epochs=1, batch_size=16)
    seen: list[int] = []

    class Watched(TorchBackbone):
        def refresh(self, pixels):
            seen.append(len(pixels))
            super().refresh(pixels)

    (_, scored), _ = scores(Watched(encoder, VIEWS_CIFAR.normalization), schedule)
    assert (scored, seen) == (42, [])
    leaking = FrozenSchedule(epochs=1, batch_size=16, reference_scoring=True)
    (_, scored), _ = scores(Watched(encoder, VIEWS_CIFAR.normalization), leaking)
    assert (scored, seen) == (32, [16, 16])  # the last 10 are never scored


def test_scores_repeat_with_a_seed(encoder) -> None:
    schedule = FrozenSchedule(epochs=2, batch_size=16)
    first, second = (
        scores(TorchBackbone(encoder, VIEWS_CIFAR.normalization), schedule)[1] for _ in range(2)
    )
    assert first == second


def test_an_exported_model_gets_views_as_pixels(encoder) -> None:
    torch_encoder = TorchEncoder(encoder, VIEWS_CIFAR.normalization)

    class Exported:
        """Pixels in, vectors out, as a model file answers."""

        image_size, source_size = 32, 32
        facts: Mapping[str, Any] = {}
        pipeline: ViewsName = "cifar"
        has_embedding = False

        def fit(self, pixels, components) -> bool:
            return False

        def encode(self, pixels) -> Vectors:
            return torch_encoder.encode(pixels)

    backbone = open_backbone(Exported(), VIEWS_CIFAR)
    assert isinstance(backbone, ExportedBackbone)
    pixels = torch.from_numpy(coloured(4, 2).pixels)
    planes = VIEWS_CIFAR.normalization.apply(pixels.permute(0, 3, 1, 2).float() / 255)
    assert torch.allclose(backbone.of_views(planes), backbone.of_pictures(pixels), atol=1e-6)
    (shares, scored), _ = scores(backbone, FrozenSchedule(epochs=1, batch_size=16))
    assert scored == 42 and set(shares) == {"linear", "mlp"}
    with pytest.raises(ConfigError, match="score its checkpoint"):
        scores(backbone, FrozenSchedule(epochs=1, batch_size=16, reference_scoring=True))


def test_too_few_images_are_refused(encoder) -> None:
    backbone = TorchBackbone(encoder, VIEWS_CIFAR.normalization)
    with pytest.raises(DataError, match="64 training images cannot fill a batch of 65"):
        scores(backbone, FrozenSchedule(epochs=1, batch_size=65))


def test_command_runs_the_papers_protocol_beside_others(
    encoder, write_pack, tmp_path: Path
) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", encoder, VIEWS_CIFAR.normalization)
    pack = write_pack(count=48, splits=("train", "test"))
    app = Typer()
    app.command()(command)
    options = ["--protocol", "knn,frozen", "--features", "global", "--epochs", "2"]
    arguments = [str(checkpoint), "--data", str(pack), *options, "--batch-size", "8", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["scores"]
    assert [score["protocol"] for score in found] == ["knn", "frozen"]
    assert set(found[1]["metrics"]) == {"frozen linear", "frozen mlp"}
    assert (found[1]["gallery"], found[1]["queries"]) == (24, 24)
    assert "epoch 2/2  classifiers" in result.stderr
    wrong = CliRunner().invoke(app, [*arguments, "--views", "none"])
    assert "--views is one of cifar" in str(wrong.exception)
