"""Chooses how three scales become one search vector: every recipe, one encoder, one protocol.

    python benchmarks/search_vector.py CHECKPOINT [--gallery 12000] [--queries 2500]

Fitted on Tiny ImageNet training images. kNN: k = 20, T = 0.07; grocery and iconic: recall@1.
The first two columns choose: training images among each other, each left out of its own search.
The others say what the choice is worth.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from amdim_clients.images import Preprocess
from amdim_training.checkpoint import Checkpoint, load_checkpoint
from amdim_training.data import load_images
from amdim_training.knn import knn_accuracy, knn_predict, nearest_neighbors
from amdim_training.online import encode_pooled
from amdim_training.whitening import fit_whitening

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("tiny train", "caltech train", "tiny", "caltech", "grocery", "iconic")

Labelled = tuple[Tensor, Tensor]
Recipe = Callable[[Tensor], Tensor]


def main() -> None:
    """Encodes once, scores every recipe, prints the table and keeps the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--gallery", type=int, default=12_000)
    parser.add_argument("--queries", type=int, default=2_500)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/search_vector.json")
    arguments = parser.parse_args()
    sets = _encode_sets(load_checkpoint(arguments.checkpoint), arguments)
    rows = {name: _score(sets, recipe) for name, recipe in recipes(sets["tiny train"][0])}
    table = Table("recipe", *COLUMNS, title=f"Search vectors of {arguments.checkpoint}, percent")
    for name, scores in rows.items():
        table.add_row(name, *(f"{scores[column]:.2f}" for column in COLUMNS))
    Console(width=120).print(table)
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def recipes(pooled: Tensor) -> Iterator[tuple[str, Recipe]]:
    """Yields recipes by name, fitted on (N, 3D) pooled features."""
    dim = pooled.shape[1] // 3  # f1, mean f5, mean f7
    for number, name in enumerate(("f1", "mean f5", "mean f7")):
        yield name, partial(_scale, number, dim)
    yield "all three", lambda x: x
    f1 = fit_whitening(pooled[:, :dim], 256)
    yield "f1 whitened", lambda x: f1.apply(x[:, :dim])
    for weights in ((), (1, 1, 1), (1, 1, 0), (1, 1, 0.5), (1, 1, 1.5), (1, 1, 3)):
        for power in (0.5, 0.75, 1.0):
            fitted = fit_whitening(pooled, 256, power=power, weights=weights)
            weighed = " : ".join(map(str, weights)) or "as they are"
            yield f"scales {weighed}, power {power}", fitted.apply


def _scale(number: int, dim: int, pooled: Tensor) -> Tensor:
    return pooled[:, number * dim : (number + 1) * dim]


def _score(sets: dict[str, Labelled], recipe: Recipe) -> dict[str, float]:
    vectors = {name: recipe(pooled) for name, (pooled, _) in sets.items()}
    labels = {name: labels for name, (_, labels) in sets.items()}

    def knn(gallery: str, queries: str) -> float:
        return 100 * knn_accuracy(
            vectors[gallery], labels[gallery], vectors[queries], labels[queries]
        )

    def among_themselves(split: str) -> float:
        own = torch.arange(len(vectors[split]))
        nearest = nearest_neighbors(vectors[split], vectors[split], k=20, exclude=own)
        return 100 * (knn_predict(nearest, labels[split]) == labels[split]).float().mean().item()

    def recall(gallery: str, *, leave_out: bool) -> float:
        own = torch.arange(len(vectors["natural"])) if leave_out else None
        nearest = nearest_neighbors(vectors[gallery], vectors["natural"], k=1, exclude=own)
        hits = labels[gallery][nearest.indices[:, 0]] == labels["natural"]
        return 100 * hits.float().mean().item()

    return {
        "tiny train": among_themselves("tiny train"),
        "caltech train": among_themselves("caltech train"),
        "tiny": knn("tiny train", "tiny val"),
        "caltech": knn("caltech train", "caltech test"),
        "grocery": recall("natural", leave_out=True),
        "iconic": recall("iconic", leave_out=False),
    }


def _encode_sets(checkpoint: Checkpoint, arguments: argparse.Namespace) -> dict[str, Labelled]:
    preprocess = Preprocess.for_image_size(checkpoint.encoder.config.image_size)
    tiny, caltech, grocery = (
        arguments.data / f"{name}.parquet"
        for name in ("tiny_imagenet_200", "caltech101_s144", "grocery_retrieval")
    )
    wanted = {
        "tiny train": (tiny, "train", arguments.gallery),
        "tiny val": (tiny, "val", arguments.queries),
        "caltech train": (caltech, "train", 0),
        "caltech test": (caltech, "test", 0),
        "natural": (grocery, "natural", 0),
        "iconic": (grocery, "iconic", 0),
    }
    sets: dict[str, Labelled] = {}
    for name, (pack, split, limit) in wanted.items():
        images = load_images([pack], preprocess, splits=(split,))
        images = images.subset(limit or len(images))
        pooled = encode_pooled(
            checkpoint.encoder, torch.from_numpy(images.pixels), checkpoint.normalization
        )
        sets[name] = pooled, torch.from_numpy(images.labels)
    return sets


if __name__ == "__main__":
    main()
