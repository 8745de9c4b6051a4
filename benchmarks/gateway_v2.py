"""NVIDIA's perf_analyzer against the gateway's KServe v2 faces, REST and gRPC: a table.

    python benchmarks/gateway_v2.py [--repository DIR] [--seconds 5] [--concurrency 1 8 32]

The same environment, pictures and columns as `triton_server.py`, so that the two tables compare.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from load import HERE, Server

from triton_server import build_environments, measure, print_table, write_pictures

RESULTS = HERE / "results" / "gateway_v2.json"


def main() -> None:
    """Starts the gateway, loads it, prints the table and keeps its numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=HERE.parent / "model_repository")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--models", nargs="+", default=["amdim", "amdim_image"])
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--port", type=int, default=8460)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    build_environments()
    serve = [sys.executable, "-m", "amdim_clients.cli", "serve", "--port", str(options.port)]
    serve += ["--grpc-port", str(options.port + 1), "--repository", str(options.repository)]
    serve += ["--engine", options.engine, "--drain-delay", "0"]
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "photos.json"
        source = write_pictures(data)
        with Server(serve):
            rows: list[dict[str, str | float]] = [
                {
                    "model": model,
                    "protocol": protocol,
                    "concurrency": concurrency,
                    **measure(model, protocol, concurrency, options, data),
                }
                for model in options.models
                for protocol in ("grpc", "http")
                for concurrency in options.concurrency
            ]
    print_table(rows, source)
    options.out.parent.mkdir(exist_ok=True)
    document = {"cpus": os.cpu_count(), "seconds": options.seconds, "pictures": source}
    options.out.write_text(json.dumps({**document, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
