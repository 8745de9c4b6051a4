"""How well parts of pictures are found: measurements of search.py on real data.

Every vector is made by the embedders that the commands use.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from amdim_clients.comparing import OUTPUTS, picture_features
from amdim_clients.embedders import LocalEmbedder, open_local_encoder
from amdim_clients.fields import Box
from amdim_clients.matching import score_map
from amdim_clients.regions import CONTEXT, CONTEXTS, cut_squares
from amdim_clients.searching import BEST_WINDOWS
from amdim_clients.window_embedders import LocalWindowEmbedder, open_local_windows
from amdim_clients.window_rows import PictureWindows, WindowPlan
from amdim_clients.windows import WindowGrid

Floats = npt.NDArray[np.float32]
Rows = dict[str, dict[str, float]]
Grids = list[tuple[WindowGrid, Floats]]

LEAST_BOX = 0.02  # of the picture: what a query shows at least
LEAST_PICTURES = 3  # that a category is in
PLANS = (
    WindowPlan((1.0,), 1),
    WindowPlan((1.0, 2.0), 4),
    WindowPlan((1.0, 1.5, 2.0), 4),
    WindowPlan((1.0, 1.5, 2.0, 3.0), 1),
    WindowPlan((1.0, 1.5, 2.0, 3.0), 2),
    WindowPlan((1.0, 1.5, 2.0, 3.0), 3),
    WindowPlan((1.0, 1.5, 2.0, 3.0), 4),
    WindowPlan((1.0, 1.5, 2.0, 3.0), 8),
)
DEFAULT = WindowPlan()
# The side of the square that is cut out, over the box's longer one; of several, the mean vector.
ASKED = ((1.0,), *((context,) for context in CONTEXTS), CONTEXTS)
POOLING = f"best {BEST_WINDOWS}"


@dataclass
class Models:
    """The two models of a repository."""

    whole: LocalEmbedder
    windows: LocalWindowEmbedder

    @classmethod
    def open(cls, repository: Path) -> Models:
        """Both, in this process."""
        return cls(
            LocalEmbedder(open_local_encoder(repository)),
            LocalWindowEmbedder(open_local_windows(repository), DEFAULT),
        )

    def wholes(self, files: Sequence[bytes]) -> Floats:
        """(N, E) vectors of centre crops."""
        return np.stack([vectors["embedding"] for vectors in _all(self.whole, files)])

    def grids(self, files: Sequence[bytes], scales: Sequence[float]) -> list[Grids]:
        """Every window of each file, to be thinned by several plans."""
        encode = self.windows._encoder.encode
        every = self.windows.with_plan(WindowPlan(tuple(scales), 1))
        return [
            [(grid, encode(pixels[None])[0]) for grid, pixels in every.prepare(file)]
            for file in files
        ]

    def parts(self, files: Sequence[bytes], plan: WindowPlan) -> list[PictureWindows]:
        """The windows of each file."""
        return _all(self.windows.with_plan(plan), files)


def _all(embedder: Any, files: Sequence[bytes]) -> list[Any]:
    found: list[Any] = []
    with ThreadPoolExecutor(2) as pool:
        for at in range(0, len(files), embedder.batch_size):
            batch = files[at : at + embedder.batch_size]
            found += embedder.embed(list(pool.map(embedder.prepare, batch)))
    return found


@dataclass(frozen=True)
class _Query:
    picture: int
    category: int
    box: Box


def regions(models: Models, data: Path) -> Rows:
    """Boxes of coco128 sought in the other pictures: mAP by category, and where it points."""
    pack = pq.read_table(data / "coco128_val_boxes.parquet")
    files = [image["bytes"] for image in pack["image"].to_pylist()]
    boxes = _boxes(pack)
    queries, holding = _queries(boxes)
    rng = np.random.default_rng(0)
    shape = len(queries), len(files)
    chance = np.mean(
        [_maps(rng.random(shape, np.float32), queries, holding) for _ in range(30)], axis=0
    )
    rows: Rows = {"chance": {"mAP": float(chance.mean())}}
    crops = models.wholes(files)
    asked: dict[str, Floats] = {}
    by_crops: dict[str, Floats] = {}
    cuts = {c: [_cut(files, query, c) for query in queries] for (c,) in ASKED[:-1]}
    for contexts in ASKED:
        name = _and(contexts)
        whole = [models.wholes(cuts[context]) for context in contexts]
        by_crops[name] = _maps(_mean(whole) @ crops.T, queries, holding)
        rows[f"centre crop, context {name}"] = {"mAP": float(by_crops[name].mean())}
        squares = [models.parts(cuts[context], PLANS[0]) for context in contexts]
        asked[name] = _mean(
            [np.stack([one.vectors[0].astype(np.float32) for one in found]) for found in squares]
        )
    grids = models.grids(files, DEFAULT.scales)
    for plan in PLANS:
        parts = [plan.keep([(g, v) for g, v in found if g.scale in plan.scales]) for found in grids]
        for context, vectors in asked.items():
            row = {"windows": float(np.mean([len(part) for part in parts]))}
            for pooling, table in _pooled(vectors, parts).items():
                found_maps = _maps(table, queries, holding)
                row[f"mAP {pooling}"] = float(found_maps.mean())
                if pooling == POOLING:
                    lift = _lift(found_maps, by_crops[context], chance)
            row["pointing"], row["at random"] = _pointing(vectors, parts, queries, holding, boxes)
            row |= lift
            rows[f"{_plan_name(plan)}, context {context}"] = row
        if plan == DEFAULT:
            cosines = _pooled(asked[_and(CONTEXTS)], parts)[POOLING]
            trained = _trained_scores(models, files, queries)
            both = {
                "windows, then global to local": reranked(cosines, trained, 30),
                f"global to local alone, context {CONTEXT:g}": trained,
            }
            for name, table in both.items():
                rows[name] = {"mAP": float(_maps(table, queries, holding).mean())}
    return rows


def _queries(
    boxes: Sequence[Sequence[tuple[int, Box]]],
) -> tuple[list[_Query], dict[int, set[int]]]:
    """The boxes to seek, and the pictures that hold each category that is sought."""
    holding: dict[int, set[int]] = defaultdict(set)
    for picture, found in enumerate(boxes):
        for category, _ in found:
            holding[category].add(picture)
    sought = {c: held for c, held in holding.items() if len(held) >= LEAST_PICTURES}
    queries = [
        _Query(picture, category, box)
        for picture, found in enumerate(boxes)
        for category, box in found
        if category in sought and (box[2] - box[0]) * (box[3] - box[1]) >= LEAST_BOX
    ]
    return queries, sought


def _trained_scores(models: Models, files: Sequence[bytes], queries: Sequence[_Query]) -> Floats:
    """(Q, N) the trained score of each region's global vector and each picture's best cell."""
    raw = LocalEmbedder(models.whole._encoder, outputs=OUTPUTS, normalize=False)
    cells = [picture_features(file, raw).local7 for file in files]
    asked = [picture_features(_cut(files, query, CONTEXT), raw).global_ for query in queries]
    return np.array([[score_map(q[None], grid).max() for grid in cells] for q in asked])


def _pooled(vectors: Floats, parts: Sequence[PictureWindows]) -> dict[str, Floats]:
    tables: dict[str, list[Floats]] = {"max": [], POOLING: [], "mean": []}
    for part in parts:
        cosines = np.sort(vectors @ part.vectors.astype(np.float32).T, axis=1)
        tables["max"].append(cosines[:, -1])
        tables[POOLING].append(cosines[:, -BEST_WINDOWS:].mean(axis=1))
        tables["mean"].append(cosines.mean(axis=1))
    return {name: np.stack(columns, axis=1) for name, columns in tables.items()}


def _pointing(
    vectors: Floats,
    parts: Sequence[PictureWindows],
    queries: Sequence[_Query],
    holding: dict[int, set[int]],
    boxes: Sequence[Sequence[tuple[int, Box]]],
) -> tuple[float, float]:
    """How often the best window's centre lies in a box of the category, and a random one's."""
    hits, chances = [], []
    for picture, part in enumerate(parts):
        best = (vectors @ part.vectors.astype(np.float32).T).argmax(axis=1)  # (Q,)
        x, y = part.boxes[:, 0::2].mean(axis=1), part.boxes[:, 1::2].mean(axis=1)
        inside: dict[int, Any] = {}
        for category, (x0, y0, x1, y1) in boxes[picture]:
            held = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
            inside[category] = inside.get(category, False) | held
        for query, window in zip(queries, best, strict=True):
            if picture in holding[query.category] and picture != query.picture:
                hits.append(inside[query.category][window])
                chances.append(inside[query.category].mean())
    return 100 * float(np.mean(hits)), 100 * float(np.mean(chances))


def _maps(scores: Floats, queries: Sequence[_Query], holding: dict[int, set[int]]) -> Floats:
    """(C,) for each category the mean average precision of its queries, percent."""
    of_category: dict[int, list[float]] = defaultdict(list)
    for query, row in zip(queries, scores, strict=True):
        relevant = holding[query.category] - {query.picture}
        others = np.delete(np.arange(len(row)), query.picture)
        order = others[np.argsort(-row[others], kind="stable")]
        of_category[query.category].append(average_precision(np.isin(order, list(relevant))))
    return 100 * np.array([np.mean(found) for found in of_category.values()], np.float32)


def _lift(ours: Floats, theirs: Floats, chance: Floats) -> dict[str, float]:
    """How far one way lifts mAP over chance, over how far another does.

    Args:
        ours: (C,) of the categories.
        theirs: (C,) of the same ones.
        chance: (C,) likewise.

    Returns:
        The ratio, and between what it lies in 95 of 100 draws of as many categories.
    """
    drawn = np.random.default_rng(0).integers(0, len(chance), (4000, len(chance)))
    ratios = (ours - chance)[drawn].mean(axis=1) / (theirs - chance)[drawn].mean(axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    ratio = (ours - chance).mean() / (theirs - chance).mean()
    return {"lift": float(ratio), "low": float(low), "high": float(high)}


def average_precision(hits: npt.NDArray[np.bool_]) -> float:
    """Of one ranking, whose right answers are True; 0 to 1."""
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def reranked(first: Floats, second: Floats, depth: int) -> Floats:
    """The first `depth` of one ranking in the order of another; the rest behind them."""
    order = np.argsort(-first, axis=1)[:, :depth]
    result = first - 100
    np.put_along_axis(result, order, np.take_along_axis(second, order, 1) + 100, 1)
    return result


def _cut(files: Sequence[bytes], query: _Query, context: float) -> bytes:
    (square,) = cut_squares(files[query.picture], query.box, (context,))
    return square


def _boxes(pack: Any) -> list[list[tuple[int, Box]]]:
    rows = zip(
        *(pack[name].to_pylist() for name in ("category", "bbox_xywh", "width", "height")),
        strict=True,
    )
    return [
        [
            # the pack rounds to tenths of a pixel, some beyond the edge
            (category, (x / width, y / height, min(1, (x + w) / width), min(1, (y + h) / height)))
            for category, (x, y, w, h) in zip(categories, found, strict=True)
        ]
        for categories, found, width, height in rows
    ]


def _mean(vectors: Sequence[Floats]) -> Floats:
    total = np.sum(vectors, axis=0)
    unit: Floats = total / np.linalg.norm(total, axis=1, keepdims=True)
    return unit


def _and(contexts: Sequence[float]) -> str:
    return " and ".join(f"{context:g}" for context in contexts)


def _plan_name(plan: WindowPlan) -> str:
    scales = ", ".join(f"{scale:g}" for scale in plan.scales)
    return f"windows {scales}; stride {plan.stride}"
