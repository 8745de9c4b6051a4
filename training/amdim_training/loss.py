"""The infomax objective: one view's features must pick out the other view's, among the batch's.

Knows no encoder and no optimiser: features in, five scalars out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from amdim_training.config import Task
from amdim_training.encoder import EncoderFeatures
from amdim_training.errors import ShapeError
from amdim_training.mixture import mixture_objective

Sources = tuple[Tensor, Tensor]
TASKS: tuple[Task, ...] = ("1to5", "1to7", "5to5")


class Batch(Protocol):
    """The images a loss spans, of which this process holds some (`distributed.GlobalBatch`)."""

    @property
    def rank(self) -> int:
        """This process's place: its n images are number rank * n and on."""
        ...

    def gather(self, tensor: Tensor) -> Tensor:
        """Returns every process's (n, ...) rows as (N, ...), gradients passing through."""
        ...


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


def clipped_scores(
    sources: Tensor, targets: Tensor, *, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Score of every source with every location of every image.

    Args:
        sources: (n, D), one vector per image, any float dtype; scores are made in float32.
        targets: (N, D, L), L locations per image of the other view.
        clip: Bound c in logits; scores become c * tanh(score / c). None leaves them unbounded.

    Returns:
        (n, N, L) float32, source image by target image by location, and the scalar mean of
        squared raw scores.

    Raises:
        ShapeError: `sources` and `targets` disagree on D.

    Source: SPEC.md 2.1, steps 1 to 3.
    """
    dim = sources.shape[1]
    n, target_dim, locations = targets.shape
    if target_dim != dim:
        raise ShapeError(f"sources {tuple(sources.shape)} and targets {tuple(targets.shape)}")
    # (N, D, L) -> (D, N * L): one matrix product scores every source against every location
    columns = targets.float().permute(1, 0, 2).reshape(dim, n * locations)
    raw = (sources.float() @ columns).mul(1.0 / math.sqrt(dim))  # (n, N * L)
    scores = raw if clip is None else clip * torch.tanh(raw / clip)
    return scores.view(len(sources), n, locations), raw.square().mean()


def nce_scores(
    sources: Tensor, targets: Tensor, *, clip: float | None, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Log-probability of each positive location against the other images' locations.

    Image i's own other locations are neither positive nor negative.

    Args:
        sources: (n, D), one vector per image, any float dtype; scores are made in float32.
        targets: (N, D, L), L locations per image of the other view, N at least first + n.
        clip: Bound c in logits; scores become c * tanh(score / c). None leaves them unbounded.
        first: Which of the N images source 0 is of.

    Returns:
        (n, L) log-probabilities, each at most 0, and the scalar mean of squared raw scores.

    Raises:
        ShapeError: `sources` and `targets` disagree on D, or a source has no positive.

    Source: AMDIM (arXiv:1906.00910) section 3.3; SPEC.md 2.1.
    """
    if len(targets) < first + len(sources):
        raise ShapeError(f"{len(sources)} sources from {first} on and {len(targets)} targets")
    by_image, mean_square = clipped_scores(sources, targets, clip=clip)  # (n, N, L)
    positives = by_image.diagonal(first, dim1=0, dim2=1).T  # (L, n) -> (n, L)
    place = torch.arange(len(sources), device=by_image.device).unsqueeze(1)
    own = place + first == torch.arange(len(targets), device=by_image.device)
    # -inf leaves a sum over the other images' locations only
    negatives = by_image.masked_fill(own.unsqueeze(2), -math.inf).flatten(1)
    spread = torch.logsumexp(negatives, dim=1, keepdim=True)  # (n, 1), shared by all locations
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
    clip: float | None = 20.0,
    penalty_weight: float = 0.05,
    sources: Sources | None = None,
    tasks: Sequence[Task] = TASKS,
    batch: Batch | None = None,
    mixture: Callable[[Tensor], Tensor] | None = None,
    mixture_temperature: float = 1.0,
) -> LossTerms:
    """Returns the AMDIM objective of two views of the same N images.

    Args:
        view_a: Features of the first view, N images in the same order as `view_b`.
        view_b: Features of the second view.
        clip: Score bound in logits; None leaves scores unbounded.
        penalty_weight: Weight of the mean squared raw score of each task.
        sources: For views a and b, (N,) row-major indices 0..24 into the 5x5 grid; drawn
            uniformly when not given.
        tasks: Which predictions count; the others' terms are 0.
        batch: Where the images are spread over processes: each process's sources then meet
            every process's targets, and the mean of their losses is one process's on the whole.
        mixture: Makes several global vectors of f1, of which the fitting one predicts; None
            takes f1 itself.
        mixture_temperature: Of the posterior over them.

    Raises:
        ShapeError: The views disagree on N, or on D with each other.

    Source: AMDIM (arXiv:1906.00910); SPEC.md 2.2. A batch of one image has loss 0.
    """
    n = view_a.f1.shape[0]
    if view_b.f1.shape[0] != n:
        raise ShapeError(f"views of {n} and {view_b.f1.shape[0]} images")
    index_a, index_b = sources or draw_sources(n, device=view_a.f1.device)
    first = batch.rank * n if batch else 0
    gather = batch.gather if batch else _unchanged

    def one_way(source: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (n, L) log-probabilities and the mean squared score; sources may be several."""
        if source.ndim == 2:
            return nce_scores(source, targets, clip=clip, first=first)
        each = [nce_scores(part, targets, clip=clip, first=first) for part in source.unbind(dim=1)]
        scores = torch.stack([scores for scores, _ in each], dim=2)  # (n, L, k)
        square = torch.stack([square for _, square in each]).mean()
        return mixture_objective(scores, temperature=mixture_temperature), square

    def score(task: Task) -> tuple[Tensor, Tensor]:
        """Returns a task's loss and mean squared score, means of both directions."""
        local_a, local_b = (view_a.f7, view_b.f7) if task == "1to7" else (view_a.f5, view_b.f5)
        local_a, local_b = local_a.flatten(2), local_b.flatten(2)  # (n, D, L)
        if task == "5to5":
            a, b = _pick(local_a, index_a), _pick(local_b, index_b)
        else:
            a, b = global_a, global_b
        forth, forth_square = one_way(a, gather(local_b))
        back, back_square = one_way(b, gather(local_a))
        return -(forth.mean() + back.mean()) / 2, (forth_square + back_square) / 2

    global_a, global_b = (
        view.f1 if mixture is None else mixture(view.f1) for view in (view_a, view_b)
    )
    zero = view_a.f1.new_zeros((), dtype=torch.float32)
    scored = {task: score(task) for task in TASKS if task in tasks}
    to_5, to_7, within = (scored[task][0] if task in scored else zero for task in TASKS)
    penalty = penalty_weight * sum((square for _, square in scored.values()), zero)
    return LossTerms(to_5, to_7, within, penalty, to_5 + to_7 + within + penalty)


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _pick(locals_: Tensor, index: Tensor) -> Tensor:
    """Returns one location per image: (N, D, L), (N,) -> (N, D)."""
    n, dim, _ = locals_.shape
    return locals_.gather(2, index.view(n, 1, 1).expand(n, dim, 1)).squeeze(2)
