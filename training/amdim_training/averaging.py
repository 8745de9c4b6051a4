"""An exponential moving average of an encoder's weights, with batch norms to match.

Averaged weights see other activations than the ones whose statistics were recorded, so their
batch norms are recomputed on training images before use. Knows no files and no schedule.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from amdim_training.encoder import AmdimEncoder


class WeightAverage:
    """The running average of an encoder's parameters.

    Args:
        encoder: Where the average starts.
        decay: Share of the old average kept at each update, in 0..1.
    """

    def __init__(self, encoder: AmdimEncoder, decay: float) -> None:
        self.decay = decay
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.updates = 0

    @torch.no_grad()
    def update(self, encoder: AmdimEncoder) -> None:
        """Moves the average towards the encoder's present weights.

        Early on the average is a plain mean, so that fresh weights do not linger in it.
        """
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 9))
        averages: list[Tensor] = list(self.encoder.parameters())
        weights: list[Tensor] = list(encoder.parameters())
        torch._foreach_lerp_(averages, weights, 1.0 - decay)

    def refresh_norms(self, views: Iterable[Tensor]) -> AmdimEncoder:
        """Recomputes the batch norms' statistics as plain means over batches of views.

        Args:
            views: Normalised (N, 3, S, S) batches of training images; at least one.

        Returns:
            The averaged encoder, in evaluation mode.
        """
        recompute_norms(self.encoder, views)
        return self.encoder.eval()


@torch.no_grad()
def recompute_norms(encoder: nn.Module, views: Iterable[Tensor]) -> None:
    """Replaces every batch norm's running statistics by means over batches of views."""
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    encoder.train()
    for view in views:
        encoder(view)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
