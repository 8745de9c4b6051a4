"""Classifiers fitted to frozen, cached features: the linear and MLP scores of an encoder.

Every image is encoded once, without augmentation, so that a probe takes seconds to minutes where
the original's protocol encodes a fresh view in every epoch. Knows no encoder and no files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amdim_training.classifiers import MlpHead, classifier_loss
from amdim_training.config import Precision
from amdim_training.errors import ShapeError
from amdim_training.precision import autocast, choose_precision

Predict = Callable[[Tensor], Tensor]

_BLOCK = 8192  # rows whose logits are made at once


@dataclasses.dataclass(frozen=True, slots=True)
class LinearSchedule:
    """Multinomial logistic regression by L-BFGS on standardised features, the whole set a step."""

    iterations: int = 100
    l2: float = 1e-3
    """Weight of half the squared weights beside the mean cross-entropy."""
    tolerance: float = 1e-6
    """Iterations end where one changes the loss by less."""


@dataclasses.dataclass(frozen=True, slots=True)
class MlpSchedule:
    """The MLP head and loss of SPEC.md 3 by Adam, cosine decay to zero, standardised features."""

    epochs: int = 20
    min_steps: int = 300
    """Small sets get more epochs, so that there are so many updates."""
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    seed: int = 0
    precision: Precision = "auto"
    """Of the layers' products while training; `auto` takes the faster of fp32 and bf16 here."""


def fit_linear(
    features: Tensor, labels: Tensor, *, schedule: LinearSchedule | None = None
) -> Predict:
    """Fits a linear classifier and returns what predicts classes with it.

    Args:
        features: (N, F) float32.
        labels: (N,) int64, 0..classes-1.
        schedule: Defaults to `LinearSchedule()`.

    Returns:
        A function of (M, F) features that gives (M,) int64 classes.

    Raises:
        ShapeError: One label is needed for each row.
    """
    schedule = schedule or LinearSchedule()
    standardise, n_classes = _prepare(features, labels)
    x = standardise(features)
    layer = nn.Linear(features.shape[1], n_classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(
        layer.parameters(),
        max_iter=schedule.iterations,
        tolerance_change=schedule.tolerance,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = schedule.l2 / 2 * layer.weight.square().sum()
        loss.backward()
        total = loss.detach()
        # the same sum in blocks, whose logits stay near the processor: a third faster
        for rows, targets in zip(x.split(_BLOCK), labels.split(_BLOCK), strict=True):
            part = F.cross_entropy(layer(rows), targets, reduction="sum") / len(x)
            part.backward()
            total += part.detach()
        return total

    optimizer.step(closure)
    return _predictor(layer, standardise)


def fit_mlp(features: Tensor, labels: Tensor, *, schedule: MlpSchedule | None = None) -> Predict:
    """Fits the MLP head and returns what predicts classes with it; arguments as `fit_linear`."""
    schedule = schedule or MlpSchedule()
    standardise, n_classes = _prepare(features, labels)
    x, n = standardise(features), len(features)
    batch = min(schedule.batch_size, n)
    with torch.random.fork_rng(devices=[]):
        _, trial = _mlp_update(MlpHead(features.shape[1], n_classes), x, labels, schedule)
        few = torch.arange(batch)
        precision = choose_precision(schedule.precision, lambda choice: trial(few, choice))
        torch.manual_seed(schedule.seed)
        head = MlpHead(features.shape[1], n_classes)
        optimizer, update = _mlp_update(head, x, labels, schedule)
        per_epoch = n // batch  # a rest smaller than a batch waits for the next shuffle
        epochs = max(schedule.epochs, -(-schedule.min_steps // per_epoch))
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per_epoch)
        for _ in range(epochs):
            for rows in torch.randperm(n)[: per_epoch * batch].split(batch):
                update(rows, precision)
                decay.step()
    return _predictor(head.eval(), standardise)


def _mlp_update(
    head: MlpHead, x: Tensor, labels: Tensor, schedule: MlpSchedule
) -> tuple[torch.optim.Adam, Callable[[Tensor, Precision], None]]:
    """Returns an optimiser of a head and what makes one update with it, on rows of x."""
    optimizer = torch.optim.Adam(
        head.parameters(),
        lr=schedule.learning_rate,
        weight_decay=schedule.weight_decay,
        fused=True,
    )

    def update(rows: Tensor, precision: Precision) -> None:
        optimizer.zero_grad()
        with autocast(x.device, precision):
            logits = head(x[rows])
        classifier_loss(logits, labels[rows]).backward()
        optimizer.step()

    return optimizer, update


def probe_accuracy(predict: Predict, features: Tensor, labels: Tensor) -> float:
    """Returns the share (0..1) of rows whose predicted class is their label."""
    return float((predict(features) == labels).float().mean())


def _prepare(features: Tensor, labels: Tensor) -> tuple[Predict, int]:
    """Returns what standardises features as the training rows are, and the number of classes."""
    if features.ndim != 2 or len(features) != len(labels):
        raise ShapeError(f"features {tuple(features.shape)} and {len(labels)} labels")
    mean = features.mean(dim=0)
    deviation = features.std(dim=0).clamp_min(1e-6)
    return lambda rows: (rows - mean) / deviation, int(labels.max()) + 1


def _predictor(model: nn.Module, standardise: Predict, *, chunk: int = _BLOCK) -> Predict:
    @torch.inference_mode()
    def predict(features: Tensor) -> Tensor:
        parts = [model(standardise(rows)).argmax(dim=1) for rows in features.split(chunk)]
        return torch.cat(parts)

    return predict
