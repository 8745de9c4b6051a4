"""Times the project's training step against the plainest eager float32 one, interleaved.

    python benchmarks/training.py                 # all shapes; under six minutes on two idle cores
    python benchmarks/training.py --compile       # and the step with torch.compile
    python benchmarks/training.py --shapes 64:64/512/3 --rounds 8

Both get the same given views, so augmentation is not in it (views.py measures that). Each side
is a process of its own, since the project's changes how memory is kept; they take turns, round by
round, and the other sleeps. Before anything is timed, both losses of the same weights are
compared. The project's step chooses precision and memory format by measurement, as a run does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing as mp
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from plain_step import PlainStep, plain_loss
from rich.console import Console
from rich.table import Table
from torch import Tensor

from amdim_training.allocator import keep_freed_memory
from amdim_training.config import EncoderConfig, LossConfig, MemoryFormat, OptimConfig, Precision
from amdim_training.encoder import AmdimEncoder
from amdim_training.optimizer import make_adam, match_layout
from amdim_training.precision import choose_memory_format, choose_precision
from amdim_training.step import train_step

ROOT = Path(__file__).resolve().parents[1]
BATCHES = {"32:128/1024/3": 32, "32:64/512/3": 64, "64:64/512/3": 32, "64:32/256/3": 64,
           "64:32/256/1": 64}  # fmt: skip
"""Shapes as size:width/D/depth, and pairs a step: small enough for a laptop, the same for both."""

Places = tuple[Tensor, Tensor]
Step = Callable[[Tensor, Tensor, Places], object]


@dataclasses.dataclass(frozen=True)
class Shape:
    """An encoder and a batch."""

    name: str
    size: int
    width: int
    embed_dim: int
    depth: int
    batch: int

    @classmethod
    def parse(cls, name: str, batch: int = 0) -> Shape:
        """Reads size:width/D/depth."""
        size, _, rest = name.partition(":")
        width, embed_dim, depth = map(int, rest.split("/"))
        return cls(name, int(size), width, embed_dim, depth, batch or BATCHES.get(name, 32))

    @property
    def encoder(self) -> EncoderConfig:
        """The project's configuration of it."""
        return EncoderConfig(self.size, self.width, self.embed_dim, self.depth)

    def given(self, device: torch.device) -> tuple[Tensor, Tensor, Places]:
        """Returns two views of noise and the 5 -> 5 sources' places."""
        generator = torch.Generator().manual_seed(0)
        views = torch.randn(2, self.batch, 3, self.size, self.size, generator=generator)
        places = torch.randint(25, (2, self.batch), generator=generator)
        first, second = views.to(device).unbind()
        place_a, place_b = places.to(device).unbind()
        return first, second, (place_a, place_b)


class ProjectStep:
    """The step as `amdim train` makes it: layout, allocator, precision, fused Adam."""

    def __init__(self, shape: Shape, device: torch.device, *, compiled: bool) -> None:
        keep_freed_memory()
        self.encoder = AmdimEncoder(shape.encoder).to(device)
        self.optimizer = make_adam(self.encoder.parameters(), OptimConfig())
        self.forward = torch.compile(self.encoder) if compiled else self.encoder
        self.precision: Precision = "fp32"
        self.use("channels_last")

    def __call__(self, first: Tensor, second: Tensor, places: Places) -> float:
        """Makes one update and returns its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        terms = train_step(
            self.forward,
            LossConfig(),
            (
                first.contiguous(memory_format=self.layout),
                second.contiguous(memory_format=self.layout),
            ),
            precision=self.precision,
            sources=places,
        )
        terms.total.backward()
        self.optimizer.step()
        return terms.total.item()

    def use(self, memory_format: MemoryFormat) -> None:
        """Lays encoder, moments and images out in a memory format."""
        channels_last = memory_format == "channels_last"
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.encoder.to(memory_format=self.layout)  # type: ignore[call-overload]
        match_layout(self.optimizer)

    def choose(
        self, wanted: Precision, given: tuple[Tensor, Tensor, Places]
    ) -> tuple[Precision, MemoryFormat]:
        """Settles precision, where it is `auto`, and memory format, by measurement."""

        def step(precision: Precision = wanted, memory_format: MemoryFormat | None = None) -> None:
            self.precision = precision
            if memory_format is not None:
                self.use(memory_format)
            self(*given)

        precision = choose_precision(wanted, step)
        layout = choose_memory_format("auto", lambda layout: step(precision, layout))
        self.use(layout)
        return precision, layout


def serve(kind: str, threads: int, connection: Connection) -> None:
    """A side's process: prepares shapes and makes timed updates as it is told."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step: Step | None = None
    given: tuple[Tensor, Tensor, Places] | None = None
    while True:
        order, value = connection.recv()
        if order == "prepare":
            step, given, facts = _prepare(kind, value, device)
            step(*given)  # the first update allocates and compiles
            connection.send(facts)
        elif order == "time":
            assert step is not None and given is not None
            started = time.perf_counter()
            for _ in range(value):
                step(*given)  # ends by reading the loss, which waits for the device
            connection.send((time.perf_counter() - started) / value)
        else:
            return


def _prepare(
    kind: str, order: tuple[Shape, Precision], device: torch.device
) -> tuple[Step, tuple[Tensor, Tensor, Places], dict[str, Any]]:
    shape, wanted = order
    given = shape.given(device)
    if kind == "plain":
        plain = PlainStep(shape.size, shape.width, shape.embed_dim, shape.depth)
        plain.encoder.to(device)
        facts = {"precision": "fp32", "memory_format": "contiguous"}
        return plain, given, facts | {"loss_difference": compare(shape)}
    project = ProjectStep(shape, device, compiled=kind == "compiled")
    precision, layout = project.choose(wanted, given)
    return project, given, {"precision": precision, "memory_format": layout}


def compare(shape: Shape) -> float:
    """Returns how far apart both losses of the same float32 weights are.

    Raises:
        AssertionError: They are not the same method.
    """
    small = dataclasses.replace(shape, batch=4)
    torch.manual_seed(0)
    project = AmdimEncoder(shape.encoder)
    plain = PlainStep(shape.size, shape.width, shape.embed_dim, shape.depth).encoder
    with torch.no_grad():
        for (name, theirs), ours in zip(
            plain.named_parameters(), project.parameters(), strict=True
        ):
            if name.endswith("conv2.weight"):
                torch.nn.init.normal_(ours, std=0.02)  # at the start these are 0 and hide much
            theirs.copy_(ours)
    first, second, places = small.given(torch.device("cpu"))
    with torch.no_grad():
        mine = train_step(project, LossConfig(), (first, second), sources=places).total
        difference = float((plain_loss(plain, first, second, places) - mine).abs())
    assert difference < 1e-3, f"{shape.name}: losses differ by {difference}"
    return difference


def measure(
    shape: Shape, sides: Mapping[str, Connection], precision: Precision, rounds: int, updates: int
) -> dict[str, Any]:
    """Returns pairs/s of every side, the median of rounds in which all take a turn."""
    row: dict[str, Any] = {"batch": shape.batch, "sides": {}}
    for side, connection in sides.items():
        connection.send(("prepare", (shape, precision)))
        row["sides"][side] = connection.recv() | {"seconds": []}
    for _ in range(rounds):
        for side, connection in sides.items():
            connection.send(("time", updates))
            row["sides"][side]["seconds"].append(connection.recv())
    for facts in row["sides"].values():
        facts["pairs_per_s"] = shape.batch / statistics.median(facts["seconds"])
    plain = row["sides"]["plain"]["pairs_per_s"]
    row["ratio"] = {side: facts["pairs_per_s"] / plain for side, facts in row["sides"].items()}
    return row


def matrix_rates(device: torch.device, side: int = 2048) -> dict[str, float]:
    """Returns the device's measured matrix throughput in GFLOP/s, float32 and bfloat16."""
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        seconds = []
        for _ in range(4):
            started = time.perf_counter()
            (a @ b)[0, 0].item()
            seconds.append(time.perf_counter() - started)
        rates[name] = 2 * side**3 / min(seconds) / 1e9
    return rates


def flop_per_pair(shape: Shape) -> float:
    """Returns the floating-point operations of an update's encoder passes, by pair."""
    from torch.utils.flop_counter import FlopCounterMode

    first, second, places = dataclasses.replace(shape, batch=2).given(torch.device("cpu"))
    encoder = AmdimEncoder(shape.encoder)
    with FlopCounterMode(display=False) as counter:
        train_step(encoder, LossConfig(), (first, second), sources=places).total.backward()
    return float(counter.get_total_flops()) / 2


def main(argv: list[str] | None = None) -> int:
    """Measures all shapes, prints the table and writes the results."""
    arguments = _arguments(argv)
    torch.set_num_threads(arguments.threads)
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)
    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results: dict[str, Any] = {**_circumstances(arguments), "shapes": {}}
    results["matrix_gflops"] = matrix_rates(device)
    kinds = ["plain", "project", *(["compiled"] if arguments.compile else [])]
    context = mp.get_context("spawn")
    sides, processes = {}, []
    for kind in kinds:
        sides[kind], theirs = context.Pipe()
        process = context.Process(target=serve, args=(kind, arguments.threads, theirs), daemon=True)
        process.start()
        processes.append(process)
    for name in arguments.shapes.split(","):
        shape = Shape.parse(name, arguments.batch)
        row = measure(shape, sides, arguments.precision, arguments.rounds, arguments.updates)
        row["gflop_per_pair"] = flop_per_pair(shape) / 1e9
        results["shapes"][name] = row
        console.print(_line(name, row))
    for connection in sides.values():
        connection.send(("stop", None))
    for process in processes:
        process.join(10)
    results["minutes"] = round((time.monotonic() - started) / 60, 2)
    _print_table(console, results)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def _line(name: str, row: Mapping[str, Any]) -> str:
    sides = (f"{side} {facts['pairs_per_s']:.1f}" for side, facts in row["sides"].items())
    return f"{name}: {', '.join(sides)} pairs/s"


def _print_table(console: Console, results: Mapping[str, Any]) -> None:
    rates = results["matrix_gflops"]
    table = Table(
        title=f"Training step, pairs/s, {results['machine']['cpu']}, {results['threads']} threads; "
        f"matrix products {rates['fp32']:.0f} GFLOP/s fp32, {rates['bf16']:.0f} bf16"
    )
    headings = ("size:width/D/depth", "batch", "side", "chosen", "pairs/s", "ratio", "of matrix")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place in (0, 2, 3) else "right", no_wrap=True)
    for name, row in results["shapes"].items():
        for side, facts in row["sides"].items():
            achieved = facts["pairs_per_s"] * row["gflop_per_pair"]
            share = achieved / rates[facts["precision"]]
            table.add_row(
                name if side == "plain" else "", str(row["batch"]), side,
                f"{facts['precision']} {facts['memory_format']}",
                f"{facts['pairs_per_s']:.1f}", f"{row['ratio'][side]:.2f}", f"{100 * share:.0f} %",
            )  # fmt: skip
    console.print(table)


def _circumstances(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "updates_per_round": arguments.updates,
        "load_before": os.getloadavg()[0],
        "machine": machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def machine() -> dict[str, Any]:
    """Returns the processor's name and what of it decides how fast a step is."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
    facts = {"cpu": name, "cpus": os.cpu_count(), "has": [flag for flag in wanted if flag in flags]}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", default=",".join(BATCHES), help="size:width/D/depth, by commas")
    parser.add_argument("--batch", type=int, default=0, help="pairs a step; 0: by shape")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--updates", type=int, default=1, help="updates a turn")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--compile", action="store_true", help="a third side: torch.compile")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    out = ROOT / "benchmarks" / "results" / "training.json"
    parser.add_argument("--out", type=Path, default=out)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
