"""Mixture-based representations: several global vectors an image, the fitting one predicts.

The paper describes them (section 3.7) and the public program never had them. What the paper
leaves open is chosen here: the posterior carries no gradient; its temperature and the entropy's
weight are each other's inverse, for then the posterior is the one that maximises the objective;
entropy is per location; one network makes all mixture features. Knows no encoder.

Source: SPEC.md 8.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MixtureHead(nn.Module):
    """f1 to k mixture features: (N, D) -> (N, k, D), one ReLU layer beside a residual.

    The last layer starts small, so that the features begin close to f1 yet apart from each other.
    """

    def __init__(self, embed_dim: int, count: int, *, hidden: int = 0) -> None:
        super().__init__()
        self.count = count
        self.hidden = nn.Linear(embed_dim, hidden or embed_dim)
        self.output = nn.Linear(hidden or embed_dim, count * embed_dim)
        with torch.no_grad():
            self.output.weight.mul_(0.1)

    def forward(self, f1: Tensor) -> Tensor:
        """Returns the mixture features, (N, k, D) float32."""
        f1 = f1.float()
        changes: Tensor = self.output(torch.relu(self.hidden(f1)))
        return f1.unsqueeze(1) + changes.view(len(f1), self.count, f1.shape[1])


def mixture_objective(scores: Tensor, *, temperature: float) -> Tensor:
    """Expected log-probability under the posterior over mixtures, plus the posterior's entropy.

    Args:
        scores: (N, L, k) log-probability of each location from each mixture feature.
        temperature: T; the posterior is softmax(scores / T) and its entropy weighs T.

    Returns:
        (N, L); with one mixture feature, its score.
    """
    log_posterior = torch.log_softmax(scores.detach() / temperature, dim=2)
    posterior = log_posterior.exp()
    entropy = -(posterior * log_posterior).sum(dim=2)
    return (posterior * scores).sum(dim=2) + temperature * entropy
