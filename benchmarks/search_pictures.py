"""How well whole pictures and their copies are found: measurements of search.py on real data."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageEnhance
from search_quality import DEFAULT, Floats, Models, Rows, average_precision, reranked

from amdim_clients.duplicates import near_pairs
from amdim_clients.images import load_rgb
from amdim_clients.searching import COMPARED, UNLIKE, parts_score, pooled_score, shrunk_mean
from amdim_clients.window_rows import PictureWindows


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
        "centre crop, less common": _less_common(crop),
        "mean of windows": mean,
        "mean of windows, less common": _less_common(mean),
        "crop + mean": crop + mean,
    }
    scores = {name: _unit(v) @ _unit(v).T for name, v in vectors.items()}
    scores["best windows"] = np.array(
        [[pooled_score(p.vectors, q) for p in thinned] for q in mean], np.float32
    )
    parts = _parts(thinned, mean)
    own, place = np.ix_(natural, natural), np.ix_(natural, iconic)
    for name, table in scores.items():
        found = {"natural": table[own], "iconic": table[place]}
        rows[name] = _natural_and_iconic(found, labels[natural], labels[iconic])
        if name == "mean of windows, less common":
            found = {
                "natural": _by_parts(table[own], parts[own]),
                "iconic": _by_parts(table[place], parts[place]),
            }
            rows[f"{name}, then parts"] = _natural_and_iconic(
                found, labels[natural], labels[iconic]
            )
    rows["mean of windows"]["not like the wrong one"] = _unlike(
        mean[natural], labels[natural], UNLIKE
    )
    rows["mean of windows"]["without 'not like'"] = _unlike(mean[natural], labels[natural], 0.0)
    files, labels, splits = _pack(data / "caltech101_s144.parquet")
    chosen = _some_of_each(labels, caltech)
    files, labels = [files[at] for at in chosen], labels[chosen]
    crop, thinned = models.wholes(files), models.parts(files, DEFAULT)
    mean = np.stack([np.asarray(part.whole) for part in thinned])
    tables = {}
    for name, whole in (("centre crop", crop), ("mean of windows", mean)):
        tables[name] = whole @ whole.T
        less = _less_common(whole)
        tables[f"{name}, less common"] = less @ less.T
        if name == "mean of windows":
            parts = _parts(thinned, mean)
            tables[f"{name}, less common, then parts"] = _by_parts(less @ less.T, parts)
    for name, table in tables.items():
        np.fill_diagonal(table, -np.inf)
        rows[name].update(_ranks("caltech", table, labels, labels, leave=1))
    return rows


def _less_common(vectors: Floats) -> Floats:
    return _unit(vectors - shrunk_mean(vectors, len(vectors)))


def _parts(windows: Sequence[PictureWindows], mean: Floats) -> Floats:
    """(N, N) how well each picture's parts are found in each."""
    common = shrunk_mean(mean, len(mean))
    scores = [[parts_score(p.vectors, asked.coarse, common) for p in windows] for asked in windows]
    return np.array(scores, np.float32)


def _by_parts(cosines: Floats, parts: Floats) -> Floats:
    """The nearest as wholes in the order that a search gives them, the rest behind them."""
    first = cosines.copy()
    if first.shape[0] == first.shape[1]:
        np.fill_diagonal(first, 2)  # the query is among those compared, as in an index
    both: Floats = (cosines + parts) / np.float32(2)
    return reranked(first, both, COMPARED)


def _natural_and_iconic(found: dict[str, Floats], natural: Any, iconic: Any) -> dict[str, float]:
    own = found["natural"].copy()
    np.fill_diagonal(own, -np.inf)
    return {
        **_ranks("natural", own, natural, natural, leave=1),
        **_ranks("iconic", found["iconic"], natural, iconic),
    }


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


def _ranks(
    prefix: str, scores: Floats, asked: Any, held: Any, *, leave: int = 0
) -> dict[str, float]:
    order = np.argsort(-scores, axis=1, kind="stable")[:, : scores.shape[1] - leave]
    hits = held[order] == asked[:, None]
    hits = hits[hits.any(axis=1)]
    found = {f"{prefix} R@{k}": 100 * float(hits[:, :k].any(axis=1).mean()) for k in (1, 5, 10)}
    found[f"{prefix} mAP"] = 100 * float(np.mean([average_precision(row) for row in hits]))
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
        precisions.append(average_precision(labels[ranked] == labels[at]))
    return 100 * float(np.mean(precisions))


def _pack(path: Path) -> tuple[list[bytes], Any, Any]:
    table = pq.read_table(path, columns=["image", "label", "split"])
    files = [image["bytes"] for image in table["image"].to_pylist()]
    return files, np.array(table["label"].to_pylist()), np.array(table["split"].to_pylist())


def _some_of_each(labels: Any, count: int) -> Any:
    return np.concatenate([np.flatnonzero(labels == c)[:count] for c in np.unique(labels)])


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit
