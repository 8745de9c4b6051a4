"""What the windows of a picture cost: dynamic shapes, fixed shapes, and crops one by one.

    python benchmarks/windows.py [--repository model_repository] [--engines onnxruntime openvino]

For common shapes of photos at several scales, one picture at a time: the published file whose
height and width are free; the same file compiled for that very size; and the encoder on as many
crops, in batches of 16. Every engine uses as many threads as there are cores. Columns of the
table are milliseconds a picture, the fastest call of several turns, since whatever else runs only
slows; `fixed` leaves out the compiling, which `compile` states. With --cpu-time they are
milliseconds of CPU of all threads, which a machine that is not idle tells more truly.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amdim_clients.windows import WindowGrid, plan_grid

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "windows.json"
SHAPES = {"1:1": (1, 1), "4:3": (4, 3), "3:2": (3, 2), "16:9": (16, 9)}
CROP_BATCH = 16

Run = Callable[[npt.NDArray[np.uint8]], Any]
clock: Callable[[], float] = time.perf_counter


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table and keeps its numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository")
    parser.add_argument("--engines", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--seconds", type=float, default=0.4, help="of each measurement")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time in place of the clock's")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    global clock
    if options.cpu_time:
        clock = time.process_time
    windows = newest(options.repository / "amdim_windows")
    encoder = newest(options.repository / "amdim")
    side = encoder_side(encoder)
    rows = []
    for engine in options.engines:
        open_model = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}[engine]
        dynamic = open_model(windows, {})
        batch = np.random.default_rng(0).integers(0, 256, (CROP_BATCH, side, side, 3), np.uint8)
        encode = open_model(encoder, {})
        crop_ms = fastest_ms(encode, batch, options.seconds * 4) / CROP_BATCH
        for scale in options.scales:
            for shape in options.shapes:
                wide, high = SHAPES[shape]
                grid = plan_grid(100 * wide, 100 * high, scale, side)
                # again beside every size, so that both sides had the same moments
                crop_ms = min(crop_ms, fastest_ms(encode, batch, options.seconds / 4) / CROP_BATCH)
                rows.append(
                    {"engine": engine, "scale": scale, "shape": shape}
                    | measure(open_model, windows, dynamic, grid, crop_ms, options.seconds)
                )
    print_table(rows)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(
        json.dumps({"cpus": os.cpu_count(), "cpu_time": options.cpu_time, "rows": rows}, indent=1)
        + "\n"
    )


def measure(
    open_model: Callable[[Path, Mapping[str, int]], Run],
    model: Path,
    dynamic: Run,
    grid: WindowGrid,
    crop_ms: float,
    seconds: float,
) -> dict[str, Any]:
    """Returns one row: a picture of a grid's size through each way."""
    height, width = grid.height, grid.width
    pixels = np.random.default_rng(1).integers(0, 256, (1, height, width, 3), np.uint8)
    started = time.perf_counter()
    fixed = open_model(model, {"N": 1, "H": height, "W": width})
    compile_ms = 1000 * (time.perf_counter() - started)
    count = grid.rows * grid.columns
    # in turns, so that neither has the machine's better moment
    turns = [
        (fastest_ms(dynamic, pixels, seconds / 3), fastest_ms(fixed, pixels, seconds / 3))
        for _ in range(3)
    ]
    dynamic_ms, fixed_ms = (min(values) for values in zip(*turns, strict=True))
    return {
        "height x width": f"{height}x{width}",
        "windows": count,
        "dynamic": dynamic_ms,
        "fixed": fixed_ms,
        "compile": compile_ms,
        "crops": crop_ms * count,
        "crops / dynamic": crop_ms * count / dynamic_ms,
        "single images": dynamic_ms / crop_ms,
    }


def open_onnxruntime(path: Path, sizes: Mapping[str, int]) -> Run:
    """Returns a file as ONNX Runtime runs it, its free dimensions fixed where sizes are given."""
    from amdim_serving.engines.silent_onnxruntime import onnxruntime as ort

    session_options = ort.SessionOptions()
    for name, size in sizes.items():
        session_options.add_free_dimension_override_by_name(name, size)
    session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), session_options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"images": pixels})


def open_openvino(path: Path, sizes: Mapping[str, int]) -> Run:
    """Returns a file as OpenVINO runs it in float32, reshaped where sizes are given."""
    from amdim_export.openvino_runtime import core, openvino

    model = core().read_model(str(path))
    if sizes:
        model.reshape([*sizes.values(), 3])
    options = {"INFERENCE_PRECISION_HINT": openvino.Type.f32, "PERFORMANCE_HINT": "LATENCY"}
    request = core().compile_model(model, "CPU", options).create_infer_request()
    return lambda pixels: request.infer({"images": pixels})


def fastest_ms(run: Run, pixels: npt.NDArray[np.uint8], seconds: float) -> float:
    """Returns the milliseconds of the fastest call; the first one is left out."""
    run(pixels)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        started = clock()
        run(pixels)
        times.append(1000 * (clock() - started))
    return min(times)


def newest(model: Path) -> Path:
    """Returns the file of a model's newest version."""
    versions = [path for path in model.glob("*") if path.name.isdecimal()]
    if not versions:
        raise SystemExit(f"no version in {model}: amdim export ... --windows publishes one")
    return max(versions, key=lambda path: int(path.name)) / "model.onnx"


def encoder_side(model: Path) -> int:
    """Returns S of an encoder's file."""
    from amdim_serving.engines.silent_onnxruntime import onnxruntime as ort

    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return int(session.get_inputs()[0].shape[1])


def print_table(rows: list[dict[str, Any]]) -> None:
    """Prints what was measured as a Markdown table."""
    names = list(rows[0])
    print("|".join(["", *names, ""]))
    print("|---" * len(names) + "|")
    for row in rows:
        cells = [f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()]
        print("|".join(["", *cells, ""]))
    for engine in dict.fromkeys(row["engine"] for row in rows):
        mine = [row for row in rows if row["engine"] == engine]
        gain = statistics.median(row["dynamic"] / row["fixed"] for row in mine)
        least = min((r["crops / dynamic"] for r in mine if r["scale"] == 2.0), default=0.0)
        print(f"\n{engine}: dynamic sizes take {gain:.2f} times as long as fixed ones (median);")
        print(f"at scale 2 as many crops cost at least {least:.1f} times as much")


if __name__ == "__main__":
    main()
