"""SimCLR's and MoCo's objectives, plainly from their papers, on AMDIM's encoder.

Both see the global vector only, through a projection head that is thrown away afterwards.
Sources: SimCLR, arXiv:2002.05709, Algorithm 1; MoCo, arXiv:1911.05722, Algorithm 1, with the
head of MoCo v2, arXiv:2003.04297.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amdim_training.config import LossConfig
from amdim_training.encoder import AmdimEncoder, EncoderFeatures
from amdim_training.step import objective

PROJECTION = 128

Views = tuple[Tensor, Tensor]
Targets = tuple[Tensor, ...]


class Objective(nn.Module):
    """A loss over two views, with whatever it trains beside the encoder."""

    def forward(self, first: EncoderFeatures, second: EncoderFeatures, targets: Targets) -> Tensor:
        """Returns the scalar loss, in float32, of the encoder's features of both views."""
        raise NotImplementedError

    def targets(self, views: Views) -> Targets:
        """Returns a second encoder's (N, D) vectors of both views, where there is one.

        Called under the encoder's precision, so that a second encoder costs what the first does.
        """
        return ()

    @torch.no_grad()
    def after_update(self, encoder: AmdimEncoder) -> None:
        """Called once the weights have moved."""


class Amdim(Objective):
    """The infomax objective."""

    def forward(self, first: EncoderFeatures, second: EncoderFeatures, targets: Targets) -> Tensor:
        """Returns the objective's total."""
        return objective(first, second, LossConfig()).total


class SimCLR(Objective):
    """NT-Xent: a view's positive is its picture's other view, all others of the batch negatives."""

    def __init__(self, dim: int, temperature: float = 0.5) -> None:
        super().__init__()
        self.head, self.temperature = projection_head(dim), temperature

    def forward(self, first: EncoderFeatures, second: EncoderFeatures, targets: Targets) -> Tensor:
        """Returns NT-Xent over both views."""
        n = len(first.f1)
        z = F.normalize(self.head(torch.cat([first.f1, second.f1]).float()), dim=1)  # (2N, P)
        scores = (z @ z.T / self.temperature).fill_diagonal_(-torch.inf)
        positive = torch.arange(2 * n, device=z.device).roll(n)
        return F.cross_entropy(scores, positive)


class MoCo(Objective):
    """A query's positive is the slow encoder's vector of the other view, a queue the negatives."""

    queue: Tensor

    def __init__(
        self,
        encoder: AmdimEncoder,
        *,
        temperature: float = 0.2,
        momentum: float = 0.99,
        queue: int = 4096,
    ) -> None:
        super().__init__()
        dim = encoder.config.embed_dim
        self.temperature, self.momentum = temperature, momentum
        self.head = projection_head(dim)
        self.slow_head = copy.deepcopy(self.head).requires_grad_(False)
        self.slow = copy.deepcopy(encoder).requires_grad_(False).train()
        self.register_buffer("queue", F.normalize(torch.randn(queue, PROJECTION), dim=1))

    def forward(self, first: EncoderFeatures, second: EncoderFeatures, targets: Targets) -> Tensor:
        """Returns the mean of both directions; the queue takes this batch's keys."""
        with torch.no_grad():
            keys = [F.normalize(self.slow_head(f1.float()), dim=1) for f1 in targets]
        losses = [
            self._contrast(features.f1, key)
            for features, key in ((first, keys[1]), (second, keys[0]))
        ]
        with torch.no_grad():
            joined = torch.cat([*keys, self.queue])
            self.queue = joined[: len(self.queue)]  # the oldest fall off
        return (losses[0] + losses[1]) / 2

    @torch.no_grad()
    def targets(self, views: Views) -> Targets:
        """Returns the slow encoder's global vectors."""
        return tuple(self.slow(view).f1 for view in views)

    @torch.no_grad()
    def after_update(self, encoder: AmdimEncoder) -> None:
        """Lets the slow encoder follow."""
        pairs = (encoder.parameters(), self.slow.parameters())
        heads = (self.head.parameters(), self.slow_head.parameters())
        for fast, slow in (pairs, heads):
            torch._foreach_lerp_(list(slow), list(fast), 1.0 - self.momentum)

    def _contrast(self, f1: Tensor, keys: Tensor) -> Tensor:
        query = F.normalize(self.head(f1.float()), dim=1)  # (N, P)
        positive = (query * keys).sum(dim=1, keepdim=True)
        scores = torch.cat([positive, query @ self.queue.T], dim=1) / self.temperature
        return F.cross_entropy(scores, scores.new_zeros(len(scores), dtype=torch.long))


def projection_head(dim: int) -> nn.Sequential:
    """Returns the two layers between the vector that is kept and the one that is contrasted."""
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, PROJECTION))


def trained_parameters(encoder: AmdimEncoder, loss: Objective) -> Iterator[nn.Parameter]:
    """Yields what the optimiser moves."""
    yield from encoder.parameters()
    yield from (value for value in loss.parameters() if value.requires_grad)
