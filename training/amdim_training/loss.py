"""The infomax objective: one view's features must pick out the other view's, among the batch's.

Knows no encoder and no optimiser: features in, five scalars out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from amdim_training.encoder import EncoderFeatures
from amdim_training.errors import ShapeError

Sources = tuple[Tensor, Tensor]


class LossTerms(NamedTuple):
    """The objective's parts, scalars, float32; `total` is the sum of the other four.

    Attributes:
        global_to_5: f1 of a view against f5 of the other, mean of both directions.
        global_to_7: f1 of a view against f7 of the other, mean of both directions.
        five_to_5: One location of f5 against all of the other view's f5.
        penalty: Weighted mean squared raw score, summed over the three tasks.
    """

    global_to_5: Tensor
    global_to_7: Tensor
    five_to_5: Tensor
    penalty: Tensor
    total: Tensor


def clipped_scores(sources: Tensor, targets: Tensor, *, clip: float) -> tuple[Tensor, Tensor]:
    """Score of every source with every location of every image.

    Args:
        sources: (N, D), one vector per image, any float dtype; scores are made in float32.
        targets: (N, D, L), L locations per image of the other view.
        clip: Bound c in logits; scores become c * tanh(score / c).

    Returns:
        (N, N, L) float32, source image by target image by location, and the scalar mean of
        squared raw scores.

    Raises:
        ShapeError: `sources` and `targets` disagree on N or D.

    Source: SPEC.md 2.1, steps 1 to 3.
    """
    n, dim = sources.shape
    if targets.shape[:2] != (n, dim):
        raise ShapeError(f"sources {tuple(sources.shape)} and targets {tuple(targets.shape)}")
    locations = targets.shape[2]
    # (N, D, L) -> (D, N * L): one matrix product scores every source against every location
    columns = targets.float().permute(1, 0, 2).reshape(dim, n * locations)
    raw = (sources.float() @ columns).mul(1.0 / math.sqrt(dim))  # (N, N * L)
    return (clip * torch.tanh(raw / clip)).view(n, n, locations), raw.square().mean()


def nce_scores(sources: Tensor, targets: Tensor, *, clip: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each positive location against the other images' locations.

    Image i's own other locations are neither positive nor negative.

    Args:
        sources: (N, D), one vector per image, any float dtype; scores are made in float32.
        targets: (N, D, L), L locations per image of the other view.
        clip: Bound c in logits; scores become c * tanh(score / c).

    Returns:
        (N, L) log-probabilities, each at most 0, and the scalar mean of squared raw scores.

    Raises:
        ShapeError: `sources` and `targets` disagree on N or D.

    Source: AMDIM (arXiv:1906.00910) section 3.3; SPEC.md 2.1.
    """
    by_image, mean_square = clipped_scores(sources, targets, clip=clip)  # (N, N, L)
    n = len(by_image)
    positives = by_image.diagonal(dim1=0, dim2=1).T  # (L, N) -> (N, L)
    own = torch.eye(n, dtype=torch.bool, device=by_image.device).unsqueeze(2)
    # |score| <= clip, so -inf leaves a sum over the other images' locations only
    negatives = by_image.masked_fill(own, -math.inf).flatten(1)
    spread = torch.logsumexp(negatives, dim=1, keepdim=True)  # (N, 1), shared by all locations
    return positives - torch.logaddexp(positives, spread), mean_square


def draw_sources(
    n: int, *, device: torch.device, generator: torch.Generator | None = None
) -> Sources:
    """Draws the 5x5 location each image's 5->5 source is taken from: two (N,) int64, row-major.

    View a's are drawn before view b's, as in the reference (SPEC.md 2.2).
    """
    where = generator.device if generator is not None else device
    first = torch.randint(25, (n,), device=where, generator=generator)
    second = torch.randint(25, (n,), device=where, generator=generator)
    return first.to(device), second.to(device)


def infomax_loss(
    view_a: EncoderFeatures,
    view_b: EncoderFeatures,
    *,
    clip: float = 20.0,
    penalty_weight: float = 0.05,
    sources: Sources | None = None,
) -> LossTerms:
    """Returns the AMDIM objective of two views of the same N images.

    Args:
        view_a: Features of the first view, N images in the same order as `view_b`.
        view_b: Features of the second view.
        clip: Score bound in logits.
        penalty_weight: Weight of the mean squared raw score of each task.
        sources: For views a and b, (N,) row-major indices 0..24 into the 5x5 grid; drawn
            uniformly when not given.

    Raises:
        ShapeError: The views disagree on N, or on D with each other.

    Source: AMDIM (arXiv:1906.00910); SPEC.md 2.2. A batch of one image has loss 0.
    """
    n = view_a.f1.shape[0]
    index_a, index_b = sources or draw_sources(n, device=view_a.f1.device)
    a5, b5 = view_a.f5.flatten(2), view_b.f5.flatten(2)  # (N, D, 25)
    a7, b7 = view_a.f7.flatten(2), view_b.f7.flatten(2)  # (N, D, 49)

    def task(a: Tensor, b: Tensor, targets_b: Tensor, targets_a: Tensor) -> tuple[Tensor, Tensor]:
        forth, forth_square = nce_scores(a, targets_b, clip=clip)
        back, back_square = nce_scores(b, targets_a, clip=clip)
        return -(forth.mean() + back.mean()) / 2, (forth_square + back_square) / 2

    to_5, square_to_5 = task(view_a.f1, view_b.f1, b5, a5)
    to_7, square_to_7 = task(view_a.f1, view_b.f1, b7, a7)
    within, square_within = task(_pick(a5, index_a), _pick(b5, index_b), b5, a5)
    penalty = penalty_weight * (square_to_5 + square_to_7 + square_within)
    return LossTerms(to_5, to_7, within, penalty, to_5 + to_7 + within + penalty)


def _pick(locals_: Tensor, index: Tensor) -> Tensor:
    """Returns one location per image: (N, D, L), (N,) -> (N, D)."""
    n, dim, _ = locals_.shape
    return locals_.gather(2, index.view(n, 1, 1).expand(n, dim, 1)).squeeze(2)
