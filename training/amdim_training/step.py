"""One training step as a function: two views in, the objective out.

It neither logs nor saves, and steps no optimiser.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from amdim_training.config import LossConfig, Precision
from amdim_training.encoder import EncoderFeatures
from amdim_training.loss import Batch, LossTerms, Sources, infomax_loss
from amdim_training.precision import autocast


def train_step(
    encoder: Callable[[Tensor], EncoderFeatures],
    loss: LossConfig,
    views: tuple[Tensor, Tensor],
    *,
    precision: Precision = "fp32",
    sources: Sources | None = None,
    batch: Batch | None = None,
    mixture: Callable[[Tensor], Tensor] | None = None,
) -> LossTerms:
    """Returns the objective of one pair of batches, ready for `total.backward()`.

    Args:
        encoder: Maps (N, 3, S, S) to EncoderFeatures; each view is a forward pass of its own.
        loss: The objective's constants.
        views: Two (N, 3, S, S) float32 batches, the same images in the same order.
        precision: Of the forward passes; scores are float32 always.
        sources: 5->5 source locations; drawn when not given.
        batch: Where the images are spread over processes (`infomax_loss`).
        mixture: Makes several global vectors of f1 (`infomax_loss`).
    """
    with autocast(views[0].device, precision):
        first, second = encoder(views[0]), encoder(views[1])
    return objective(first, second, loss, sources=sources, batch=batch, mixture=mixture)


def objective(
    first: EncoderFeatures,
    second: EncoderFeatures,
    loss: LossConfig,
    *,
    sources: Sources | None = None,
    batch: Batch | None = None,
    mixture: Callable[[Tensor], Tensor] | None = None,
) -> LossTerms:
    """Returns `infomax_loss` as a configuration has it."""
    return infomax_loss(
        first,
        second,
        clip=loss.score_clip or None,
        penalty_weight=loss.penalty_weight,
        sources=sources,
        tasks=loss.tasks,
        batch=batch,
        mixture=mixture,
        mixture_temperature=loss.mixture_temperature,
    )
