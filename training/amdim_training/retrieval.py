"""Search quality: does a query's neighbourhood hold what it should? recall@k and mAP.

Knows no encoder and no files: vectors and labels in, scores out. Two images belong together when
their labels agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from amdim_training.errors import ShapeError
from amdim_training.knn import Neighbors, nearest_neighbors


class RetrievalScores(NamedTuple):
    """What a search over a gallery answered.

    Attributes:
        recall_at: By k, the share (0..1) of queries with an image of theirs among the first k.
        mean_average_precision: Over the whole ranking, 0..1; None where it was not asked for.
        queries: How many queries counted: those the gallery holds an answer to.
    """

    recall_at: dict[int, float]
    mean_average_precision: float | None
    queries: int


def retrieval_scores(
    gallery: Tensor,
    gallery_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    ks: Sequence[int] = (1, 5),
    leave_self_out: bool = False,
    average_precision: bool = True,
    neighbors: Neighbors | None = None,
) -> RetrievalScores:
    """Ranks a gallery by cosine for every query.

    Args:
        gallery: (N, D) vectors, any length.
        gallery_labels: (N,) int64.
        queries: (Q, D) vectors, any length.
        query_labels: (Q,) int64.
        ks: The k of recall@k.
        leave_self_out: The queries are the gallery, row by row, and no row may answer itself.
        average_precision: Whether to rank the whole gallery, which costs a sort per query.
        neighbors: At least max(ks) of each query, itself left out where asked for; found here
            when not given.

    Raises:
        ShapeError: Vectors and labels disagree on a size, or no query has an answer.
    """
    if len(gallery) != len(gallery_labels) or len(queries) != len(query_labels):
        raise ShapeError("one label is needed for each vector")
    if leave_self_out and len(gallery) != len(queries):
        raise ShapeError("leaving self out needs the queries to be the gallery")
    itself = torch.arange(len(queries)) if leave_self_out else None
    answers = torch.bincount(gallery_labels, minlength=int(query_labels.max()) + 1)[query_labels]
    answerable = answers - int(leave_self_out) > 0
    count = int(answerable.sum())
    if not count:
        raise ShapeError("the gallery holds no answer to any query")
    found = neighbors or nearest_neighbors(gallery, queries, k=max(ks), exclude=itself)
    hits = (gallery_labels[found.indices] == query_labels.unsqueeze(1))[answerable]  # (Q, k)
    precision = None
    if average_precision:
        relevant = _ranked_relevance(gallery, gallery_labels, queries, query_labels, itself)
        precision = float(_average_precision(relevant[answerable]).mean())
    recalls = {k: float(hits[:, :k].any(dim=1).float().mean()) for k in ks}
    return RetrievalScores(recalls, precision, count)


def _ranked_relevance(
    gallery: Tensor,
    gallery_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    itself: Tensor | None,
    *,
    chunk: int = 256,
) -> Tensor:
    """Returns (Q, N) bool: whether the gallery's rank-th image is one of the query's."""
    unit = F.normalize(gallery.float(), dim=1)
    parts = []
    for start in range(0, len(queries), chunk):
        rows = slice(start, start + chunk)
        scores = F.normalize(queries[rows].float(), dim=1) @ unit.T  # (chunk, N)
        relevant = gallery_labels.unsqueeze(0) == query_labels[rows].unsqueeze(1)
        if itself is not None:
            column = itself[rows].unsqueeze(1)
            scores.scatter_(1, column, -torch.inf)
            relevant.scatter_(1, column, False)
        parts.append(relevant.gather(1, scores.argsort(dim=1, descending=True, stable=True)))
    return torch.cat(parts)


def _average_precision(relevant: Tensor) -> Tensor:
    """Returns (Q,): the mean, over a query's answers, of the precision at each one's rank."""
    ranks = torch.arange(1, relevant.shape[1] + 1, dtype=torch.float32)
    precision = relevant.cumsum(dim=1).float() / ranks  # (Q, N)
    return (precision * relevant).sum(dim=1) / relevant.sum(dim=1)
