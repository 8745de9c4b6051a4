"""Exact nearest neighbours by cosine, and the weighted vote that scores vectors untrained.

Knows no encoder and no files: vectors and labels in, neighbours or an accuracy out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from amdim_training.errors import ShapeError


class Neighbors(NamedTuple):
    """The k nearest gallery rows of each query, nearest first.

    Attributes:
        cosines: (Q, k) float32, falling along each row.
        indices: (Q, k) int64 rows of the gallery.
    """

    cosines: Tensor
    indices: Tensor


def nearest_neighbors(
    gallery: Tensor,
    queries: Tensor,
    *,
    k: int,
    chunk: int = 1024,
    block: int = 32_768,
    exclude: Tensor | None = None,
) -> Neighbors:
    """Returns each query's k nearest gallery vectors by cosine, found exactly.

    Args:
        gallery: (N, D) vectors, any length and dtype; a zero vector is at cosine 0 of everything.
        queries: (Q, D) vectors, any length and dtype, on the gallery's device.
        k: How many neighbours; fewer are returned where the gallery holds fewer.
        chunk: Queries scored at once.
        block: Gallery rows scored at once, as float32: temporaries are (chunk, block) and
            (block, D), whatever N is.
        exclude: (Q,) int64, the gallery row that may not answer each query (itself), or none.

    Raises:
        ShapeError: `gallery` and `queries` disagree on D, or a gallery row is to be left out
            where there is only one.
    """
    if gallery.ndim != 2 or queries.ndim != 2 or gallery.shape[1] != queries.shape[1]:
        raise ShapeError(f"gallery {tuple(gallery.shape)} and queries {tuple(queries.shape)}")
    k = min(k, len(gallery) - (exclude is not None))
    if k < 1:
        raise ShapeError(f"no neighbour in a gallery of {len(gallery)}")
    found = Neighbors(
        torch.full((len(queries), k), -torch.inf, device=queries.device),
        torch.zeros(len(queries), k, dtype=torch.int64, device=queries.device),
    )
    for first in range(0, len(gallery), block):
        part = gallery[first : first + block].float()
        # scaling the products spares a normalised copy
        scale = 1.0 / torch.linalg.vector_norm(part, dim=1).clamp_min(1e-12)  # (block,)
        for start in range(0, len(queries), chunk):
            rows = slice(start, start + chunk)
            scores = F.normalize(queries[rows].float(), dim=1) @ part.T  # (chunk, block)
            scores *= scale
            if exclude is not None:
                _hide(scores, exclude[rows] - first)
            _merge(found, rows, scores, first)
    return found


def _hide(scores: Tensor, column: Tensor) -> None:
    """Puts one column of each row out of reach, where it is among these columns at all."""
    here = ((column >= 0) & (column < scores.shape[1])).nonzero().squeeze(1)
    scores[here, column[here]] = -torch.inf


def _merge(found: Neighbors, rows: slice, scores: Tensor, first: int) -> None:
    """Keeps the k best of what was found for these queries and of one block's scores."""
    k = found.cosines.shape[1]
    best, columns = scores.topk(min(k, scores.shape[1]), dim=1)
    cosines = torch.cat([found.cosines[rows], best], dim=1)
    indices = torch.cat([found.indices[rows], columns + first], dim=1)
    found.cosines[rows], order = cosines.topk(k, dim=1)
    found.indices[rows] = indices.gather(1, order)


def knn_predict(
    neighbors: Neighbors, gallery_labels: Tensor, *, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Returns the class each query's first k neighbours vote for, weighted exp(cosine / T).

    Args:
        neighbors: At least k neighbours of each of Q queries.
        gallery_labels: (N,) int64, at least 0.
        k: Neighbours that vote.
        temperature: T of the weights.

    Returns:
        (Q,) int64. A tied vote goes to the lowest class.

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination"
    (arXiv:1805.01978), section 3.4.
    """
    cosines = neighbors.cosines[:, :k]
    # only ratios of weights matter; the shift keeps a small T from overflowing
    weights = ((cosines - cosines[:, :1]) / temperature).exp()
    labels = gallery_labels[neighbors.indices[:, :k]]
    n_classes = int(gallery_labels.max()) + 1
    votes = torch.zeros(len(labels), n_classes, device=weights.device)
    votes.scatter_add_(1, labels, weights)
    return votes.argmax(dim=1)


def knn_accuracy(
    gallery: Tensor,
    gallery_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> float:
    """Returns the share (0..1) of queries whose k nearest gallery vectors vote for their class.

    Args:
        gallery: (N, D) vectors, any length.
        gallery_labels: (N,) int64, at least 0.
        queries: (Q, D) vectors, any length.
        query_labels: (Q,) int64.
        k: Neighbours that vote.
        temperature: T of the votes' weights exp(cosine / T).
        chunk: Queries scored at once.

    Raises:
        ShapeError: The vectors disagree on D, or vectors and labels on their number.
    """
    if len(gallery) != len(gallery_labels) or len(queries) != len(query_labels):
        raise ShapeError("one label is needed for each vector")
    neighbors = nearest_neighbors(gallery, queries, k=k, chunk=chunk)
    predicted = knn_predict(neighbors, gallery_labels, k=k, temperature=temperature)
    return float((predicted == query_labels).float().mean())
