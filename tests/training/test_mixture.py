import math

import pytest
import torch

from amdim_training.encoder import EncoderFeatures
from amdim_training.loss import infomax_loss
from amdim_training.mixture import MixtureHead, mixture_objective


def test_one_mixture_feature_scores_as_itself() -> None:
    scores = -torch.rand(3, 5, 1)
    torch.testing.assert_close(mixture_objective(scores, temperature=0.7), scores.squeeze(2))


def test_the_objective_is_the_best_any_posterior_reaches() -> None:
    scores = -3 * torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(0))
    value = mixture_objective(scores, temperature=0.5)
    # its maximum over posteriors in closed form: T log sum exp(s / T)
    torch.testing.assert_close(value, 0.5 * torch.logsumexp(scores / 0.5, dim=2))
    for seed in range(20):
        q = torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(seed)).softmax(2)
        other = (q * scores).sum(2) - 0.5 * (q * q.log()).sum(2)
        assert (other <= value + 1e-6).all()


def test_the_gradient_is_the_posterior() -> None:
    scores = (-torch.rand(1, 1, 3)).requires_grad_()
    mixture_objective(scores, temperature=2.0).sum().backward()
    torch.testing.assert_close(scores.grad, (scores / 2.0).softmax(2).detach())


def test_features_begin_near_the_global_vector_and_apart() -> None:
    torch.manual_seed(0)
    f1 = torch.randn(8, 16)
    features = MixtureHead(16, 4)(f1)
    assert features.shape == (8, 4, 16)
    changes = (features - f1.unsqueeze(1)).norm(dim=2)
    assert (changes < 0.5 * f1.norm(dim=1, keepdim=True)).all()
    assert (features[:, 0] - features[:, 1]).norm(dim=1).min() > 0


def test_the_loss_takes_mixtures_for_global_sources_only() -> None:
    torch.manual_seed(0)
    a, b = (
        EncoderFeatures(torch.randn(4, 16), torch.randn(4, 16, 5, 5), torch.randn(4, 16, 7, 7))
        for _ in range(2)
    )
    sources = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    plain = infomax_loss(a, b, sources=sources)

    def copies(f1: torch.Tensor) -> torch.Tensor:
        return f1.unsqueeze(1).expand(-1, 3, -1)

    mixed = infomax_loss(a, b, sources=sources, mixture=copies, mixture_temperature=0.5)
    assert mixed.five_to_5.item() == plain.five_to_5.item()
    # k equal features: the score, and the entropy of an undecided posterior
    expected = plain.global_to_7.item() - 0.5 * math.log(3)
    assert mixed.global_to_7.item() == pytest.approx(expected, abs=1e-4)
