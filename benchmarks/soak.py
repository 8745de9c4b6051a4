"""Long load of every kind on one server: does its memory grow?

    python benchmarks/soak.py [--images 40000 | --seconds 180] [--engine onnxruntime] [--reload]

Photos as raw bodies, as forms of eight and as files over KServe; one request in twelve broken, one
in forty given up half way; with --reload a SIGHUP every ten seconds. Every few seconds the load
pauses until nothing is in flight, and the server's resident memory is read: while requests are on
their way it also holds their bodies, up to 15 MB here, and a slope through that is one of chance.
Prints and writes the slope of a straight line, fitted by least squares to the quiet readings after
the first half of the images, with the standard error that the readings' scatter gives it.

With --hollow nothing is decoded or encoded, so that what grows is the gateway's own.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from load import PHOTOS, collect_photos
from rich.console import Console

HERE = Path(__file__).resolve().parent
_QUIET_EVERY_S = 3.0
_SETTLE_S = 0.2  # answered, but its handler may still have to end
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
        self.in_flight = 0
        self.go = threading.Event()
        self.go.set()
        self.stop = threading.Event()
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

    def may_ask(self) -> bool:
        """Waits out a pause, then counts a request as in flight; False: the run is over."""
        while not self.stop.is_set():
            self.go.wait()
            with self.lock:
                if self.go.is_set():
                    self.in_flight += 1
                    return True
        return False

    def asked(self) -> None:
        """A request is no longer in flight."""
        with self.lock:
            self.in_flight -= 1

    def quiet_sample(self) -> dict[str, float]:
        """Lets no request begin, waits until none is in flight, samples, and goes on."""
        with self.lock:
            self.go.clear()
        while self.in_flight:
            time.sleep(0.005)
        time.sleep(_SETTLE_S)
        seen = self.sample()
        self.go.set()
        return seen


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


def ask_on(server: Watched, model: str, bodies: Sequence[bytes], seed: int) -> None:
    """Asks on one connection until the run is over."""
    draw = random.Random(seed)
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    while server.may_ask():
        try:
            ask(server, client, model, bodies, draw)
        except (OSError, http.client.HTTPException):
            server.count(0, 0)
            client.close()
        finally:
            server.asked()
    client.close()


def ask(
    server: Watched,
    client: http.client.HTTPConnection,
    model: str,
    bodies: Sequence[bytes],
    draw: random.Random,
) -> None:
    """Sends one request of a kind that is drawn, and counts its answer."""
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
        return
    else:
        body = chosen[0]
    client.request("POST", path, body, headers)
    answer = client.getresponse()
    answer.read()
    server.count(answer.status, images if answer.status == 200 else 0)


def soak(
    server: Watched,
    model: str,
    bodies: Sequence[bytes],
    *,
    is_over: Callable[[float, int], bool],
    clients: int,
    hup: bool,
) -> list[dict[str, float]]:
    """Returns the quiet samples of a run.

    Args:
        server: Just started.
        model: Its name.
        bodies: Photos.
        is_over: Of the seconds and the answered images so far.
        clients: Connections.
        hup: Whether the model is loaded anew every ten seconds.
    """
    started = hupped = time.monotonic()
    askers = [
        threading.Thread(target=ask_on, args=(server, model, bodies, number), daemon=True)
        for number in range(clients)
    ]
    for asker in askers:
        asker.start()
    samples = []
    while not is_over(time.monotonic() - started, server.images):
        time.sleep(_QUIET_EVERY_S)
        samples.append(server.quiet_sample())
        if hup and time.monotonic() - hupped > 10:
            hupped = time.monotonic()
            server.process.send_signal(signal.SIGHUP)
    server.stop.set()
    for asker in askers:
        asker.join(60)
    return samples


def judge(samples: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Returns the slope, by which method, and what else the samples show."""
    images = np.array([sample["images"] for sample in samples])
    rss = np.array([sample["rss_mb"] for sample in samples])
    late = images > images[-1] / 2
    (slope, _), spread = np.polyfit(images[late] / 10_000, rss[late], 1, cov=True)
    return {
        "images": int(images[-1]),
        "method": "least squares on quiet readings after half of the images",
        "readings": int(late.sum()),
        "slope_mb_per_10000_images": float(slope),
        "slope_standard_error": float(np.sqrt(spread[0, 0])),
        "rss_mb_at_tenths": [
            round(float(np.interp(images[-1] * tenth / 10, images, rss)), 1)
            for tenth in range(1, 11)
        ],
        "threads_last": samples[-1]["threads"],
        "files_last": samples[-1]["files"],
    }


def main() -> None:
    """Runs the soak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="amdim")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--hollow", action="store_true", help="nothing is decoded or encoded")
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--images", type=int, help="instead of seconds: until so many are answered")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--reload", action="store_true", help="SIGHUP every ten seconds")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "soak.json")
    args = parser.parse_args()
    command = [sys.executable, "-m", "amdim_clients.cli", "serve", "--port", "0"]
    command += ["--repository", str(args.repository), "--model", args.model]
    command += ["--engine", args.engine, "--precision", args.precision, "--drain-delay", "0"]
    if args.hollow:
        command = [sys.executable, str(HERE / "hollow.py"), str(args.repository), args.model]

    most_seconds: float = args.seconds if args.images is None else float("inf")
    most_images: float = float("inf") if args.images is None else args.images

    def is_over(seconds: float, images: int) -> bool:
        return seconds > most_seconds or images >= most_images

    with tempfile.TemporaryDirectory() as folder:
        bodies = [path.read_bytes() for path in collect_photos(args.photos, Path(folder))]
    server = Watched(command)
    try:
        samples = soak(
            server,
            args.model,
            bodies,
            is_over=is_over,
            clients=args.clients,
            hup=args.reload,
        )
    finally:
        server.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(60)
    report: dict[str, Any] = {
        "engine": "hollow" if args.hollow else args.engine,
        "precision": args.precision,
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
