"""What each engine and precision gives: speed, nearness to fp32, neighbours and kNN accuracy.

    python benchmarks/precision.py                       # the shipped encoder; minutes on two cores
    python benchmarks/precision.py --part vectors        # all but the speed, on a busy machine
    python benchmarks/precision.py --part speed          # the speed, on an idle one; adds to --out

One run measures ONNX Runtime and OpenVINO on `amdim` and `amdim_int8`, with the engines that the
server runs. Cosines and neighbours are of `embedding` against ONNX Runtime in fp32, which the
certificate holds to the trained encoder; each picture of the queries is looked for among the
others. kNN: votes of the 20 nearest training pictures weighted exp(cosine / 0.07). A precision
that this processor does not compute in is left out by name.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from amdim_clients.contract import read_model_spec
from amdim_clients.images import Preprocess
from amdim_export.parity import agreement, neighbor_agreement
from amdim_export.provenance import machine, tool_versions
from amdim_serving.engines import Engine
from amdim_serving.engines.onnxruntime import OnnxRuntimeEngine
from amdim_serving.engines.openvino import OpenVinoEngine
from amdim_serving.errors import ServingError
from amdim_training.data import ImageSet
from amdim_training.evaluation_data import open_dataset
from amdim_training.knn import knn_accuracy

ROOT = Path(__file__).resolve().parents[1]
ROWS = (
    ("onnxruntime", "fp32", "amdim"),
    ("openvino", "fp32", "amdim"),
    ("openvino", "bf16", "amdim"),
    ("openvino", "int8", "amdim_int8"),
    ("onnxruntime", "int8", "amdim_int8"),
)
BATCH = 16
OUTPUT = "embedding"
NEIGHBORS_AMONG = 2_000

Vectors = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Opened:
    """One row of the table, loaded."""

    engine: Engine
    row: str


def main() -> None:
    """Runs what was asked for and prints the table of everything known so far."""
    arguments = _parse()
    found = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    found["machine"] = {**machine(), "threads": arguments.threads, "tools": tool_versions()}
    rows: dict[str, dict[str, Any]] = found.setdefault("rows", {})
    opened = list(_open(arguments.repository, arguments.threads))
    if arguments.part != "speed":
        images = _images(arguments)
        for row, values in _score(opened, images):
            rows[row] = {**rows.get(row, {}), **values}
        found["measured_on"] = {"gallery": len(images[0]), "queries": len(images[1])}
    if arguments.part != "vectors":
        for row, rates in _speeds(opened, arguments.seconds).items():
            rows[row] = {**rows.get(row, {}), **rates}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    Console(width=110).print(_table(rows))


def _open(repository: Path, threads: int) -> Iterator[Opened]:
    encoder = read_model_spec(repository / "amdim").encoder_digest
    for engine, precision, model in ROWS:
        folder = repository / model
        row = f"{engine} {precision}"
        if not folder.is_dir():
            print(f"{row} is left out: {folder} does not exist (amdim quantize makes it)")
            continue
        spec = read_model_spec(folder)
        if spec.encoder_digest != encoder:
            print(f"{row} is left out: {folder} is of another encoder than amdim")
            continue
        path = folder / spec.version / "model.onnx"
        try:
            if engine == "openvino":
                yield Opened(OpenVinoEngine(path, spec, precision=precision, threads=threads), row)
            else:
                yield Opened(OnnxRuntimeEngine(path, spec, threads=threads), row)
        except ServingError as error:
            print(f"{row} is left out: {error}")


def _images(arguments: argparse.Namespace) -> tuple[ImageSet, ImageSet]:
    """Returns the gallery and the queries, each a fixed draw."""
    dataset = open_dataset(str(arguments.data))
    (task,) = dataset.tasks
    spec = read_model_spec(arguments.repository / "amdim")
    preprocess = Preprocess.for_image_size(spec.image_size)
    return (
        dataset.load(task.gallery, preprocess).labelled(arguments.gallery),
        dataset.load(task.queries, preprocess).labelled(arguments.queries),
    )


def _score(
    opened: list[Opened], images: tuple[ImageSet, ImageSet]
) -> Iterator[tuple[str, dict[str, float]]]:
    gallery, queries = images
    reference: Vectors | None = None
    for one in opened:
        among, asked = _encode(one.engine, gallery), _encode(one.engine, queries)
        if reference is None:
            reference = asked  # ONNX Runtime in fp32 is the first row
        near = agreement(reference, asked)
        accuracy = knn_accuracy(
            torch.from_numpy(among),
            torch.from_numpy(gallery.labels),
            torch.from_numpy(asked),
            torch.from_numpy(queries.labels),
        )
        some = slice(0, NEIGHBORS_AMONG)
        yield (
            one.row,
            {
                "mean_cosine": near.mean_cosine,
                "p1_cosine": near.p1_cosine,
                "min_cosine": near.min_cosine,
                "neighbor_agreement_at_10": neighbor_agreement(reference[some], asked[some]),
                "knn20": accuracy,
            },
        )


def _encode(engine: Engine, images: ImageSet) -> Vectors:
    pixels = np.asarray(images.pixels)
    parts = [
        engine.encode(np.ascontiguousarray(pixels[at : at + BATCH]), [OUTPUT])[OUTPUT]
        for at in range(0, len(pixels), BATCH)
    ]
    return np.concatenate(parts)


def _speeds(opened: list[Opened], seconds: float) -> dict[str, dict[str, float]]:
    """Returns each row's images a second, of the median and the best batch, taken in turns."""
    side = opened[0].engine.spec.image_size
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 256, (BATCH, side, side, 3), dtype=np.uint8)
    for one in opened:
        one.engine.encode(batch, [OUTPUT])
    taken: dict[str, list[float]] = {one.row: [] for one in opened}
    end = time.perf_counter() + seconds * len(opened)
    while time.perf_counter() < end:
        for one in opened:
            started = time.perf_counter()
            one.engine.encode(batch, [OUTPUT])
            taken[one.row].append(time.perf_counter() - started)
    return {
        row: {
            "images_per_s": BATCH / statistics.median(times),
            "best_images_per_s": BATCH / min(times),
        }
        for row, times in taken.items()
    }


def _table(rows: dict[str, dict[str, Any]]) -> Table:
    table = Table(
        "engine", "img/s", "best", "best over fp32", "mean", "p1", "min", "10-NN", "kNN20 %"
    )
    base = rows.get("openvino fp32", {}).get("best_images_per_s")
    for row, found in rows.items():
        speed, best = found.get("images_per_s"), found.get("best_images_per_s")
        cosines = [found.get(f"{name}_cosine") for name in ("mean", "p1", "min")]
        knn, neighbors = found.get("knn20"), found.get("neighbor_agreement_at_10")
        table.add_row(
            row,
            "" if speed is None else f"{speed:,.0f}",
            "" if best is None else f"{best:,.0f}",
            "" if best is None or base is None else f"{best / base:.2f}",
            *("" if value is None else f"{value:.5f}" for value in cosines),
            "" if neighbors is None else f"{neighbors:.4f}",
            "" if knn is None else f"{100 * knn:.2f}",
        )
    return table


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository")
    data = ROOT.parent / "shared/data/tiny_imagenet_200.parquet"
    parser.add_argument("--data", type=Path, default=data, help="a pack with train and val rows")
    parser.add_argument("--gallery", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=4_000)
    parser.add_argument("--seconds", type=float, default=4.0, help="of timing a row")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--part", choices=("all", "vectors", "speed"), default="all")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/precision.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
