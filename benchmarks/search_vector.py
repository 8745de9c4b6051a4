"""Chooses what the search vector is made of: every recipe, one encoder, one protocol.

    python benchmarks/search_vector.py CHECKPOINT [--gallery 12000] [--queries 2500]

Fitted on Tiny ImageNet training images. kNN: k = 20, T = 0.07; grocery and iconic: recall@1.
The first two columns choose: training images among each other, each left out of its own search.
The others say what the choice is worth.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from amdim_clients.images import Preprocess
from amdim_training.checkpoint import Checkpoint, load_checkpoint
from amdim_training.data import ImageSet, load_images
from amdim_training.knn import knn_accuracy, knn_predict, nearest_neighbors
from amdim_training.search_vector import (
    MIRRORED,
    PAIR_LIMIT,
    PART_WEIGHTS,
    SEARCH_POWER,
    SEARCH_VIEWS,
    SHRINKAGE,
    ScalesAndSearch,
    encode_for_search,
    fit_to_pairs,
    mirror_some,
    scales_and_search,
    search_widths,
)
from amdim_training.views import VIEWS, ViewsConfig, draw_pair
from amdim_training.whitening import Covariance, fit_whitening

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("tiny train", "caltech train", "tiny", "caltech", "grocery", "iconic")
PARTS = ("f1", "mean f5", "spread 14", "spread 7", "layout 14", "layout 30")
MEAN7 = "mean f7"
WEIGHTS = {**dict(zip(PARTS, PART_WEIGHTS, strict=True)), MEAN7: 1.0}
SCALES, SPREADS, LAYOUTS = ("f1", "mean f5", MEAN7), PARTS[2:4], PARTS[4:]
COMPONENTS = 384


class Pairs(NamedTuple):
    """How the two views of a pair are drawn, and how many mirror each other."""

    views: ViewsConfig
    mirrored: float


PAIRS: Mapping[str, Pairs] = {
    "search views": Pairs(SEARCH_VIEWS, MIRRORED),
    "none mirrored": Pairs(SEARCH_VIEWS, 0.0),
    "training's views": Pairs(VIEWS["stl10"], MIRRORED),
    "crops alone": Pairs(dataclasses.replace(SEARCH_VIEWS, jitter_probability=0.0), MIRRORED),
}

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
    checkpoint = load_checkpoint(arguments.checkpoint)
    images = _images(checkpoint, arguments)
    sets = {name: (_encoded(checkpoint, one), _labels(one)) for name, one in images.items()}
    apart = {
        name: _apart(checkpoint, images["tiny train"].pixels[:PAIR_LIMIT], pairs)
        for name, pairs in PAIRS.items()
    }
    config = checkpoint.encoder.config
    widths = {**dict(zip(PARTS, search_widths(config), strict=True)), MEAN7: config.embed_dim}
    table = Table("recipe", *COLUMNS, title=f"Search vectors of {arguments.checkpoint}, percent")
    rows = {}
    for name, recipe in recipes(sets["tiny train"][0], apart, widths):
        rows[name] = _score(sets, recipe)
        table.add_row(name, *(f"{rows[name][column]:.2f}" for column in COLUMNS))
    Console(width=140).print(table)
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def recipes(
    features: Tensor, apart: Mapping[str, Tensor], widths: Mapping[str, int]
) -> Iterator[tuple[str, Recipe]]:
    """Yields recipes by name, fitted on (N, F) features and on what tells views apart."""
    columns, start = {}, 0
    for name, width in widths.items():
        columns[name] = torch.arange(start, start + width)
        start += width

    def chosen(parts: tuple[str, ...]) -> Tensor:
        return torch.cat([columns[part] for part in parts])

    def plain(parts: tuple[str, ...]) -> Recipe:
        rows = chosen(parts)
        scale = torch.cat(
            [
                (WEIGHTS[part] * features[:, columns[part]].var(0).sum().rsqrt()).expand(
                    widths[part]
                )
                for part in parts
            ]
        )
        fitted = fit_whitening(features[:, rows] * scale, COMPONENTS, power=0.75)
        return lambda x: fitted.apply(x[:, rows] * scale)

    def paired(
        parts: tuple[str, ...] = PARTS,
        pairs: str = "search views",
        components: int = COMPONENTS,
        shrinkage: float = SHRINKAGE,
        power: float = SEARCH_POWER,
        weights: Mapping[str, float] = WEIGHTS,
    ) -> Recipe:
        rows = chosen(parts)
        difference = Covariance(len(rows))
        difference.add(apart[pairs][:, rows])
        fitted = fit_to_pairs(
            features[:, rows],
            difference,
            tuple(widths[part] for part in parts),
            components,
            weights=[weights[part] for part in parts],
            shrinkage=shrinkage,
            power=power,
        )
        return lambda x: fitted.apply(x[:, rows])

    for part in (*PARTS, MEAN7):
        yield part, lambda x, part=part: x[:, columns[part]]  # type: ignore[misc]
    yield "three scales, plain (versions 1 to 4)", plain(SCALES)
    earlier = paired((*SCALES, *SPREADS), "none mirrored", shrinkage=0.3)
    yield "three scales, spreads (versions 5 to 7)", earlier
    yield "f1, f5", paired(PARTS[:2])
    yield "f1, f5, spreads", paired(PARTS[:4])
    yield "f1, f5, layouts", paired((*PARTS[:2], *LAYOUTS))
    for layout in LAYOUTS:
        yield f"f1, f5, spreads, {layout}", paired((*PARTS[:4], layout))
    yield "the recipe", paired()
    yield "the recipe, f7 too", paired((*PARTS, MEAN7))
    yield "the recipe, layouts weigh 1 each", paired(weights=dict.fromkeys(PARTS, 1.0))
    yield "the recipe, plain whitening", plain(PARTS)
    for pairs in PAIRS:
        if pairs != "search views":
            yield f"the recipe, pairs: {pairs}", paired(pairs=pairs)
    for shrinkage in (0.3, 3.0):
        yield f"the recipe, shrunk {shrinkage}", paired(shrinkage=shrinkage)
    for power in (0.0, 0.75, 1.0):
        yield f"the recipe, power {power}", paired(power=power)
    for components in (256, 512):
        yield f"the recipe, {components} components", paired(components=components)


def _score(sets: Mapping[str, Labelled], recipe: Recipe) -> dict[str, float]:
    vectors = {name: recipe(features) for name, (features, _) in sets.items()}
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


def _images(checkpoint: Checkpoint, arguments: argparse.Namespace) -> dict[str, ImageSet]:
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
    found = {}
    for name, (pack, split, limit) in wanted.items():
        images = load_images([pack], preprocess, splits=(split,))
        found[name] = images.subset(limit or len(images))
    return found


def _encoded(checkpoint: Checkpoint, images: ImageSet) -> Tensor:
    pixels = torch.from_numpy(images.pixels)
    return _row(encode_for_search(checkpoint.encoder, pixels, checkpoint.normalization))


def _row(given: ScalesAndSearch) -> Tensor:
    """Returns the search features and the mean of f7, (N, F + D)."""
    return torch.cat([given.search, given.scales.chunk(3, dim=1)[2]], dim=1)


def _labels(images: ImageSet) -> Tensor:
    return torch.from_numpy(images.labels)


@torch.inference_mode()
def _apart(checkpoint: Checkpoint, pixels: object, pairs: Pairs) -> Tensor:
    """Returns the features of one view less those of another of each picture."""
    views = dataclasses.replace(pairs.views, normalization=checkpoint.normalization)
    size = checkpoint.encoder.config.image_size
    generator = torch.Generator().manual_seed(0)
    parts = []
    for chunk in torch.as_tensor(pixels).split(64):
        first, second = draw_pair(chunk, size, views, generator)
        second = mirror_some(second, pairs.mirrored, generator)
        ours, theirs = (
            _row(scales_and_search(checkpoint.encoder, view)) for view in (first, second)
        )
        parts.append(ours - theirs)
    return torch.cat(parts)


if __name__ == "__main__":
    main()
