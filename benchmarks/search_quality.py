"""How well pictures and parts of pictures are found: the measurements of search.py on real data.

Every vector is made by the embedders that the commands use.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image, ImageEnhance

from amdim_clients.comparing import OUTPUTS, picture_features
from amdim_clients.duplicates import near_pairs
from amdim_clients.embedders import LocalEmbedder, open_local_encoder
from amdim_clients.fields import Box
from amdim_clients.images import load_rgb
from amdim_clients.matching import score_map
from amdim_clients.regions import square_around
from amdim_clients.searching import UNLIKE, pooled_score
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


def pictures(models: Models, data: Path, caltech: int) -> Rows:
    """Whole pictures: centre crop, mean of windows, windows, re-ranked.

    Args:
        models: Of the repository.
        data: Folder of the packs.
        caltech: Test pictures a class to take.
    """
    rows: Rows = {}
    files, labels, splits = _pack(data / "grocery_retrieval.parquet")
    natural, iconic = splits == "natural", splits == "iconic"
    thinned = models.parts(files, DEFAULT)
    crop = models.wholes(files)
    mean = np.stack([np.asarray(part.whole) for part in thinned])
    vectors = {
        "centre crop": crop,
        "mean of windows": mean,
        "crop + mean": crop + mean,
    }
    scores = {name: _unit(v) @ _unit(v).T for name, v in vectors.items()}
    best = np.array([[pooled_score(p.vectors, q) for p in thinned] for q in mean])
    scores["best windows"] = best
    scores["mean, then best windows"] = _reranked(scores["mean of windows"], best, 30)
    place = np.ix_(natural, iconic)
    for name, table in scores.items():
        own = table[np.ix_(natural, natural)].copy()
        np.fill_diagonal(own, -np.inf)
        rows[name] = {
            **_ranks("natural", own, labels[natural], labels[natural], leave=1),
            **_ranks("iconic", table[place], labels[natural], labels[iconic]),
        }
    rows["mean of windows"]["not like the wrong one"] = _unlike(
        mean[natural], labels[natural], UNLIKE
    )
    rows["mean of windows"]["without 'not like'"] = _unlike(mean[natural], labels[natural], 0.0)
    files, labels, splits = _pack(data / "caltech101_s144.parquet")
    chosen = _some_of_each(labels, caltech)
    files, labels = [files[at] for at in chosen], labels[chosen]
    for name, found in (
        ("centre crop", models.wholes(files)),
        ("mean of windows", np.stack([np.asarray(p.whole) for p in models.parts(files, DEFAULT)])),
    ):
        table = found @ found.T
        np.fill_diagonal(table, -np.inf)
        rows[name].update(_ranks("caltech", table, labels, labels, leave=1))
    return rows


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
    holding: dict[int, set[int]] = defaultdict(set)
    for picture, found in enumerate(boxes):
        for category, _ in found:
            holding[category].add(picture)
    holding = {c: held for c, held in holding.items() if len(held) >= LEAST_PICTURES}
    queries = [
        _Query(picture, category, box)
        for picture, found in enumerate(boxes)
        for category, box in found
        if category in holding and (box[2] - box[0]) * (box[3] - box[1]) >= LEAST_BOX
    ]
    rng = np.random.default_rng(0)
    shape = len(queries), len(files)
    chance = [_map(rng.random(shape, np.float32), queries, holding) for _ in range(30)]
    rows: Rows = {"chance": {"mAP": float(np.mean(chance))}}
    tight = models.wholes([_cut(files, query, 1.0) for query in queries])
    wide = models.wholes([_cut(files, query, 1.2) for query in queries])
    crops = models.wholes(files)
    rows["centre crop"] = {"mAP": _map(tight @ crops.T, queries, holding)}
    rows["centre crop, 1.2 context"] = {"mAP": _map(wide @ crops.T, queries, holding)}
    grids = models.grids(files, DEFAULT.scales)
    asked = {
        context: np.stack(
            [
                part.vectors[0].astype(np.float32)
                for part in models.parts([_cut(files, q, context) for q in queries], PLANS[0])
            ]
        )
        for context in (1.0, 1.2)
    }
    for plan in PLANS:
        parts = [plan.keep([(g, v) for g, v in found if g.scale in plan.scales]) for found in grids]
        row = rows[_plan_name(plan)] = {"windows": float(np.mean([len(part) for part in parts]))}
        for context, vectors in asked.items():
            tables = _pooled(vectors, parts)
            for pooling, table in tables.items():
                row[f"mAP {pooling}, {context:g}"] = _map(table, queries, holding)
            row[f"pointing {context:g}"], row["pointing at random"] = _pointing(
                vectors, parts, queries, holding, boxes
            )
        if plan == DEFAULT:
            cosines = _pooled(asked[1.2], parts)["best 3"]
            trained = _trained_scores(models, files, queries)
            reranked = _reranked(cosines, trained, 30)
            rows["windows, then global to local"] = {"mAP": _map(reranked, queries, holding)}
            rows["global to local alone"] = {"mAP": _map(trained, queries, holding)}
    return rows


def duplicates(models: Models, data: Path, photos: int) -> Rows:
    """Precision and recall of near-duplicates: variants of photographs among each other."""
    files, _, splits = _pack(data / "grocery_retrieval.parquet")
    table = pq.read_table(data / "coco128_val_boxes.parquet", columns=["image"])
    originals = [image["bytes"] for image in table["image"].to_pylist()]
    originals += [f for f, s in zip(files, splits, strict=True) if s == "natural"]
    originals = originals[:photos]
    keys, varied = [], []
    for number, file in enumerate(originals):
        picture = load_rgb(file)
        for name, variant in VARIANTS.items():
            keys.append(f"{number}/{name}")
            varied.append(_saved(variant(picture), 60 if name == "re-encoded" else 90))
    rows: Rows = {}
    kinds = {
        "centre crop": models.wholes(varied),
        "mean of windows": np.stack([np.asarray(p.whole) for p in models.parts(varied, DEFAULT)]),
    }
    for kind, vectors in kinds.items():
        for threshold in (0.6, 0.7, 0.75, 0.8, 0.85, 0.9):
            found = near_pairs(keys, vectors, threshold)
            right = {pair for pair in found if pair[0].split("/")[0] == pair[1].split("/")[0]}
            row = {"precision": 100 * len(right) / max(1, len(found))}
            for name in VARIANTS:
                if name != "original":
                    hits = [
                        (f"{n}/original", f"{n}/{name}") in right for n in range(len(originals))
                    ]
                    row[f"recall {name}"] = 100 * float(np.mean(hits))
            rows[f"{kind}, {threshold:g}"] = row
    return rows


def _cropped(share: float) -> Callable[[Image.Image], Image.Image]:
    def crop(picture: Image.Image) -> Image.Image:
        width, height = picture.size
        return picture.crop(
            (
                round(width * share),
                round(height * share / 2),
                round(width * (1 - share / 2)),
                round(height * (1 - share)),
            )
        )

    return crop


def _recolored(picture: Image.Image) -> Image.Image:
    return ImageEnhance.Color(ImageEnhance.Brightness(picture).enhance(1.2)).enhance(0.6)


VARIANTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "original": lambda picture: picture,
    "re-encoded": lambda picture: picture,
    "half size": lambda picture: picture.resize((picture.width // 2, picture.height // 2)),
    "cropped a little": _cropped(0.06),
    "cropped": _cropped(0.12),
    "recoloured": _recolored,
    "grey": lambda picture: picture.convert("L").convert("RGB"),
}


def _saved(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _trained_scores(models: Models, files: Sequence[bytes], queries: Sequence[_Query]) -> Floats:
    """(Q, N) the trained score of each region's global vector and each picture's best cell."""
    raw = LocalEmbedder(models.whole._encoder, outputs=OUTPUTS, normalize=False)
    cells = [picture_features(file, raw).local7 for file in files]
    asked = [picture_features(_cut(files, query, 1.2), raw).global_ for query in queries]
    return np.array([[score_map(q[None], grid).max() for grid in cells] for q in asked])


def _pooled(vectors: Floats, parts: Sequence[PictureWindows]) -> dict[str, Floats]:
    tables: dict[str, list[Floats]] = {"max": [], "best 3": [], "mean": []}
    for part in parts:
        cosines = np.sort(vectors @ part.vectors.astype(np.float32).T, axis=1)
        tables["max"].append(cosines[:, -1])
        tables["best 3"].append(cosines[:, -3:].mean(axis=1))
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


def _map(scores: Floats, queries: Sequence[_Query], holding: dict[int, set[int]]) -> float:
    """Mean over categories of the mean average precision of its queries, percent."""
    of_category: dict[int, list[float]] = defaultdict(list)
    for query, row in zip(queries, scores, strict=True):
        relevant = holding[query.category] - {query.picture}
        others = np.delete(np.arange(len(row)), query.picture)
        order = others[np.argsort(-row[others], kind="stable")]
        of_category[query.category].append(_average_precision(np.isin(order, list(relevant))))
    return 100 * float(np.mean([np.mean(found) for found in of_category.values()]))


def _average_precision(hits: npt.NDArray[np.bool_]) -> float:
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def _ranks(
    prefix: str, scores: Floats, asked: Any, held: Any, *, leave: int = 0
) -> dict[str, float]:
    order = np.argsort(-scores, axis=1, kind="stable")[:, : scores.shape[1] - leave]
    hits = held[order] == asked[:, None]
    hits = hits[hits.any(axis=1)]
    found = {f"{prefix} R@{k}": 100 * float(hits[:, :k].any(axis=1).mean()) for k in (1, 5, 10)}
    found[f"{prefix} mAP"] = 100 * float(np.mean([_average_precision(row) for row in hits]))
    return found


def _unlike(vectors: Floats, labels: Any, share: float) -> float:
    """MAP when the first wrong answer is given back as "not like this"."""
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    precisions = []
    for at, row in enumerate(scores):
        order = np.argsort(-row)
        wrong = next(int(other) for other in order if labels[other] != labels[at])
        query = _unit(vectors[at] - share * vectors[wrong])
        rest = np.delete(np.arange(len(row)), [at, wrong])
        ranked = rest[np.argsort(-(vectors[rest] @ query), kind="stable")]
        precisions.append(_average_precision(labels[ranked] == labels[at]))
    return 100 * float(np.mean(precisions))


def _reranked(first: Floats, second: Floats, depth: int) -> Floats:
    """The first `depth` of one ranking in the order of another; the rest behind them."""
    order = np.argsort(-first, axis=1)[:, :depth]
    result = first - 100
    np.put_along_axis(result, order, np.take_along_axis(second, order, 1) + 100, 1)
    return result


def _cut(files: Sequence[bytes], query: _Query, context: float) -> bytes:
    picture = load_rgb(files[query.picture])
    width, height = picture.size
    x0, y0, x1, _ = square_around(query.box, width, height, context=context)
    side = round((x1 - x0) * width)
    left, top = round(x0 * width), round(y0 * height)
    buffer = io.BytesIO()
    picture.crop((left, top, left + side, top + side)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _boxes(pack: Any) -> list[list[tuple[int, Box]]]:
    rows = zip(
        *(pack[name].to_pylist() for name in ("category", "bbox_xywh", "width", "height")),
        strict=True,
    )
    return [
        [
            (category, (x / width, y / height, (x + w) / width, (y + h) / height))
            for category, (x, y, w, h) in zip(categories, found, strict=True)
        ]
        for categories, found, width, height in rows
    ]


def _pack(path: Path) -> tuple[list[bytes], Any, Any]:
    table = pq.read_table(path, columns=["image", "label", "split"])
    files = [image["bytes"] for image in table["image"].to_pylist()]
    return files, np.array(table["label"].to_pylist()), np.array(table["split"].to_pylist())


def _some_of_each(labels: Any, count: int) -> Any:
    return np.concatenate([np.flatnonzero(labels == c)[:count] for c in np.unique(labels)])


def _plan_name(plan: WindowPlan) -> str:
    scales = ", ".join(f"{scale:g}" for scale in plan.scales)
    return f"windows at {scales}; stride {plan.stride}"


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit
