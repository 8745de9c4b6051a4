"""NVIDIA's perf_analyzer against a real Triton that serves a model repository: a table.

    python benchmarks/triton_server.py [--repository model_repository] [--concurrency 1 8 32]

Builds its own environments on the first run: the pinned Triton of `export/triton_server`, and
.venv/perf with perf_analyzer, which is a program inside an old wheel of NVIDIA's client. Random
pixels go to the encoder; real pictures (../shared/data/photos.zip where it is there, else drawn
ones) to the ensemble that takes picture files. Load and server share the machine.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / "export" / "triton_server"
TRITON = ROOT / ".venv" / "triton"
PERF = ROOT / ".venv" / "perf"
PHOTOS = ROOT.parent / "shared" / "data" / "photos.zip"
RESULTS = ROOT / "benchmarks" / "results" / "triton.json"
# later ones need a newer glibc, and from 2.62 on there is none in the wheel
CLIENT = (
    "tritonclient==2.51.0 "
    "--hash=sha256:c485bb0123bdf310f90bc8b03d3489b28df2ffed55b30c7eee0b795b48113d52\n"
)
LIBRARIES = {"libb64.so.0d": "libb64-*", "libcudart.so.12": "libcudart-*"}
COLUMNS = {
    "img_per_s": "Inferences/Second",
    "p50_ms": "p50 latency",
    "p99_ms": "p99 latency",
    "queue_ms": "Server Queue",
    "compute_ms": "Server Compute Infer",
}


def main() -> None:
    """Starts Triton, loads it, prints the table and keeps its numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--models", nargs="+", default=["amdim", "amdim_image"])
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    build_environments()
    models = [name for name in options.models if (options.repository / name).is_dir()]
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "photos.json"
        source = write_pictures(data)
        log = (Path(scratch) / "log").open("wb")
        command = [TRITON / "bin/python", TOOLS / "run.py", options.repository]
        server = subprocess.Popen(
            [*map(str, command), "--port", str(options.port)], stdout=log, stderr=log
        )
        try:
            wait_until_ready(server, options.port)
            rows: list[dict[str, str | float]] = [
                {
                    "model": model,
                    "protocol": protocol,
                    "concurrency": concurrency,
                    **measure(model, protocol, concurrency, options, data),
                }
                for model in models
                for protocol in ("grpc", "http")
                for concurrency in options.concurrency
            ]
        finally:
            server.terminate()
            server.wait(timeout=30)
            log.close()
    print_table(rows, source)
    options.out.parent.mkdir(exist_ok=True)
    document = {"cpus": os.cpu_count(), "seconds": options.seconds, "pictures": source}
    options.out.write_text(json.dumps({**document, "rows": rows}, indent=1) + "\n")


def build_environments() -> None:
    """Builds what is missing of the two environments."""
    subprocess.run(["bash", str(TOOLS / "build.sh")], check=True)
    if (PERF / ".ready").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(PERF)], check=True)
    requirements = PERF / "requirements.txt"
    requirements.write_text(CLIENT)
    pip = [str(PERF / "bin/python"), "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--require-hashes", "-r", str(requirements)], check=True)
    (PERF / "libraries").mkdir()
    for name, pattern in LIBRARIES.items():
        (found,) = TRITON.glob(f"lib/python3.11/site-packages/nvidia_pytriton.libs/{pattern}")
        (PERF / "libraries" / name).symlink_to(found)
    (PERF / ".ready").touch()


def write_pictures(path: Path, count: int = 32) -> str:
    """Writes perf_analyzer's input file of encoded pictures and says what they are."""
    if PHOTOS.exists():
        with zipfile.ZipFile(PHOTOS) as archive:
            names = sorted(n for n in archive.namelist() if n.lower().endswith((".jpg", ".jpeg")))
            files = [archive.read(name) for name in names[:count]]
        source = f"{len(files)} photos, {sum(map(len, files)) // len(files) // 1000} kB on average"
    else:
        files = [_drawn(seed) for seed in range(count)]
        source = f"{count} drawn JPEGs of 500x375"
    # its own wire form of a string: length, then bytes
    encoded = [
        {"image": {"b64": base64.b64encode(struct.pack("<I", len(f)) + f).decode()}} for f in files
    ]
    path.write_text(json.dumps({"data": encoded}))
    return source


def _drawn(seed: int) -> bytes:
    picture = Image.effect_noise((500, 375), 20 + seed).convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    """Waits for Triton.

    Raises:
        SystemExit: It ended, or did not come up in a minute.
    """
    for _ in range(600):
        if server.poll() is not None:
            raise SystemExit(f"Triton ended with {server.returncode}; is port {port} taken?")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        else:
            return
    raise SystemExit("Triton was not ready within a minute")


def measure(
    model: str, protocol: str, concurrency: int, options: argparse.Namespace, pictures: Path
) -> dict[str, float]:
    """Returns perf_analyzer's numbers of one model, over one protocol, at one concurrency."""
    table = pictures.with_name("table.csv")
    address = f"127.0.0.1:{options.port + (protocol == 'grpc')}"
    command = [PERF / "bin/perf_analyzer", "-m", model, "-i", protocol, "-u", address]
    command += ["--concurrency-range", str(concurrency), "-f", table]
    # stable within 25 % over three windows: a machine that also makes the load is never still
    command += ["-p", str(int(options.seconds * 1000)), "-s", "25", "-r", "6"]
    if model.endswith("_image"):
        command += ["--input-data", pictures]
    libraries = {"LD_LIBRARY_PATH": str(PERF / "libraries")}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env={**os.environ, **libraries}
    )
    if done.returncode != 0:
        raise SystemExit(f"perf_analyzer failed on {model}: {done.stdout[-800:]}{done.stderr}")
    with table.open() as file:
        (row,) = csv.DictReader(file)
    found = {name: float(row[column]) for name, column in COLUMNS.items() if column in row}
    return {  # it tells microseconds
        name: value / 1000 if name.endswith("_ms") else value for name, value in found.items()
    }


def print_table(rows: list[dict[str, str | float]], source: str) -> None:
    """Prints what was measured as a Markdown table."""
    print(f"picture files: {source}; {os.cpu_count()} CPUs, load on the same machine\n")
    names = list(rows[0])
    print("|".join(["", *names, ""]))
    print("|---" * len(names) + "|")
    for row in rows:
        cells = [f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()]
        print("|".join(["", *cells, ""]))


if __name__ == "__main__":
    main()
