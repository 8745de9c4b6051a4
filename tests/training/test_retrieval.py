from __future__ import annotations

import numpy as np
import pytest
import torch

from amdim_training.errors import ShapeError
from amdim_training.retrieval import retrieval_scores


def naive_scores(
    gallery: torch.Tensor,
    gallery_labels: torch.Tensor,
    queries: torch.Tensor,
    query_labels: torch.Tensor,
    *,
    leave_self_out: bool,
) -> tuple[dict[int, float], float, int]:
    hits: dict[int, list[bool]] = {1: [], 5: []}
    precisions = []
    for q, (query, label) in enumerate(zip(queries, query_labels, strict=True)):
        cosines = (gallery @ query) / gallery.norm(dim=1) / query.norm()
        order = sorted(range(len(gallery)), key=lambda i: -float(cosines[i]))
        if leave_self_out:
            order.remove(q)
        relevant = [bool(gallery_labels[i] == label) for i in order]
        if not any(relevant):
            continue
        for k, found in hits.items():
            found.append(any(relevant[:k]))
        ranks = [rank for rank, is_relevant in enumerate(relevant, start=1) if is_relevant]
        precisions.append(np.mean([(n + 1) / rank for n, rank in enumerate(ranks)]))
    recalls = {k: float(np.mean(found)) for k, found in hits.items()}
    return recalls, float(np.mean(precisions)), len(precisions)


@pytest.mark.parametrize("leave_self_out", [False, True])
def test_scores_equal_naive_loops(leave_self_out: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(60, 5, generator=generator)
    gallery_labels = torch.randint(0, 25, (60,), generator=generator)
    queries, query_labels = gallery, gallery_labels
    if not leave_self_out:
        queries = torch.randn(30, 5, generator=generator)
        query_labels = torch.randint(0, 40, (30,), generator=generator)
    arguments = (gallery, gallery_labels, queries, query_labels)

    got = retrieval_scores(*arguments, leave_self_out=leave_self_out)
    recalls, precision, count = naive_scores(*arguments, leave_self_out=leave_self_out)

    assert got.queries == count < len(queries)  # some have no answer and do not count
    assert got.recall_at == pytest.approx(recalls)
    assert got.mean_average_precision == pytest.approx(precision, abs=1e-5)


def test_perfect_vectors_score_one() -> None:
    labels = torch.arange(12) % 4
    vectors = torch.eye(4)[labels]

    got = retrieval_scores(vectors, labels, vectors, labels, leave_self_out=True)

    assert got.recall_at == {1: 1.0, 5: 1.0}
    assert got.mean_average_precision == 1.0


def test_ranking_is_not_made_when_not_asked_for() -> None:
    labels = torch.arange(4)
    got = retrieval_scores(torch.eye(4), labels, torch.eye(4), labels, average_precision=False)
    assert got.mean_average_precision is None


def test_questions_without_any_answer_are_refused() -> None:
    with pytest.raises(ShapeError, match="no answer"):
        retrieval_scores(torch.eye(3), torch.arange(3), torch.eye(3), torch.arange(3) + 3)
    with pytest.raises(ShapeError, match="queries to be the gallery"):
        retrieval_scores(
            torch.eye(3), torch.arange(3), torch.eye(3)[:2], torch.arange(2), leave_self_out=True
        )
