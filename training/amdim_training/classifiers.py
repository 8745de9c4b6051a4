"""The two classifiers trained beside the encoder, on features they cannot change, and their loss.

They say how good the features are while training; knows no encoder, data or optimiser.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOGIT_CLIP = 10.0  # amdim-public's bound on classifier logits
LOGIT_PENALTY = 1e-3  # and its weight on their squares
IGNORED_LABEL = -1
"""The label of an image without one, as STL-10's unlabelled images carry it."""


class ClassifierLogits(NamedTuple):
    """Both classifiers' answers, (N, n_classes) each, unbounded."""

    mlp: Tensor
    linear: Tensor


class MlpHead(nn.Module):
    """Dropout, 1024 hidden units with batch norm, dropout, logits: (N, D) -> (N, n_classes).

    Source: SPEC.md 3.
    """

    def __init__(
        self, embed_dim: int, n_classes: int, *, hidden: int = 1024, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.hidden = nn.Linear(embed_dim, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.output = nn.Linear(hidden, n_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Returns unbounded logits."""
        x = F.dropout(features, self.dropout, self.training)
        x = F.dropout(F.relu(self.norm(self.hidden(x))), self.dropout, self.training)
        logits: Tensor = self.output(x)
        return logits


class OnlineClassifiers(nn.Module):
    """A linear and an MLP classifier of f1: (N, D) -> ClassifierLogits.

    The features are detached here, so that no label ever reaches the encoder.

    Source: SPEC.md 3.
    """

    def __init__(self, embed_dim: int, n_classes: int) -> None:
        super().__init__()
        self.mlp = MlpHead(embed_dim, n_classes)
        self.linear = nn.Linear(embed_dim, n_classes)

    @property
    def n_classes(self) -> int:
        """How many classes the logits name."""
        return self.linear.out_features

    def forward(self, f1: Tensor) -> ClassifierLogits:
        """Returns both heads' logits of (N, D) or (N, D, 1, 1) features."""
        features = f1.detach().flatten(1)
        return ClassifierLogits(self.mlp(features), self.linear(features))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws fresh weights as the reference does before its final evaluation (SPEC.md 3)."""
        for layer in (self.mlp.hidden, self.mlp.output, self.linear):
            layer.reset_parameters()  # uniform, bound 1 / sqrt(fan_in)
        self.mlp.norm.reset_parameters()
        self.mlp.norm.weight.uniform_(0, 1)


def classifier_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns clipped cross-entropy plus a penalty on the logits' squares, one head's scalar loss.

    Args:
        logits: (N, n_classes), any float dtype; the loss is made in float32.
        labels: (N,) int64; rows labelled -1 count in the penalty only. With no other row the
            cross-entropy is 0.

    Source: SPEC.md 3; amdim-public clips as 10 * tanh(logits / 10).
    """
    logits = logits.float()
    clipped = LOGIT_CLIP * torch.tanh(logits / LOGIT_CLIP)
    summed = F.cross_entropy(clipped, labels, ignore_index=IGNORED_LABEL, reduction="sum")
    n_labelled = (labels != IGNORED_LABEL).sum().clamp_min(1)
    return summed / n_labelled + LOGIT_PENALTY * logits.square().mean()


def online_loss(logits: ClassifierLogits, labels: Tensor) -> Tensor:
    """Returns the sum of both heads' losses for (N,) int64 labels."""
    return classifier_loss(logits.mlp, labels) + classifier_loss(logits.linear, labels)
