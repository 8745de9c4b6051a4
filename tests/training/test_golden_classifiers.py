from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amdim_training.classifiers import OnlineClassifiers, classifier_loss, online_loss
from amdim_training.golden import compare_classifier_loss


def test_loss_and_gradient_are_the_recorded_ones(shared_dir: Path) -> None:
    comparisons = list(compare_classifier_loss(shared_dir / "amdim" / "golden"))

    for comparison in comparisons:
        print(f"{comparison.quantity} {comparison.error:.2e}, allowed {comparison.tolerance}")
    assert all(comparison.holds for comparison in comparisons)


def test_batch_without_labels_costs_the_penalty_only() -> None:
    logits = torch.randn(4, 3, requires_grad=True)

    loss = classifier_loss(logits, torch.full((4,), -1))
    loss.backward()

    assert loss.item() == pytest.approx(1e-3 * logits.square().mean().item())
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_no_gradient_reaches_the_features() -> None:
    features = torch.randn(6, 8, requires_grad=True)
    classifiers = OnlineClassifiers(8, 3)

    online_loss(classifiers(features), torch.arange(6) % 3).backward()

    assert features.grad is None
    assert all(parameter.grad is not None for parameter in classifiers.parameters())


def test_classifiers_learn_separable_features() -> None:
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    features = torch.eye(3)[labels] + 0.1 * torch.randn(60, 3)
    classifiers = OnlineClassifiers(3, 3)
    optimizer = torch.optim.Adam(classifiers.parameters(), lr=0.03)

    for _ in range(25):
        optimizer.zero_grad()
        online_loss(classifiers(features), labels).backward()
        optimizer.step()

    classifiers.eval()
    for logits in classifiers(features):
        assert (logits.argmax(dim=1) == labels).float().mean() > 0.95


def test_reset_follows_the_reference_rule() -> None:
    torch.manual_seed(0)
    classifiers = OnlineClassifiers(16, 5)
    before = classifiers.linear.weight.clone()

    classifiers.reset_parameters()

    assert not torch.equal(before, classifiers.linear.weight)
    assert classifiers.linear.weight.abs().max() <= 1 / 16**0.5
    assert 0 <= classifiers.mlp.norm.weight.min() < 0.1
    assert 0.9 < classifiers.mlp.norm.weight.max() <= 1
    assert classifiers.mlp.norm.bias.eq(0).all()
