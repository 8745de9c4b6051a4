"""The paper's evaluation: classifiers of a frozen encoder, on a fresh view of each image an epoch.

Both heads begin anew and learn from one augmented view by the reference's schedule. While they do,
the encoder's batch norms use batch statistics, as the reference's do, in a copy of it. Scoring is
proper by default: every test image once, none of them touching those statistics. The reference's
own way (fifty test batches refresh them, the last part of a batch is never scored) is an option.
Knows no files.

Source: SPEC.md 3 and 4.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from amdim_training.classifiers import OnlineClassifiers, online_loss
from amdim_training.config import OptimConfig, ViewsName
from amdim_training.data import ImageSet
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import ConfigError, DataError
from amdim_training.features import FrozenEncoder, TorchEncoder
from amdim_training.optimizer import make_adam
from amdim_training.schedule import learning_rate
from amdim_training.views import Normalization, ViewsConfig, draw_view

_REFRESHING_BATCHES = 50
Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSchedule:
    """How the classifiers learn; the defaults are the paper's for CIFAR and STL-10.

    Attributes:
        epochs: Passes over the training images.
        milestones: Epochs after which the rate falls to a fifth.
        batch_size: Images an update, and a batch of the reference's test routine.
        learning_rate: Of Adam; no warm-up.
        seed: Decides heads, order and views.
        reference_scoring: Whether the score is made as the reference makes it.
    """

    epochs: int = 120
    milestones: tuple[int, ...] = (80, 110)
    batch_size: int = 200
    learning_rate: float = 2e-4
    seed: int = 0
    reference_scoring: bool = False

    def shortened(self, epochs: int) -> FrozenSchedule:
        """Returns the same schedule in fewer epochs, its milestones in proportion."""
        milestones = tuple(round(epochs * place / self.epochs) for place in self.milestones)
        return dataclasses.replace(self, epochs=epochs, milestones=milestones)

    def optim(self) -> OptimConfig:
        """Returns it as an optimiser's configuration."""
        return OptimConfig(
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup_steps=0,
            epochs=self.epochs,
            milestones=self.milestones,
        )


def paper_schedule(data: str) -> FrozenSchedule:
    """Returns the paper's schedule for a data set, by its name."""
    if data.startswith("imagenet"):
        return FrozenSchedule(epochs=30, milestones=(15, 25))
    if data.startswith("places205"):
        return FrozenSchedule(epochs=15, milestones=(7, 12))
    return FrozenSchedule()


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenOptions:
    """What of the paper's protocol is to be another way.

    Attributes:
        epochs: Instead of the paper's, milestones in proportion; 0 leaves them.
        batch_size: Images an update.
        views: The training transform; None takes the one the encoder was trained with.
        source_size: Side of the pictures views are cut from; 0 takes the encoder's training's.
        reference_scoring: As `FrozenSchedule` has it.
        seed: Of everything drawn.
    """

    epochs: int = 0
    batch_size: int = 200
    views: ViewsName | None = None
    source_size: int = 0
    reference_scoring: bool = False
    seed: int = 0

    def schedule(self, data: str) -> FrozenSchedule:
        """Returns the schedule for a data set, by its name."""
        schedule = paper_schedule(data)
        if self.epochs:
            schedule = schedule.shortened(self.epochs)
        return dataclasses.replace(
            schedule,
            batch_size=self.batch_size,
            reference_scoring=self.reference_scoring,
            seed=self.seed,
        )


class Backbone(Protocol):
    """A frozen encoder as this protocol uses it."""

    def of_views(self, views: Tensor) -> Tensor:
        """Returns (N, D) global features of (N, 3, S, S) normalised training views."""

    def of_pictures(self, pixels: Tensor) -> Tensor:
        """Returns (N, D) global features of (N, S, S, 3) uint8 test pictures."""

    def refresh(self, pixels: Tensor) -> None:
        """Lets a batch of (N, S, S, 3) uint8 pictures touch the batch norms' statistics."""


class TorchBackbone:
    """A copy of a checkpoint's encoder: batch statistics for views, recorded ones for scores."""

    def __init__(self, encoder: AmdimEncoder, normalization: Normalization) -> None:
        self._encoder = copy.deepcopy(encoder).requires_grad_(False)
        self._normalization = normalization
        self._device = next(encoder.parameters()).device

    def of_views(self, views: Tensor) -> Tensor:
        """Returns (N, D) global features, batch statistics recorded as they are used."""
        return self._global(views, training=True)

    def of_pictures(self, pixels: Tensor) -> Tensor:
        """Returns (N, D) global features by the recorded statistics."""
        return self._global(self._planes(pixels), training=False)

    def refresh(self, pixels: Tensor) -> None:
        """Records the statistics of a batch of pictures."""
        self._global(self._planes(pixels), training=True)

    @torch.no_grad()
    def _global(self, images: Tensor, *, training: bool) -> Tensor:
        self._encoder.train(training)
        images = images.to(self._device).contiguous(memory_format=torch.channels_last)
        return self._encoder.activations(images)[1].flatten(1)  # the heads are not needed

    def _planes(self, pixels: Tensor) -> Tensor:
        return self._normalization.apply(pixels.permute(0, 3, 1, 2).float() / 255.0)


class ExportedBackbone:
    """An exported model, which has no batch statistics: views are rounded to pixels for it."""

    def __init__(self, encoder: FrozenEncoder, views: ViewsConfig) -> None:
        self._encoder, self._normalization = encoder, views.normalization

    def of_views(self, views: Tensor) -> Tensor:
        """Returns (N, D) global features."""
        planes = self._normalization.undo(views).clamp(0.0, 1.0).mul(255.0).round()
        return self.of_pictures(planes.to(torch.uint8).permute(0, 2, 3, 1).contiguous())

    def of_pictures(self, pixels: Tensor) -> Tensor:
        """Returns (N, D) global features."""
        pooled = self._encoder.encode(pixels.numpy()).pooled
        # cloned: a classifier learns from it, which it may not from a tensor of inference mode
        return pooled[:, : pooled.shape[1] // 3].clone()

    def refresh(self, pixels: Tensor) -> None:
        """Refuses: there is nothing to refresh.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "the reference's scoring refreshes batch-norm statistics, and an exported model has "
            "none: score its checkpoint"
        )


def open_backbone(encoder: FrozenEncoder, views: ViewsConfig) -> Backbone:
    """Returns a frozen encoder of either kind as this protocol uses it."""
    if isinstance(encoder, TorchEncoder):
        return TorchBackbone(encoder.encoder, encoder.normalization)
    return ExportedBackbone(encoder, views)


def frozen_scores(
    backbone: Backbone,
    train: ImageSet,
    test: ImageSet,
    *,
    size: int,
    views: ViewsConfig,
    schedule: FrozenSchedule,
    report: Report,
) -> tuple[dict[str, float], int]:
    """Trains both classifiers on views of the training images and scores them on test images.

    Args:
        backbone: The frozen encoder.
        train: Labelled pictures, larger than or as large as a view.
        test: Labelled pictures as the test transform leaves them.
        size: S, the side of a view.
        views: The training transform.
        schedule: How long and how fast.
        report: Called with a line an epoch.

    Returns:
        The shares (0..1) of test images that the linear and the MLP classifier name rightly, and
        how many test images were scored.

    Raises:
        DataError: Fewer training images than a batch.
        ConfigError: The reference's scoring is asked of an exported model.
    """
    per_epoch = len(train) // schedule.batch_size
    if per_epoch == 0:
        raise DataError(
            f"{len(train)} training images cannot fill a batch of {schedule.batch_size}"
        )
    pixels, labels = torch.from_numpy(train.pixels), torch.from_numpy(train.labels)
    optim = schedule.optim()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(schedule.seed)
        generator = torch.Generator().manual_seed(schedule.seed)
        n_classes = int(max(train.labels.max(), test.labels.max())) + 1
        heads: OnlineClassifiers | None = None
        for epoch in range(schedule.epochs):
            order = torch.randperm(len(pixels), generator=generator)
            total = 0.0
            for place in range(per_epoch):
                rows = order[place * schedule.batch_size : (place + 1) * schedule.batch_size]
                f1 = backbone.of_views(draw_view(pixels[rows], size, views, generator)).cpu()
                if heads is None:
                    heads = OnlineClassifiers(f1.shape[1], n_classes)
                    heads.reset_parameters()
                    optimizer = make_adam(heads.parameters(), optim)
                step = epoch * per_epoch + place
                rate = learning_rate(optim, step, schedule.epochs * per_epoch, per_epoch)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.zero_grad(set_to_none=True)
                loss = online_loss(heads(f1), labels[rows])
                loss.backward()
                optimizer.step()
                total += loss.item()
            report(f"epoch {epoch + 1}/{schedule.epochs}  classifiers {total / per_epoch:.4f}")
    assert heads is not None
    return _score(backbone, heads.eval(), test, schedule)


@torch.no_grad()
def _score(
    backbone: Backbone, heads: OnlineClassifiers, test: ImageSet, schedule: FrozenSchedule
) -> tuple[dict[str, float], int]:
    pixels, labels = torch.from_numpy(test.pixels), torch.from_numpy(test.labels)
    order = torch.arange(len(pixels))
    if schedule.reference_scoring:
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(schedule.seed))
        order = order[: len(order) - len(order) % schedule.batch_size]
        if not len(order):
            raise DataError(f"{len(pixels)} test images cannot fill a batch")
        for rows in list(_batches(order, schedule.batch_size))[:_REFRESHING_BATCHES]:
            backbone.refresh(pixels[rows])
    right = {"linear": 0, "mlp": 0}
    for rows in _batches(order, schedule.batch_size):
        logits = heads(backbone.of_pictures(pixels[rows]).cpu())._asdict()
        for name in right:
            right[name] += int((logits[name].argmax(1) == labels[rows]).sum())
    return {name: count / len(order) for name, count in right.items()}, len(order)


def _batches(order: Tensor, size: int) -> Iterator[Tensor]:
    return iter(order.split(size))
