"""Peers on the same ONNX file, photos, pixels and cores as the gateway: a table.

    python benchmarks/peers.py [--repository DIR] [--seconds 5] [--peers litserve bentoml ...]

Each peer is written as its documentation suggests (`peers/*_app.py`), batches where it can, and
runs in an environment of its own, which the first run builds under .venv/peers. Two ways of
configuring its threads are tried, and the better one counts: ONNX Runtime's own default, and one
thread a call; FastAPI also as a process a core, as LitServe and BentoML always are. Triton serves
`amdim_image` from `export/triton_server`.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bound import CORES
from load import PHOTOS, RAW, Server, Wire, collect_photos, run_load
from rich.console import Console
from rich.table import Table

from amdim_serving.choosing import list_candidates
from amdim_serving.settings import Settings, load_settings

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ENVIRONMENTS = ROOT / ".venv" / "peers"
TRITON = ROOT / ".venv" / "triton"
PINNED = ("onnxruntime==1.32.0", "pillow==13.0.0")
_BOUNDARY = b"amdim-photo"


@dataclass(frozen=True)
class Peer:
    """A server to compare with.

    Attributes:
        packages: Of its environment.
        command: After the environment's `bin/`; `{port}` is filled in.
        wire: How it takes a photo.
    """

    name: str
    packages: tuple[str, ...]
    command: tuple[str, ...]
    wire: Wire = RAW


def form(field: str) -> Wire:
    """A photo as the only part of a form."""
    head = (
        b"--"
        + _BOUNDARY
        + b'\r\nContent-Disposition: form-data; name="'
        + field.encode()
        + b'"; filename="photo.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    tail = b"\r\n--" + _BOUNDARY + b"--\r\n"
    kind = "Content-Type: multipart/form-data; boundary=" + _BOUNDARY.decode()
    return Wire("/embed", (kind,), lambda photo: head + photo + tail)


def v2(photo: bytes) -> bytes:
    """A photo as KServe's binary protocol has it; the head's length is always `_V2_HEAD`."""
    tensor: dict[str, Any] = {"name": "image", "shape": [1, 1], "datatype": "BYTES"}
    tensor["parameters"] = {"binary_data_size": len(photo) + 4}
    outputs = [{"name": "embedding", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode().ljust(_V2_HEAD)
    return head + len(photo).to_bytes(4, "little") + photo


_V2_HEAD = 256
PEERS = (
    Peer(
        "fastapi",
        ("fastapi==0.136.0", "uvicorn[standard]==0.54.0", "orjson==3.13.0"),
        ("python", str(HERE / "peers" / "fastapi_app.py")),
    ),
    Peer(
        "litserve",
        ("litserve==0.2.19", "python-multipart==0.0.34"),
        ("python", str(HERE / "peers" / "litserve_app.py")),
        form("content"),
    ),
    Peer(
        "bentoml",
        ("bentoml==1.4.40",),
        ("bentoml", "serve", "bentoml_app:Embed", "--host", "127.0.0.1", "--port", "{port}"),
        form("image"),
    ),
    Peer(
        "triton",
        (),
        (),
        Wire(
            "/v2/models/{image_model}/infer",
            (f"Inference-Header-Content-Length: {_V2_HEAD}",),
            v2,
        ),
    ),
)


def main() -> None:
    """Runs the peers and the gateway in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=None)
    parser.add_argument("--model", default="amdim")
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--peers", nargs="*", default=[peer.name for peer in PEERS])
    parser.add_argument("--build-only", action="store_true", help="make the environments, and end")
    parser.add_argument("--port", type=int, default=8440)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "peers.json")
    args = parser.parse_args()
    peers = [peer for peer in PEERS if peer.name in args.peers]
    for peer in peers:
        build(peer)
    if args.build_only:
        return
    settings = load_settings(model_repository=args.repository, model=args.model)
    with tempfile.TemporaryDirectory() as folder:
        photos = collect_photos(args.photos, Path(folder))
        rows = [*gateway_rows(args, settings, photos)]
        for peer in peers:
            rows += peer_rows(args, settings, peer, photos)
    report = {
        "cores": CORES,
        "clients": args.clients,
        "versions": {peer.name: versions(peer) for peer in peers},
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    show(report)


def build(peer: Peer) -> None:
    """Makes a peer's environment, once."""
    if peer.name == "triton":
        subprocess.run(["bash", str(ROOT / "export/triton_server/build.sh")], check=True)
        return
    folder = ENVIRONMENTS / peer.name
    wanted = "\n".join(sorted([*peer.packages, *PINNED]))
    ready = folder / ".ready"
    if ready.is_file() and ready.read_text() == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *peer.packages, *PINNED], check=True)
    (site,) = folder.glob("lib/python3.*/site-packages")
    (site / "amdim.pth").write_text(f"{ROOT / 'clients'}\n{HERE / 'peers'}\n")
    ready.write_text(wanted)


def versions(peer: Peer) -> list[str]:
    """Returns what its environment was pinned to."""
    if peer.name == "triton":
        pinned = ROOT / "export/triton_server/requirements-server.txt"
        lines = pinned.read_text().splitlines()
        return [line.split()[0] for line in lines if line and line[0] not in "# -"]
    return [*peer.packages, *PINNED]


def gateway_rows(
    args: argparse.Namespace, settings: Settings, photos: Sequence[Path]
) -> Iterator[dict[str, Any]]:
    """Measures the gateway with every engine and precision there is."""
    for candidate in list_candidates(settings):
        serve = [sys.executable, "-m", "amdim_clients.cli", "serve", "--port", "0"]
        serve += ["--repository", str(settings.repository()), "--model", settings.model]
        serve += ["--engine", candidate.engine, "--precision", candidate.precision]
        for workers in dict.fromkeys((1, CORES)):
            command = [*serve, "--drain-delay", "0", "--workers", str(workers)]
            with Server(command) as server:
                yield measure(args, "gateway", server.port, photos, RAW) | {
                    "configured": f"{candidate.engine} {candidate.precision}, {workers} workers"
                }


def peer_rows(
    args: argparse.Namespace, settings: Settings, peer: Peer, photos: Sequence[Path]
) -> Iterator[dict[str, Any]]:
    """Measures a peer in each way of configuring its threads."""
    if peer.name == "triton":
        path = peer.wire.path.format(image_model=f"{settings.model}_image")
        wire = Wire(path, peer.wire.headers, peer.wire.wrap)
        run = [str(TRITON / "bin/python"), str(ROOT / "export/triton_server/run.py")]
        run += [str(settings.repository().resolve()), "--port", str(args.port)]
        with started(run, args.port, wire, photos[0], {}):
            yield measure(args, peer.name, args.port, photos, wire) | {"configured": "as exported"}
        return
    folder = settings.repository().resolve() / settings.model
    model = max(folder.glob("[0-9]*"), key=lambda p: int(p.name))
    ways = [(0, 1), (1, 1)]
    if peer.name == "fastapi":  # the others have as many processes as cores already
        ways.append((1, CORES))
    for threads, workers in ways:
        env = {
            "AMDIM_PEER_MODEL": str(model / "model.onnx"),
            "AMDIM_PEER_SIZE": str(list_candidates(settings)[0].artifact.spec.image_size),
            "AMDIM_PEER_THREADS": str(threads),
            "AMDIM_PEER_POOL": str(CORES // workers),
            "AMDIM_PEER_WORKERS": str(workers),
            "AMDIM_PEER_PORT": str(args.port),
        }
        program = ENVIRONMENTS / peer.name / "bin" / peer.command[0]
        command = [str(program), *(part.format(port=args.port) for part in peer.command[1:])]
        configured = "one thread a call" if threads else "default threads"
        if workers > 1:
            configured += f", {workers} workers"
        with started(command, args.port, peer.wire, photos[0], env):
            yield measure(args, peer.name, args.port, photos, peer.wire) | {
                "configured": configured
            }


@contextlib.contextmanager
def started(
    command: Sequence[str], port: int, wire: Wire, photo: Path, env: dict[str, str]
) -> Iterator[None]:
    """Runs a server until it is left; enters once it embeds a photo.

    Raises:
        RuntimeError: It ended, or embedded nothing within a minute; with its last words.
    """
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **env},
            cwd=HERE / "peers",
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 60
            while not embeds(port, wire, photo):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{command[0]} embeds nothing: {log.read()[-2000:]}")
                time.sleep(0.2)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def embeds(port: int, wire: Wire, photo: Path) -> bool:
    """Whether a server answers a photo with 200."""
    body = photo.read_bytes()
    headers = dict(line.split(": ", 1) for line in wire.headers)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", wire.path, wire.wrap(body) if wire.wrap else body, headers)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def measure(
    args: argparse.Namespace, name: str, port: int, photos: Sequence[Path], wire: Wire
) -> dict[str, Any]:
    """Returns one row."""
    run_load(port, photos, clients=8, seconds=2, wire=wire)  # warm up
    load = run_load(port, photos, clients=args.clients, seconds=args.seconds, wire=wire)
    rate = (load.requests - load.errors) / load.seconds
    spare = 1 - load.cpu_s / (load.seconds * CORES)
    return {
        "server": name,
        **asdict(load),
        "images_per_s": rate,
        "corrected_images_per_s": rate / spare,
    }


def show(report: dict[str, Any]) -> None:
    """Prints the rows, best first, and what the gateway is to the best peer."""
    console = Console(width=120)
    table = Table("server", "configured", "img/s", "generator off", "p50 ms", "p99 ms", "errors")
    rows = sorted(report["rows"], key=lambda row: -row["corrected_images_per_s"])
    for row in rows:
        numbers = (row[name] for name in ("images_per_s", "corrected_images_per_s"))
        times = (row["p50_ms"], row["p99_ms"])
        table.add_row(
            row["server"],
            row["configured"],
            *(f"{value:.1f}" for value in (*numbers, *times)),
            str(row["errors"]),
        )
    console.print(table)
    peers = [row["corrected_images_per_s"] for row in rows if row["server"] != "gateway"]
    ours = [row["corrected_images_per_s"] for row in rows if row["server"] == "gateway"]
    if peers and ours:
        console.print(f"the gateway does {max(ours) / max(peers):.2f} times the best peer")


if __name__ == "__main__":
    main()
