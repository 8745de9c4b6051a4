"""Scores an encoder against random weights, raw pixels and HOG, raw and equally whitened.

    python benchmarks/encoder_quality.py                          # the baselines
    python benchmarks/encoder_quality.py --rows model --model model_repository
    python benchmarks/encoder_quality.py --rows model --model runs/tiny64

Three data sets: Tiny ImageNet (val among all 99,944 training images), Caltech-101 (test among
train) and Grocery Store (natural photos among each other, self left out, and among the iconic
ones). kNN votes are weighted exp(cosine / 0.07). Whitening: PCA to 256 components, fitted on the
same 20,000 unlabelled Tiny ImageNet training images for every row. Nothing is fitted to a query.

Rows already in `--out` are kept unless they are computed again. Decoded pixels and HOG vectors
are kept in `--cache`. On two CPU cores the baselines take about a quarter of an hour.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from amdim_clients.images import Preprocess
from amdim_training.allocator import keep_freed_memory
from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder, LocalHead, ResidualUnit
from amdim_training.evaluate import FIT_LIMIT, LabelledVectors, score_task
from amdim_training.evaluation_data import Dataset, open_dataset
from amdim_training.features import FrozenEncoder, TorchEncoder, open_encoder
from amdim_training.views import VIEWS
from amdim_training.whitening import Whitening, fit_search_vector, fit_whitening

ROOT = Path(__file__).resolve().parents[1]
PACKS = {
    "tiny": "tiny_imagenet_200.parquet,tiny_imagenet_200_rest_of_train.parquet",
    "caltech": "caltech101_s144.parquet",
    "grocery": "grocery_retrieval.parquet",
}
COLUMNS = {
    "tiny kNN20": ("tiny val->train", "knn20"),
    "tiny kNN5": ("tiny val->train", "knn5"),
    "caltech kNN20": ("caltech test->train", "knn20"),
    "caltech kNN5": ("caltech test->train", "knn5"),
    "grocery R@1": ("grocery natural->natural", "recall@1"),
    "R@5": ("grocery natural->natural", "recall@5"),
    "iconic R@1": ("grocery natural->iconic", "recall@1"),
    "iconic R@5": ("grocery natural->iconic", "recall@5"),
}
COMPONENTS = 256
RANDOM = "random weights"

Pixels = npt.NDArray[np.uint8]
Describe = Callable[[Pixels, str], Mapping[str, Tensor]]
"""Pictures and a name to cache by, to kinds of vectors; a kind called `to whiten` is whitened."""


def main(argv: list[str] | None = None) -> int:
    """Runs the rows asked for, prints the table and writes the results."""
    arguments = _arguments(argv)
    keep_freed_memory()
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    console = Console(width=None if sys.stdout.isatty() else 170, highlight=False)
    splits = _Splits(arguments.data, arguments.size, arguments.cache)
    results = _read(arguments.out)
    for row in arguments.rows.split(","):
        for name, describe in _describers(row, arguments, splits):
            for kind, scores in _score(name, describe, splits, arguments.protocol.split(",")):
                results["rows"] |= {f"{name} | {kind}": scores}
                results |= _circumstances(arguments)
                _write(arguments.out, results)
                console.print(f"{name}, {kind}: {json.dumps(_numbers(scores))}")
    _print_table(console, results["rows"])
    return 0


class _Splits:
    """The data sets' splits, decoded once and kept as arrays on the disk."""

    def __init__(self, data: Path, size: int, cache: Path) -> None:
        self.size, self.cache = size, cache / f"s{size}"
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
        return np.load(pixels, mmap_mode="r"), torch.from_numpy(np.load(labels))

    def to_fit(self) -> tuple[Pixels, str]:
        """Returns the training images that every whitening is fitted on, and their name."""
        pixels, _ = self.load("tiny", "train")
        order = np.random.default_rng(0).permutation(len(pixels))[:FIT_LIMIT]
        return pixels[np.sort(order)], "fit"

    def kept(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        """Returns vectors from the cache, made first where they are not there."""
        path = self.cache / f"{key}.npy"
        if not path.exists():
            np.save(path, make().numpy())
        return torch.from_numpy(np.load(path))


def _describers(
    row: str, arguments: argparse.Namespace, splits: _Splits
) -> Iterator[tuple[str, Describe]]:
    if row == "random":
        yield RANDOM, _encoder(_random_encoder(arguments, splits))
    elif row == "pixels":
        mean = _halved(splits.to_fit()[0]).float().mean(dim=0)
        yield f"pixels {splits.size // 2}x{splits.size // 2}", lambda x, _: _both(_halved(x) - mean)
    elif row == "hog":
        yield "HOG", lambda x, key: _both(splits.kept(f"hog_{key}", lambda: _hog(x)))
    elif row == "model":
        if arguments.model is None:
            raise SystemExit("--rows model needs --model PATH")
        encoder = open_encoder(arguments.model)
        yield arguments.name or str(arguments.model), _encoder(encoder)
    else:
        raise SystemExit(f"unknown row {row}: random, pixels, hog and model are known")


def _encoder(encoder: FrozenEncoder) -> Describe:
    def describe(pixels: Pixels, _: str) -> Mapping[str, Tensor]:
        vectors = encoder.encode(np.array(pixels))
        f1, mean5, mean7 = (part.contiguous() for part in vectors.pooled.chunk(3, dim=1))
        kinds = {"global": f1, "mean5": mean5, "mean7": mean7}
        if vectors.embedding is not None:
            return kinds | {"embedding": vectors.embedding}
        return kinds | {"to whiten": vectors.pooled}

    return describe


def _random_encoder(arguments: argparse.Namespace, splits: _Splits) -> TorchEncoder:
    """Returns an untrained encoder of the shape asked for, a fair opponent.

    Every convolution is drawn, also those that training starts at zero, and the batch norms'
    statistics are of training images: both raise its scores.
    """
    config = EncoderConfig(splits.size, arguments.width, arguments.embed_dim, arguments.depth)
    torch.manual_seed(0)
    encoder = AmdimEncoder(config)
    normalization = VIEWS["stl10"].normalization
    for module in encoder.modules():
        if isinstance(module, ResidualUnit | LocalHead):
            torch.nn.init.kaiming_uniform_(module.conv2.weight, a=math.sqrt(5))
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain average over the batches
    pixels, _ = splits.to_fit()
    with torch.no_grad():
        for start in range(0, 2048, 256):
            batch = torch.from_numpy(pixels[start : start + 256]).permute(0, 3, 1, 2) / 255.0
            encoder(normalization.apply(batch))
    return TorchEncoder(encoder, normalization)


def _halved(pixels: Pixels) -> Tensor:
    """Returns sums of 2 x 2 pixels as rows.

    Half the side scored above the whole pictures on every task, and the mean picture taken off
    above raw values, when 10,000 training images were searched: this is the better baseline.
    """
    side = pixels.shape[1] // 2
    rows = torch.empty(len(pixels), side * side * 3)
    for start in range(0, len(pixels), 4096):
        block = np.array(pixels[start : start + 4096], dtype=np.uint16)
        sums = block.reshape(-1, side, 2, side, 2, 3).sum(axis=(2, 4), dtype=np.float32)
        rows[start : start + 4096] = torch.from_numpy(sums.reshape(len(sums), -1))
    return rows


def _hog(pixels: Pixels) -> Tensor:
    """Returns histograms of oriented gradients: 9 directions, 8 x 8 cells, 2 x 2 blocks."""
    from skimage.feature import hog

    rows = [
        hog(
            picture,
            orientations=9,
            pixels_per_cell=(8, 8),
            cells_per_block=(2, 2),
            block_norm="L2-Hys",
            channel_axis=-1,
        ).astype(np.float32)
        for picture in pixels
    ]
    return torch.from_numpy(np.stack(rows))


def _both(vectors: Tensor) -> Mapping[str, Tensor]:
    return {"raw": vectors, "to whiten": vectors}


def _score(
    name: str, describe: Describe, splits: _Splits, protocols: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each kind of vector with its metrics by data set and task."""
    whitenings = _fit(name, describe, splits)
    scores: dict[str, dict[str, Any]] = {}
    for data, dataset in splits.datasets.items():
        encoded: dict[str, LabelledVectors] = {}
        for split in dataset.splits:
            pixels, labels = splits.load(data, split)
            kinds = dict(describe(pixels, f"{data}_{split}"))
            for kind, map_ in whitenings.items():
                kinds[kind] = _apply(map_, kinds["to whiten"])
            kinds.pop("to whiten", None)
            encoded[split] = LabelledVectors(kinds, labels)
        for task in dataset.tasks:
            gallery, queries = encoded[task.gallery], encoded[task.queries]
            for score in score_task(data, task, gallery, queries, protocols=protocols):
                row = scores.setdefault(score.features, {"tasks": {}})
                row["dimensions"] = gallery.vectors[score.features].shape[1]
                cell = row["tasks"].setdefault(f"{data} {task.name}", {})
                cell |= {"gallery": score.gallery, "queries": len(queries.labels)}
                cell |= score.metrics
    yield from scores.items()


def _fit(name: str, describe: Describe, splits: _Splits) -> dict[str, Whitening]:
    """Fits plain whitening, and for an encoder's three scales the shipped recipe too."""
    vectors = describe(*splits.to_fit()).get("to whiten")
    if vectors is None:
        return {}
    count = min(COMPONENTS, len(vectors) - 1)
    fitted = {"whitened": fit_whitening(vectors.float(), count)}
    if name == RANDOM:
        fitted["embedding"] = fit_search_vector(vectors.float(), count)
    return fitted


def _apply(whitening: Whitening, vectors: Tensor) -> Tensor:
    return torch.cat([whitening.apply(part.float()) for part in vectors.split(8192)])


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """Returns the table's numbers of one row, in percent."""
    tasks = scores["tasks"]
    return {
        heading: round(100 * tasks[task][metric], 2)
        for heading, (task, metric) in COLUMNS.items()
        if metric in tasks.get(task, {})
    }


def _print_table(console: Console, rows: Mapping[str, Any]) -> None:
    table = Table(title="Encoder quality, percent")
    for heading in ("vectors", "kind", "dims"):
        table.add_column(heading, no_wrap=True)
    for heading in COLUMNS:
        table.add_column(heading, justify="right")
    for key, scores in rows.items():
        numbers = _numbers(scores)
        cells = [f"{numbers[heading]:.2f}" if heading in numbers else "" for heading in COLUMNS]
        table.add_row(*key.split(" | "), str(scores["dimensions"]), *cells)
    console.print(table)


def _circumstances(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "protocol": {
            "image_size": arguments.size,
            "temperature": 0.07,
            "whitening": f"PCA, {COMPONENTS} components, {FIT_LIMIT} tiny training images",
        },
        "machine": {"cpus": os.cpu_count(), "processor": platform.machine()},
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
    parser.add_argument("--rows", default="random,pixels,hog", help="random,pixels,hog,model")
    parser.add_argument("--model", "--checkpoint", type=Path, help="as `amdim evaluate` takes it")
    parser.add_argument("--name", help="the model's name in the table; default its path")
    parser.add_argument("--protocol", default="knn,retrieval", help="also linear and mlp")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures, pixels")
    parser.add_argument("--width", type=int, default=32, help="of the random encoder")
    parser.add_argument("--embed-dim", type=int, default=256, help="of the random encoder")
    parser.add_argument("--depth", type=int, default=1, help="of the random encoder")
    parser.add_argument("--threads", type=int, default=0)
    cache = Path(tempfile.gettempdir()) / "amdim_encoder_quality"
    parser.add_argument("--cache", type=Path, default=cache)
    out = ROOT / "benchmarks" / "results" / "encoder_quality.json"
    parser.add_argument("--out", type=Path, default=out)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
