"""Times batched view pairs against PIL in a DataLoader's worker processes, and against a step.

    python benchmarks/views.py                   # a minute on two idle cores
    python benchmarks/views.py --pipelines stl10 --pairs 512

Both start from the same decoded pictures in memory. The PIL side is the method's own way: each
picture flipped once, then twice cropped, jittered in a random order, greyed and normalised, in as
many workers as the batched side has threads. `share of a step` is what drawing the pairs adds to
an update of the named encoder on this machine, at the precision it chooses.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import torch
from PIL import Image, ImageEnhance
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset
from training import ProjectStep, Shape, machine

from amdim_training.config import ViewsName
from amdim_training.views import VIEWS, ViewsConfig, draw_pair

ROOT = Path(__file__).resolve().parents[1]
# pipeline: side of the pictures kept, side of a view, the encoder whose step it is part of
PIPELINES: dict[ViewsName, tuple[int, int, str]] = {
    "cifar": (32, 32, "32:64/512/3"),
    "stl10": (96, 64, "64:32/256/3"),
    "imagenet": (146, 128, ""),
    "strong": (96, 64, "64:32/256/3"),
}
Pair = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


class PilPairs(Dataset[Pair]):
    """Two views of a picture, drawn with PIL one after the other."""

    def __init__(self, pictures: npt.NDArray[np.uint8], size: int, config: ViewsConfig) -> None:
        self.pictures, self.size, self.config = pictures, size, config

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Pair:
        """Returns two (3, S, S) views."""
        image = Image.fromarray(self.pictures[index])
        if random.random() < self.config.flip_probability:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self._view(image), self._view(image)

    def _view(self, image: Image.Image) -> npt.NDArray[np.float32]:
        config = self.config
        image = self._shift(image) if config.max_shift else self._crop(image)
        if random.random() < config.jitter_probability:
            image = self._jitter(image)
        if random.random() < config.gray_probability:
            image = image.convert("L").convert("RGB")
        pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255
        mean = np.array(config.normalization.mean, dtype=np.float32).reshape(3, 1, 1)
        std = np.array(config.normalization.std, dtype=np.float32).reshape(3, 1, 1)
        return ((pixels - mean) / std).astype(np.float32)

    def _shift(self, image: Image.Image) -> Image.Image:
        if random.random() >= self.config.shift_probability:
            return image
        most, side = self.config.max_shift, image.width
        padded = np.pad(np.asarray(image), ((most, most), (most, most), (0, 0)), mode="reflect")
        left, top = random.randint(0, 2 * most), random.randint(0, 2 * most)
        return Image.fromarray(padded).crop((left, top, left + side, top + side))

    def _crop(self, image: Image.Image) -> Image.Image:
        side = image.width
        width = height = side
        for _ in range(10):
            area = side * side * random.uniform(*self.config.scale)
            ratio = math.exp(random.uniform(*(math.log(bound) for bound in self.config.ratio)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= side and 0 < h <= side:
                width, height = w, h
                break
        left, top = random.randint(0, side - width), random.randint(0, side - height)
        box = (left, top, left + width, top + height)
        return image.crop(box).resize((self.size, self.size), Image.Resampling.BICUBIC)

    def _jitter(self, image: Image.Image) -> Image.Image:
        config = self.config
        operations = ["brightness", "contrast", "saturation", "hue"]
        random.shuffle(operations)
        for operation in operations:
            if operation == "hue":
                hue, saturation, value = image.convert("HSV").split()
                turn = round(random.uniform(-config.hue, config.hue) * 255)
                turned = hue.point([(level + turn) % 256 for level in range(256)])
                image = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
                continue
            strength = getattr(config, operation)
            enhance = {
                "brightness": ImageEnhance.Brightness,
                "contrast": ImageEnhance.Contrast,
                "saturation": ImageEnhance.Color,
            }[operation]
            image = enhance(image).enhance(random.uniform(1 - strength, 1 + strength))
        return image


def pictures_of(count: int, side: int) -> npt.NDArray[np.uint8]:
    """Returns (count, side, side, 3) smooth coloured pictures."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 9, 9, 3), dtype=np.uint8)
    enlarged = [
        np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))
        for picture in small
    ]
    return np.stack(enlarged)


def batched_rate(
    pictures: npt.NDArray[np.uint8], size: int, config: ViewsConfig, batch: int
) -> float:
    """Returns pairs/s of the project's own drawing, the median batch."""
    images, generator = torch.from_numpy(pictures), torch.Generator().manual_seed(0)
    seconds = []
    for start in [0, *range(0, len(images) - batch + 1, batch)]:  # the first one warms up
        started = time.perf_counter()
        draw_pair(images[start : start + batch], size, config, generator)
        seconds.append(time.perf_counter() - started)
    return batch / statistics.median(seconds[1:])


def pil_rate(
    pictures: npt.NDArray[np.uint8], size: int, config: ViewsConfig, batch: int, workers: int
) -> float:
    """Returns pairs/s of PIL in worker processes, their start not counted."""
    loader = DataLoader(
        PilPairs(pictures, size, config), batch_size=batch, num_workers=workers, drop_last=True,
        persistent_workers=workers > 0,
    )  # fmt: skip
    for _ in loader:  # starts the workers
        pass
    started = time.perf_counter()
    count = sum(len(first) for first, _ in loader)
    return count / (time.perf_counter() - started)


def step_seconds(name: str, batch: int) -> tuple[float, str]:
    """Returns the seconds of one update of the project's step, and its precision."""
    shape = Shape.parse(name, batch)
    given = shape.given(torch.device("cpu"))
    step = ProjectStep(shape, torch.device("cpu"), compiled=False)
    precision, _ = step.choose("auto", given)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        step(*given)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:]), precision


def measure(name: ViewsName, arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns one pipeline's rates and its share of a step."""
    side, size, encoder = PIPELINES[name]
    config = VIEWS[name]
    pictures = pictures_of(arguments.pairs, side)
    row: dict[str, Any] = {"from_px": side, "to_px": size, "batch": arguments.batch}
    row["batched"] = batched_rate(pictures, size, config, arguments.batch)
    if not config.subpolicies:  # PIL's side has no strong pipeline
        row["pil"] = pil_rate(pictures, size, config, arguments.batch, arguments.threads)
    if encoder:
        seconds, row["precision"] = step_seconds(encoder, arguments.batch)
        drawing = arguments.batch / row["batched"]
        row |= {"encoder": encoder, "share_of_step": drawing / (drawing + seconds)}
    return row


def main(argv: list[str] | None = None) -> int:
    """Measures the pipelines, prints the table and writes the results."""
    arguments = _arguments(argv)
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    rows = {name: measure(name, arguments) for name in arguments.pipelines.split(",")}
    facts = machine()
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)
    table = Table(title=f"View pairs/s, {facts['cpu']}, {arguments.threads} threads or workers")
    headings = ("pipeline", "px", "batched", "PIL", "ratio", "share of a step", "of encoder")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if 1 < place < 6 else "left", no_wrap=True)
    for name, row in rows.items():
        pil = row.get("pil")
        table.add_row(
            name, f"{row['from_px']} -> {row['to_px']}", f"{row['batched']:.0f}",
            f"{pil:.0f}" if pil else "", f"{row['batched'] / pil:.1f}" if pil else "",
            f"{100 * row['share_of_step']:.1f} %" if "share_of_step" in row else "",
            f"{row['encoder']} {row['precision']}" if "encoder" in row else "",
        )  # fmt: skip
    console.print(table)
    results = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": facts,
        "threads": arguments.threads, "load_before": load, "pairs": arguments.pairs,
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "pillow": PIL.__version__},
        "pipelines": rows,
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pipelines", default=",".join(PIPELINES), help="joined by commas")
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    out = ROOT / "benchmarks" / "results" / "views.json"
    parser.add_argument("--out", type=Path, default=out)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
