from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from amdim_training.encoder import EncoderFeatures
from amdim_training.errors import ShapeError
from amdim_training.loss import draw_sources, infomax_loss, nce_scores

Array = npt.NDArray[np.float64]


def naive_task(sources: Array, targets: Array, clip: float) -> tuple[float, float]:
    """The paper's task in loops: (N, D) against (N, D, L) -> loss, mean squared score."""
    n, dim = sources.shape
    locations = targets.shape[2]
    raw = np.array(
        [
            [
                [sources[i] @ targets[j, :, m] / math.sqrt(dim) for m in range(locations)]
                for j in range(n)
            ]
            for i in range(n)
        ]
    )
    clipped = clip * np.tanh(raw / clip)
    losses = []
    for i in range(n):
        negatives = sum(
            math.exp(clipped[i, j, m]) for j in range(n) if j != i for m in range(locations)
        )
        for m in range(locations):
            positive = clipped[i, i, m]
            losses.append(-positive + math.log(math.exp(positive) + negatives))
    return float(np.mean(losses)), float(np.mean(raw**2))


def random_views(n: int, dim: int, *, scale: float = 1.0) -> list[EncoderFeatures]:
    generator = torch.Generator().manual_seed(n)

    def draw(*shape: int) -> torch.Tensor:
        return (scale * torch.randn(*shape, generator=generator)).requires_grad_()

    return [EncoderFeatures(draw(n, dim), draw(n, dim, 5, 5), draw(n, dim, 7, 7)) for _ in range(2)]


@pytest.mark.parametrize(("n", "clip", "scale"), [(2, 20.0, 1.0), (5, 20.0, 3.0), (4, 10.0, 2.0)])
def test_terms_equal_naive_numpy(n: int, clip: float, scale: float) -> None:
    a, b = random_views(n, 12, scale=scale)
    sources = (torch.arange(n) * 7 % 25, torch.arange(n) * 3 % 25)

    terms = infomax_loss(a, b, clip=clip, penalty_weight=0.04, sources=sources)

    def array(tensor: torch.Tensor) -> Array:
        return tensor.detach().double().flatten(2).numpy()

    a5, b5, a7, b7 = array(a.f5), array(b.f5), array(a.f7), array(b.f7)
    a1, b1 = a.f1.detach().double().numpy(), b.f1.detach().double().numpy()
    a_picked = np.stack([a5[i, :, int(k)] for i, k in enumerate(sources[0])])
    b_picked = np.stack([b5[i, :, int(k)] for i, k in enumerate(sources[1])])
    expected, squares = [], 0.0
    for from_a, from_b, of_b, of_a in [
        (a1, b1, b5, a5),
        (a1, b1, b7, a7),
        (a_picked, b_picked, b5, a5),
    ]:
        forth, back = naive_task(from_a, of_b, clip), naive_task(from_b, of_a, clip)
        expected.append((forth[0] + back[0]) / 2)
        squares += (forth[1] + back[1]) / 2
    expected += [0.04 * squares, sum(expected) + 0.04 * squares]
    errors = [abs(got.item() - want) for got, want in zip(terms, expected, strict=True)]
    print(f"worst error {max(errors):.1e}")
    assert max(errors) < 2e-5


def test_batch_of_one_has_no_loss_and_finite_gradients() -> None:
    a, b = random_views(1, 8)

    terms = infomax_loss(a, b)
    terms.total.backward()

    assert [term.item() for term in terms[:3]] == [0, 0, 0]
    assert terms.penalty.item() > 0
    for tensor in (*a, *b):
        assert tensor.grad is not None and torch.isfinite(tensor.grad).all()


def test_large_scores_stay_finite() -> None:
    a, b = random_views(4, 16, scale=100.0)

    terms = infomax_loss(a, b)
    terms.total.backward()

    assert all(torch.isfinite(term) for term in terms)
    assert a.f1.grad is not None and torch.isfinite(a.f1.grad).all()


def test_half_precision_features_are_scored_in_float32() -> None:
    a, b = random_views(3, 8)
    sources = draw_sources(3, device=torch.device("cpu"))
    half = [EncoderFeatures(*(part.bfloat16() for part in view)) for view in (a, b)]
    rounded = [EncoderFeatures(*(part.float() for part in view)) for view in half]

    got = infomax_loss(half[0], half[1], sources=sources)

    assert got.total.dtype == torch.float32
    assert torch.equal(got.total, infomax_loss(rounded[0], rounded[1], sources=sources).total)


def test_drawn_sources_follow_the_generator_and_cover_the_grid() -> None:
    def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return draw_sources(2000, device=torch.device("cpu"), generator=generator)

    first, second = draw(0)
    assert first.equal(draw(0)[0]) and not first.equal(second)
    assert set(first.tolist()) == set(second.tolist()) == set(range(25))


def test_disagreeing_shapes_are_named() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 4\).*\(2, 5, 3\)"):
        nce_scores(torch.zeros(2, 4), torch.zeros(2, 5, 3), clip=20.0)
