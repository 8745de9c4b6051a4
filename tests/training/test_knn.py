from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from amdim_training.errors import ShapeError
from amdim_training.knn import knn_accuracy, nearest_neighbors

Array = npt.NDArray[np.float64]


def naive_predictions(
    gallery: Array, labels: npt.NDArray[np.int64], queries: Array, k: int, temperature: float
) -> list[int]:
    predicted = []
    for query in queries:
        cosines = [float(query @ g / np.linalg.norm(query) / np.linalg.norm(g)) for g in gallery]
        votes: dict[int, float] = {}
        for index in sorted(range(len(gallery)), key=lambda i: -cosines[i])[:k]:
            label = int(labels[index])
            votes[label] = votes.get(label, 0.0) + np.exp(cosines[index] / temperature)
        predicted.append(max(votes, key=lambda label: votes[label]))
    return predicted


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("chunk", [7, 512])
def test_accuracy_equals_naive_numpy(k: int, chunk: int) -> None:
    rng = np.random.default_rng(k)
    gallery, queries = rng.normal(size=(90, 6)), rng.normal(size=(40, 6))
    labels, query_labels = rng.integers(0, 7, 90), rng.integers(0, 7, 40)
    expected = np.mean(naive_predictions(gallery, labels, queries, k, 0.07) == query_labels)

    got = knn_accuracy(
        torch.tensor(gallery, dtype=torch.float32),
        torch.tensor(labels),
        torch.tensor(queries, dtype=torch.float32),
        torch.tensor(query_labels),
        k=k,
        temperature=0.07,
        chunk=chunk,
    )

    assert got == pytest.approx(float(expected))
    assert 0 < got < 1


def test_tiny_temperature_is_the_nearest_neighbor() -> None:
    generator = torch.Generator().manual_seed(0)
    gallery, queries = (torch.randn(50, 4, generator=generator) for _ in range(2))
    labels, query_labels = torch.arange(50) % 5, torch.arange(50) % 3
    arguments = (gallery, labels, queries, query_labels)

    assert knn_accuracy(*arguments, k=20, temperature=1e-6) == knn_accuracy(*arguments, k=1)


def test_excluded_rows_never_answer() -> None:
    vectors = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    itself = torch.arange(30)

    found = nearest_neighbors(vectors, vectors, k=29, exclude=itself, chunk=8, block=7)

    assert not (found.indices == itself[:, None]).any()
    assert torch.isfinite(found.cosines).all()
    assert nearest_neighbors(vectors, vectors, k=1).indices[:, 0].equal(itself)


@pytest.mark.parametrize("block", [1, 7, 50])
def test_blocks_change_nothing(block: int) -> None:
    generator = torch.Generator().manual_seed(0)
    gallery, queries = torch.randn(50, 4, generator=generator), torch.randn(9, 4)

    whole = nearest_neighbors(gallery, queries, k=12)
    split = nearest_neighbors(gallery, queries, k=12, block=block, chunk=4)

    assert split.indices.equal(whole.indices)
    assert torch.allclose(split.cosines, whole.cosines)
    assert (whole.cosines.diff(dim=1) <= 0).all()


def test_integer_vectors_are_searched_without_a_float_copy_of_all() -> None:
    gallery = torch.randint(0, 256, (40, 8), dtype=torch.uint8)

    found = nearest_neighbors(gallery, gallery, k=1, block=16)

    assert torch.allclose(found.cosines, torch.ones(40, 1))


def test_gallery_smaller_than_k_is_searched_whole() -> None:
    assert nearest_neighbors(torch.eye(3), torch.eye(3)[:2], k=20).indices.shape == (2, 3)


def test_mismatched_shapes_are_named() -> None:
    with pytest.raises(ShapeError, match=r"\(3, 3\).*\(2, 2\)"):
        nearest_neighbors(torch.eye(3), torch.eye(2), k=1)
    with pytest.raises(ShapeError, match="label"):
        knn_accuracy(torch.eye(3), torch.arange(2), torch.eye(3), torch.arange(3))
