from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from amdim_training.errors import ShapeError
from amdim_training.probes import (
    LinearSchedule,
    MlpSchedule,
    fit_linear,
    fit_mlp,
    probe_accuracy,
)


def clusters(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three noisy clusters, one coordinate far larger than the rest and useless."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    features = torch.eye(3)[labels] + 0.2 * torch.randn(n, 3, generator=generator)
    useless = 1000 + 500 * torch.randn(n, 1, generator=generator)
    return torch.cat([features, useless], dim=1), labels


@pytest.mark.parametrize(
    "fit",
    [fit_linear, lambda x, y: fit_mlp(x, y, schedule=MlpSchedule(min_steps=50, batch_size=50))],
)
def test_probe_learns_what_the_features_hold(fit: Callable[..., Any]) -> None:
    predict = fit(*clusters(300, seed=0))

    features, labels = clusters(300, seed=1)
    assert probe_accuracy(predict, features, labels) > 0.95


def test_linear_probe_reaches_the_optimum() -> None:
    features, labels = clusters(200, seed=0)
    few = fit_linear(features, labels, schedule=LinearSchedule(iterations=60))
    many = fit_linear(features, labels, schedule=LinearSchedule(iterations=500, tolerance=1e-9))

    assert few(features).equal(many(features))


def test_linear_probe_descends_the_stated_loss_over_all_rows() -> None:
    features, labels = clusters(9000, seed=0)  # more than one block
    x = (features - features.mean(dim=0)) / features.std(dim=0)
    weight = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        descent.zero_grad()
        logits = x.double() @ weight.T + bias
        total = torch.nn.functional.cross_entropy(logits, labels) + 5e-4 * weight.square().sum()
        total.backward()
        return total

    descent.step(loss)
    expected = (x.double() @ weight.T + bias).argmax(dim=1)

    agreement = (fit_linear(features, labels)(features) == expected).float().mean()
    assert agreement > 0.999


def test_mlp_probe_repeats_itself_and_leaves_the_random_state_alone() -> None:
    features, labels = clusters(60, seed=0)
    schedule = MlpSchedule(epochs=2, min_steps=0, batch_size=20, precision="fp32")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)

    first = fit_mlp(features, labels, schedule=schedule)(features)

    assert torch.rand(1).equal(expected)
    assert fit_mlp(features, labels, schedule=schedule)(features).equal(first)


def test_mismatched_labels_are_refused() -> None:
    with pytest.raises(ShapeError, match="labels"):
        fit_linear(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))
