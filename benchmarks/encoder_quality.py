"""The shipped encoder's result table: it, random weights, raw pixels and HOG, on four data sets.

    python benchmarks/encoder_quality.py                                  # everything
    python benchmarks/encoder_quality.py --rows model,windows,regions     # the model alone
    python benchmarks/encoder_quality.py --rows model --model runs/tiny64

Tiny ImageNet (val among all 99,944 training images), Caltech-101 (test among train), Grocery Store
(natural photos among each other, self left out, and among the iconic ones), and of a repository
with `amdim_windows` the mean of windows and coco128's regions. kNN votes are weighted
exp(cosine / 0.07). Whitening: PCA to as many components as the shipped vector has, fitted on the
same 20,000 unlabelled Tiny ImageNet training images for every row; recipe: as the search vector is
fitted, to the same pairs of views of 8,000 of these for every row. Nothing is fitted to a query.

Linear and MLP (`amdim_training/probes.py`) are fitted to all of Tiny ImageNet's training images:
to vectors of at most 1,024 values, since raw pixels and raw HOG would take longer than all the
rest, and not to f7's mean.

A row in `--out` is kept unless it is computed again. Decoded pixels and HOG vectors are kept in
`--cache`; every picture is encoded once a row.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from baselines import Pixels, halved, hog_vectors, random_encoder
from rich.console import Console
from rich.table import Table
from torch import Tensor

from amdim_clients.images import Preprocess
from amdim_clients.window_rows import WindowPlan
from amdim_training.allocator import keep_freed_memory
from amdim_training.config import EncoderConfig
from amdim_training.evaluate import FIT_LIMIT, LabelledVectors, Score, score_task
from amdim_training.evaluate import describe as line_of
from amdim_training.evaluation_data import Dataset, open_dataset
from amdim_training.features import FrozenEncoder, open_encoder
from amdim_training.search_vector import PAIR_LIMIT, SEARCH_VIEWS, fit_to_pairs
from amdim_training.views import draw_pair
from amdim_training.whitening import Covariance, Whitening, fit_whitening

ROOT = Path(__file__).resolve().parents[1]
PACKS = {
    "tiny": "tiny_imagenet_200.parquet,tiny_imagenet_200_rest_of_train.parquet",
    "caltech": "caltech101_s144.parquet",
    "grocery": "grocery_retrieval.parquet",
}
COLUMNS = {
    "tiny kNN20": ("tiny val->train", "knn20"),
    "kNN5": ("tiny val->train", "knn5"),
    "linear": ("tiny val->train", "linear"),
    "MLP": ("tiny val->train", "mlp"),
    "caltech kNN20": ("caltech test->train", "knn20"),
    "caltech kNN5": ("caltech test->train", "knn5"),
    "grocery R@1": ("grocery natural->natural", "recall@1"),
    "R@5": ("grocery natural->natural", "recall@5"),
    "iconic R@1": ("grocery natural->iconic", "recall@1"),
    "iconic R@5": ("grocery natural->iconic", "recall@5"),
}
ROWS = ("model", "windows", "regions", "random", "pixels", "hog")
PROBED = "tiny"
PROBES = ("linear", "mlp")
PROBED_DIMENSIONS = 1024
RANDOM = "random weights"
WINDOW_SCALE = 1.5

Describe = Callable[[Pixels, str], Mapping[str, Tensor]]
"""Pictures and a name to cache by, to kinds of vectors; a kind called `to whiten` is whitened."""


def main(argv: list[str] | None = None) -> int:
    """Runs the rows asked for, prints the table and writes the results."""
    arguments = _arguments(argv)
    keep_freed_memory()
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    console = Console(width=None if sys.stdout.isatty() else 190, highlight=False)
    splits = _Splits(arguments.data, arguments.size, arguments.cache, arguments.limit)
    results = _read(arguments.out)
    results |= _circumstances(arguments)
    name = arguments.name or str(arguments.model)
    for row in arguments.rows.split(","):
        started = time.perf_counter()
        if row == "regions":
            results.setdefault("regions", {})[name] = _regions(arguments)
        elif row == "windows":
            results["rows"] |= _keyed(name, _windows_mean(arguments, splits))
        else:
            name_of_row, describe = _describer(row, name, arguments, splits)
            protocols = arguments.protocol.split(",")
            scores = _score(name_of_row, describe, splits, protocols, arguments.components)
            results["rows"] |= _keyed(name_of_row, scores)
        seconds = round(time.perf_counter() - started, 1)
        results.setdefault("seconds", {})[row] = seconds
        _write(arguments.out, results)
        console.print(f"{row}: {seconds} s")
    _print_table(console, results)
    return 0


class _Splits:
    """The data sets' splits, decoded once and kept as arrays on the disk."""

    def __init__(self, data: Path, size: int, cache: Path, limit: int) -> None:
        self.size, self.cache, self.limit = size, cache / f"s{size}", limit
        self.cache.mkdir(parents=True, exist_ok=True)
        self.datasets: dict[str, Dataset] = {
            name: open_dataset(",".join(str(data / file) for file in files.split(",")))
            for name, files in PACKS.items()
        }

    def load(self, name: str, split: str) -> tuple[Pixels, Tensor]:
        """Returns a split's pictures, mapped from the disk, and its labels."""
        pixels, labels = (self.cache / f"{name}_{split}_{what}.npy" for what in ("x", "y"))
        if not labels.exists():
            preprocess = Preprocess.for_image_size(self.size)
            images = self.datasets[name].load(split, preprocess)
            np.save(pixels, images.pixels)
            np.save(labels, images.labels)
        x, y = np.load(pixels, mmap_mode="r"), torch.from_numpy(np.load(labels))
        if self.limit and self.limit < len(x):
            rows = np.sort(np.random.default_rng(0).permutation(len(x))[: self.limit])
            return x[rows], y[torch.from_numpy(rows)]
        return x, y

    def kept(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        """Returns vectors from the cache, made first where they are not there."""
        path = (
            self.cache / f"{key}_of_{self.limit}.npy" if self.limit else self.cache / f"{key}.npy"
        )
        if not path.exists():
            np.save(path, make().numpy())
        return torch.from_numpy(np.load(path))


def _rows_to_fit(count: int) -> Tensor:
    """Returns which training images every whitening is fitted on."""
    order = np.random.default_rng(0).permutation(count)[:FIT_LIMIT]
    return torch.from_numpy(np.sort(order))


def _describer(
    row: str, name: str, arguments: argparse.Namespace, splits: _Splits
) -> tuple[str, Describe]:
    if row == "model":
        return name, _encoder(open_encoder(arguments.model))
    if row == "hog":
        return "HOG", lambda x, key: _both(splits.kept(f"hog_{key}", lambda: hog_vectors(x)))
    pixels, _ = splits.load("tiny", "train")
    to_fit = pixels[_rows_to_fit(len(pixels)).numpy()]
    if row == "random":
        config = EncoderConfig(splits.size, arguments.width, arguments.embed_dim, arguments.depth)
        encoder = random_encoder(config, to_fit)
        encoder.fit(to_fit, arguments.components)
        return RANDOM, _encoder(encoder, whitened=True)
    if row == "pixels":
        mean = halved(to_fit).mean(dim=0)
        return f"pixels {splits.size // 2}x{splits.size // 2}", lambda x, _: _both(halved(x) - mean)
    raise SystemExit(f"unknown row {row}: known are {', '.join(ROWS)}")


def _encoder(encoder: FrozenEncoder, *, whitened: bool = False) -> Describe:
    def describe(pixels: Pixels, _: str) -> Mapping[str, Tensor]:
        vectors = encoder.encode(np.array(pixels))
        f1, mean5, mean7 = (part.contiguous() for part in vectors.pooled.chunk(3, dim=1))
        kinds = {"global": f1, "mean5": mean5, "mean7": mean7}
        if vectors.embedding is not None:
            kinds = {"embedding": vectors.embedding} | kinds
        return kinds | ({"to whiten": vectors.pooled} if whitened else {})

    return describe


def _both(vectors: Tensor) -> Mapping[str, Tensor]:
    return {"raw": vectors, "to whiten": vectors}


def _score(
    name: str, describe: Describe, splits: _Splits, protocols: list[str], components: int
) -> dict[str, dict[str, Any]]:
    """Returns each kind of vector with its metrics by data set and task."""
    whitenings: dict[str, Whitening] = {}
    scores: dict[str, dict[str, Any]] = {}
    for data, dataset in splits.datasets.items():  # the first is what whitening is fitted on
        encoded: dict[str, LabelledVectors] = {}
        for split in dataset.splits:
            pixels, labels = splits.load(data, split)
            kinds = dict(describe(pixels, f"{data}_{split}"))
            pooled = kinds.pop("to whiten", None)
            if pooled is not None:
                whitenings = whitenings or _fit(
                    name, describe, pooled, pixels, splits.size, components
                )
                kinds |= {kind: _apply(map_, pooled) for kind, map_ in whitenings.items()}
            encoded[split] = LabelledVectors(kinds, labels)
        for task in dataset.tasks:
            both = encoded[task.gallery], encoded[task.queries]
            untrained = [protocol for protocol in protocols if protocol not in PROBES]
            _collect(
                score_task(data, task, *both, protocols=untrained), encoded, task.gallery, scores
            )
            if data == PROBED:
                both = _probed(both[0]), _probed(both[1])
                probes = [protocol for protocol in protocols if protocol in PROBES]
                _collect(
                    score_task(data, task, *both, protocols=probes), encoded, task.gallery, scores
                )
    return scores


def _collect(
    found: Iterable[Score],
    encoded: Mapping[str, LabelledVectors],
    gallery: str,
    scores: dict[str, dict[str, Any]],
) -> None:
    for score in found:
        print(f"  {line_of(score)} ({score.seconds:.1f} s)", flush=True)
        row = scores.setdefault(score.features, {"tasks": {}})
        row["dimensions"] = encoded[gallery].vectors[score.features].shape[1]
        cell = row["tasks"].setdefault(f"{score.data} {score.task}", {})
        cell |= {"gallery": score.gallery, "queries": score.queries, **score.metrics}


def _probed(split: LabelledVectors) -> LabelledVectors:
    """Returns the kinds of vectors that classifiers are fitted to."""
    kinds = {
        kind: vectors
        for kind, vectors in split.vectors.items()
        if kind != "mean7" and vectors.shape[1] <= PROBED_DIMENSIONS
    }
    return LabelledVectors(kinds, split.labels)


def _fit(
    name: str, describe: Describe, train: Tensor, pixels: Pixels, size: int, components: int
) -> dict[str, Whitening]:
    """Fits plain whitening, and to what is no encoder the search vector's recipe too."""
    chosen = _rows_to_fit(len(train))
    rows = train[chosen]
    count = min(components, len(rows) - 1)
    fitted = {"whitened": fit_whitening(rows, count)}
    if name != RANDOM:
        spread = np.linspace(0, len(chosen) - 1, min(PAIR_LIMIT, len(chosen))).astype(int)
        first, second = _views(pixels[chosen.numpy()[spread]], size)
        apart = Covariance(rows.shape[1])
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            ours, theirs = (
                describe(views, f"view{side}_{number}")["to whiten"]
                for side, views in enumerate((one, other))
            )
            apart.add(ours - theirs)
        fitted["recipe"] = fit_to_pairs(rows, apart, (rows.shape[1],), count)
    return fitted


def _views(pixels: Pixels, size: int) -> tuple[list[Pixels], list[Pixels]]:
    """Returns two views of each picture as the search vector is fitted to, in parts."""
    generator = torch.Generator().manual_seed(0)
    parts: tuple[list[Pixels], list[Pixels]] = ([], [])
    for chunk in torch.from_numpy(pixels).split(2000):
        for part, view in zip(parts, draw_pair(chunk, size, SEARCH_VIEWS, generator), strict=True):
            planes = SEARCH_VIEWS.normalization.undo(view).clamp(0.0, 1.0).mul(255.0).round()
            part.append(planes.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy())
    return parts


def _apply(whitening: Whitening, vectors: Tensor) -> Tensor:
    return torch.cat([whitening.apply(part) for part in vectors.split(8192)])


def _windows_mean(arguments: argparse.Namespace, splits: _Splits) -> dict[str, dict[str, Any]]:
    """Scores the mean of a picture's windows where pictures are larger than one window."""
    from search_quality import Models

    models = Models.open(arguments.model)
    plan = WindowPlan((WINDOW_SCALE,), 1)
    kind = f"embedding, mean of windows at {WINDOW_SCALE:g}"
    scores: dict[str, dict[str, Any]] = {}
    for data in ("caltech", "grocery"):
        dataset = splits.datasets[data]
        encoded = {}
        for split in dataset.splits:
            files, labels = _files(dataset.sources, split, arguments.limit)
            vectors = [np.asarray(part.whole) for part in models.parts(files, plan)]
            encoded[split] = LabelledVectors({kind: torch.from_numpy(np.stack(vectors))}, labels)
        for task in dataset.tasks:
            both = encoded[task.gallery], encoded[task.queries]
            protocols = [p for p in arguments.protocol.split(",") if p not in PROBES]
            _collect(
                score_task(data, task, *both, protocols=protocols), encoded, task.gallery, scores
            )
    return scores


def _files(packs: Iterable[str], split: str, limit: int) -> tuple[list[bytes], Tensor]:
    """Returns a split's picture files and labels, as published."""
    files: list[bytes] = []
    labels: list[int] = []
    for pack in packs:
        table = pq.read_table(pack, columns=["image", "label"], filters=[("split", "=", split)])
        files += [image["bytes"] for image in table["image"].to_pylist()]
        labels += table["label"].to_pylist()
    return files[: limit or None], torch.tensor(labels[: limit or None])


def _regions(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Returns how well boxes of coco128 are found in its other pictures, mAP in percent."""
    from search_quality import Models, regions

    return regions(Models.open(arguments.model), arguments.data)


def _keyed(name: str, scores: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f"{name} | {kind}": score for kind, score in scores.items()}


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """Returns the table's numbers of one row, in percent."""
    tasks = scores["tasks"]
    return {
        heading: round(100 * tasks[task][metric], 2)
        for heading, (task, metric) in COLUMNS.items()
        if metric in tasks.get(task, {})
    }


def _print_table(console: Console, results: Mapping[str, Any]) -> None:
    table = Table(title="Encoder quality, percent")
    for heading in ("vectors", "kind", "dims"):
        table.add_column(heading, no_wrap=True)
    for heading in COLUMNS:
        table.add_column(heading, justify="right")
    for key, scores in results["rows"].items():
        numbers = _numbers(scores)
        cells = [f"{numbers[heading]:.2f}" if heading in numbers else "" for heading in COLUMNS]
        table.add_row(*key.split(" | "), str(scores["dimensions"]), *cells)
    console.print(table)
    for name, regions in results.get("regions", {}).items():
        for way, numbers in regions.items():
            scored = {key: round(value, 1) for key, value in numbers.items() if "mAP" in key}
            console.print(f"coco128 regions, {name}, {way}: {json.dumps(scored)}")


def _circumstances(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/encoder_quality.py", *arguments.given]),
        "protocol": {
            "image_size": arguments.size,
            "temperature": 0.07,
            "limit": arguments.limit or None,
            "probes": f"{PROBED} train, every image, vectors of at most {PROBED_DIMENSIONS} values",
            "whitening": f"PCA, {arguments.components} components, {FIT_LIMIT} training images",
        },
        "machine": {
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "processor": platform.machine(),
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"rows": {}}
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


def _write(path: Path, results: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS), help="default all")
    model = ROOT / "model_repository"
    parser.add_argument("--model", "--checkpoint", type=Path, default=model)
    parser.add_argument("--name", help="the model's name in the table; default its path")
    parser.add_argument("--protocol", default="knn,retrieval,linear,mlp")
    parser.add_argument("--limit", type=int, default=0, help="pictures a split, to rehearse")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures, pixels")
    parser.add_argument("--width", type=int, default=32, help="of the random encoder")
    parser.add_argument("--embed-dim", type=int, default=256, help="of the random encoder")
    parser.add_argument("--depth", type=int, default=1, help="of the random encoder")
    parser.add_argument("--components", type=int, default=384, help="of the other rows' vectors")
    parser.add_argument("--threads", type=int, default=0)
    cache = Path(tempfile.gettempdir()) / "amdim_encoder_quality"
    parser.add_argument("--cache", type=Path, default=cache)
    out = ROOT / "benchmarks" / "results" / "encoder_quality.json"
    parser.add_argument("--out", type=Path, default=out)
    arguments = parser.parse_args(argv)
    arguments.given = sys.argv[1:] if argv is None else argv
    return arguments


if __name__ == "__main__":
    raise SystemExit(main())
