"""Classifiers that learn beside the encoder: what its global features are worth, update by update.

They see detached features, so no label reaches the encoder, and have an optimiser of their own,
which for Adam is the same as sharing the encoder's.

Source: SPEC.md 3.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from amdim_training.classifiers import IGNORED_LABEL, OnlineClassifiers, online_loss
from amdim_training.config import OptimConfig
from amdim_training.errors import ConfigError
from amdim_training.optimizer import make_adam, optimizer_tensors, restore_optimizer

PREFIX = "classifiers."


class ClassifierTrainer:
    """A linear and an MLP classifier of f1 and their optimiser.

    Args:
        embed_dim: D.
        labels: (N,) int64 labels of all training images, -1 where there is none.
        optim: The encoder's: rate, betas and decay are the same.
        device: Where the features are.

    Raises:
        ConfigError: No image has a label.
    """

    def __init__(
        self, embed_dim: int, labels: Tensor, optim: OptimConfig, device: torch.device
    ) -> None:
        if int(labels.max()) == IGNORED_LABEL:
            raise ConfigError("data.classifiers needs labelled images; these have no labels")
        self.heads = OnlineClassifiers(embed_dim, int(labels.max()) + 1).to(device)
        self.optimizer = make_adam(self.heads.parameters(), optim)
        self._labels = labels.to(device)

    def update(self, f1: tuple[Tensor, Tensor], indices: Tensor, rate: float) -> dict[str, Tensor]:
        """Makes one update on both views; returns loss and accuracies as scalars.

        Args:
            f1: Both views' (N, D) global features.
            indices: (N,) int64 places of the images among the labels.
            rate: The learning rate.
        """
        labels = self._labels[indices].repeat(2)
        self.heads.train()
        logits = self.heads(torch.cat(f1).float())
        loss = online_loss(logits, labels)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        known = labels != IGNORED_LABEL
        count = known.sum().clamp_min(1)
        with torch.no_grad():
            right = [((part.argmax(1) == labels) & known).sum() / count for part in logits]
        return {"classifiers": loss.detach(), "mlp_accuracy": right[0], "linear_accuracy": right[1]}

    def state(self) -> dict[str, Tensor]:
        """Returns weights and optimiser state as named tensors."""
        own = {PREFIX + key: value.cpu() for key, value in self.heads.state_dict().items()}
        return own | optimizer_tensors(self.optimizer, self._named())

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts back what `state` returned; without it the classifiers start afresh."""
        own = {
            key.removeprefix(PREFIX): value
            for key, value in tensors.items()
            if key.startswith(PREFIX)
        }
        if own:
            self.heads.load_state_dict(own)
            restore_optimizer(self.optimizer, self._named(), tensors)

    def _named(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(PREFIX + name, value) for name, value in self.heads.named_parameters()]
