"""Compiles ONNX files with TensorRT-RTX ahead of time, to prove that TensorRT's parser takes them.

Run with .venv/tensorrt/bin/python. No GPU is needed and nothing is run: the engines are thrown
away. What parses and builds is `amdim_export.tensorrt_build`, as where TensorRT itself is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import tensorrt_rtx_bindings as trt  # type: ignore[import-not-found]

from amdim_export.errors import EngineError
from amdim_export.tensorrt_build import Profile, build_plan


def main() -> int:
    """Prints a line of JSON per file; exit code 1 where one was refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument(
        "--profile",
        nargs=3,
        action="append",
        required=True,
        metavar=("SMALLEST", "BEST", "LARGEST"),
        help="input shapes as 1x64x64x3",
    )
    options = parser.parse_args()
    profiles = [Profile(*map(_shape, shapes)) for shapes in options.profile]
    refused = 0
    for path in options.files:
        started = time.perf_counter()
        try:
            plan = build_plan(trt, path.read_bytes(), profiles)
        except EngineError as error:
            refused += 1
            said = {"file": path.name, "refused": str(error)}
        else:
            said = {
                "file": path.name,
                "builder": f"TensorRT-RTX {trt.__version__}",
                "inputs": plan.inputs,
                "outputs": plan.outputs,
                "engine_bytes": len(plan.data),
                "notes": plan.notes,
                "seconds": round(time.perf_counter() - started, 2),
            }
        print(json.dumps(said))
    return 1 if refused else 0


def _shape(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))


if __name__ == "__main__":
    sys.exit(main())
