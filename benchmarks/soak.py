"""Long load of every kind on one server: does its memory grow?

    python benchmarks/soak.py [--repository DIR] [--seconds 180] [--engine onnxruntime] [--reload]

Photos as raw bodies, as forms of eight and as files over KServe; one request in twelve broken, one
in forty given up half way; with --reload a SIGHUP every ten seconds. Prints and writes the slope of
the server's resident memory, fitted over all but the first third of the images.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from load import PHOTOS, collect_photos
from rich.console import Console

HERE = Path(__file__).resolve().parent
_EVERY_S = 1.0
_FORM = 8
_JSON = {"Content-Type": "application/json"}


class Watched:
    """The server's process, and how many images it has answered."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"ready on http://[^:]+:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise RuntimeError("the server did not start")
        self._rest = threading.Thread(target=self._read_on, daemon=True)
        self._rest.start()  # lest its log fill the pipe
        self.images = 0
        self.codes: Counter[int] = Counter()
        self.lock = threading.Lock()

    def _read_on(self) -> None:
        for _ in self.process.stderr or ():
            pass

    def sample(self) -> dict[str, float]:
        """Returns resident megabytes, files, threads and images so far."""
        proc = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        return {
            "images": self.images,
            "rss_mb": int(status["VmRSS"].split()[0]) / 1024,
            "threads": int(status["Threads"]),
            "files": len(os.listdir(proc / "fd")),
        }

    def count(self, code: int, images: int) -> None:
        """Counts an answer."""
        with self.lock:
            self.codes[code] += 1
            self.images += images


def form_of(bodies: Sequence[bytes]) -> tuple[bytes, dict[str, str]]:
    """Returns a multipart body of pictures, and its header."""
    head = b'--cut\r\nContent-Disposition: form-data; name="images"; filename="x"\r\n\r\n'
    body = b"".join(head + data + b"\r\n" for data in bodies) + b"--cut--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=cut"}


def files_of(bodies: Sequence[bytes]) -> tuple[bytes, dict[str, str]]:
    """Returns a binary KServe request of pictures, and its header."""
    data = b"".join(len(body).to_bytes(4, "little") + body for body in bodies)
    tensor = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [len(bodies), 1],
        "parameters": {"binary_data_size": len(data)},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


def give_up(port: int, body: bytes) -> None:
    """Sends a request and closes before its answer."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body[: random.randrange(len(body))])


def ask_on(server: Watched, model: str, bodies: Sequence[bytes], seed: int, end: float) -> None:
    """Asks on one connection until `end`."""
    draw = random.Random(seed)
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    while time.monotonic() < end:
        chosen = draw.choices(bodies, k=_FORM)
        kind = draw.random()
        images, path, headers = 1, "/embed", {}
        if kind < 0.05:
            body, (path, headers) = b'{"images": [{"data": "!"}]}', ("/embed", _JSON)
            images = 0
        elif kind < 0.08:
            body, images = chosen[0][: len(chosen[0]) // 2], 0
        elif kind < 0.2:
            body, headers = form_of(chosen)
            images = _FORM
        elif kind < 0.3:
            (body, headers), path = files_of(chosen), f"/v2/models/{model}_image/infer"
            images = _FORM
        elif kind < 0.325:
            give_up(server.port, chosen[0])
            continue
        else:
            body = chosen[0]
        try:
            client.request("POST", path, body, headers)
            answer = client.getresponse()
            answer.read()
            server.count(answer.status, images if answer.status == 200 else 0)
        except (OSError, http.client.HTTPException):
            server.count(0, 0)
            client.close()


def soak(
    server: Watched, model: str, bodies: Sequence[bytes], *, seconds: float, clients: int, hup: bool
) -> list[dict[str, float]]:
    """Returns the samples of a run."""
    end = time.monotonic() + seconds
    askers = [
        threading.Thread(target=ask_on, args=(server, model, bodies, number, end), daemon=True)
        for number in range(clients)
    ]
    for asker in askers:
        asker.start()
    samples = []
    while time.monotonic() < end:
        time.sleep(_EVERY_S)
        samples.append(server.sample())
        if hup and len(samples) % 10 == 0:
            server.process.send_signal(signal.SIGHUP)
    for asker in askers:
        asker.join(60)
    time.sleep(0.5)
    return [*samples, server.sample()]


def judge(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    """Returns the slope and what else the samples show."""
    images = np.array([sample["images"] for sample in samples])
    rss = np.array([sample["rss_mb"] for sample in samples])
    late = images > images[-1] / 3
    slope = float(np.polyfit(images[late], rss[late], 1)[0]) * 10_000
    return {
        "images": int(images[-1]),
        "rss_first_third_mb": float(rss[~late].max(initial=0)),
        "rss_last_mb": float(rss[-1]),
        "slope_mb_per_10000_images": slope,
        "threads_last": samples[-1]["threads"],
        "files_last": samples[-1]["files"],
    }


def main() -> None:
    """Runs the soak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="amdim")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--reload", action="store_true", help="SIGHUP every ten seconds")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "soak.json")
    args = parser.parse_args()
    command = [sys.executable, "-m", "amdim_clients.cli", "serve", "--port", "0"]
    command += ["--repository", str(args.repository), "--model", args.model]
    command += ["--engine", args.engine, "--drain-delay", "0"]
    with tempfile.TemporaryDirectory() as folder:
        bodies = [path.read_bytes() for path in collect_photos(args.photos, Path(folder))]
    server = Watched(command)
    try:
        samples = soak(
            server,
            args.model,
            bodies,
            seconds=args.seconds,
            clients=args.clients,
            hup=args.reload,
        )
    finally:
        server.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(60)
    report: dict[str, Any] = {
        "engine": args.engine,
        "seconds": args.seconds,
        "clients": args.clients,
        "reloads": args.reload,
        "codes": {str(code): count for code, count in sorted(server.codes.items())},
        **judge(samples),
        "samples": samples,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report) + "\n")
    shown = {name: value for name, value in report.items() if name != "samples"}
    Console().print_json(json.dumps(shown))


if __name__ == "__main__":
    main()
