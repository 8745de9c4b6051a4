"""The real process: `amdim serve`, real sockets, real signals."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import numpy as np
import pytest

from amdim_serving.errors import CanaryError
from amdim_serving.server import serve
from amdim_serving.settings import load_settings

Picture = Callable[..., bytes]
Running = Callable[..., contextlib.AbstractContextManager[Any]]


def test_the_road_of_a_photo_and_of_what_is_none(
    running_server: Running, repository: Path, make_picture: Picture
) -> None:
    photo = make_picture((640, 480))
    with running_server(repository, "--drain-delay", "1") as server, httpx.Client() as client:
        url = server.url + "/embed"
        first = client.post(url, content=photo, headers={"Content-Type": "image/jpeg"})
        vector = first.json()["data"][0]["embedding"]
        assert first.status_code == 200
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        for body, status in [
            (photo[: len(photo) // 2], 422),
            (b"", 400),
            (b"a text file\n", 415),
            (make_picture((1, 1), "PNG"), 422),
        ]:
            assert client.post(url, content=body).status_code == status
        assert client.post(url, content=photo).json()["data"][0]["embedding"] == vector
        shown = client.get(server.url + "/model").json()
        assert shown["models"]["amdim"]["engine"] == "onnxruntime"
        assert "canaries" not in shown["models"]["amdim"]["certificate"]
        assert shown["limits"]["max_images"] == 1024
        metrics = client.get(server.url + "/metrics").text
        assert 'amdim_requests_total{code="200",route="/embed"} 2.0' in metrics
        assert 'amdim_images_total{outcome="image_truncated"} 1.0' in metrics
        assert client.get(server.url + "/openapi.json").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert client.get(server.url + "/readyz").status_code == 503
        assert client.post(url, content=photo).status_code == 200
        assert server.process.wait(20) == 0


def test_a_drain_answers_what_was_accepted(
    running_server: Running, repository: Path, make_picture: Picture
) -> None:
    files = [("images", make_picture((900, 900), "PNG"))] * 20
    with running_server(repository, "--drain-delay", "0", "--decode-threads", "1") as server:
        body = httpx.Request("POST", server.url + "/embed", files=files)
        body.read()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = (
                f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body.content)}\r\n"
                f"Content-Type: {body.headers['content-type']}\r\nConnection: close\r\n\r\n"
            )
            connection.sendall(head.encode() + body.content)
            time.sleep(0.15)
            server.process.send_signal(signal.SIGTERM)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200")
        data = json.loads(answer.split(b"\r\n\r\n", 1)[1])["data"]
        assert ["embedding" in item for item in data] == [True] * 20
        assert server.process.wait(20) == 0


def test_a_taken_port_is_one_sentence(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = subprocess.run(
            [sys.executable, "-m", "amdim_clients.cli", "serve", "--port", port,
             "--repository", str(repository)],
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr == f"amdim: port {port} on 127.0.0.1 is in use\n"


def test_wrong_canaries_refuse_to_serve(lying_repository: Path) -> None:
    with pytest.raises(CanaryError, match="does not reproduce the certificate"):
        serve(load_settings(port=0, model_repository=lying_repository))


def test_slow_connections_are_closed(
    running_server: Running, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMDIM_HEADER_SECONDS", "0.3")
    monkeypatch.setenv("AMDIM_BODY_SECONDS", "0.3")
    half_head = b"POST /embed HTTP/1.1\r\nHost: x\r\n"
    half_body = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nabc"
    with running_server(repository) as server:
        for sent in (b"", half_head, half_body):
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
                connection.sendall(sent)
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
                assert answer.startswith(b"HTTP/1.1 408")
                assert b'"body_timeout"' in answer


def _read_answer(answers: BinaryIO) -> bytes:
    head = b"".join(iter(answers.readline, b"\r\n"))
    return head + answers.read(int(head.lower().split(b"content-length: ")[1].split()[0]))


def test_a_connection_refused_before_its_body_goes_on_behind_it(
    running_server: Running, repository: Path, make_picture: Picture
) -> None:
    slow = make_picture((6000, 6000), "PNG")
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n"
    bounds = ("--queue-images", "1", "--max-images", "1")
    with (
        running_server(repository, *bounds) as server,
        httpx.Client(timeout=30) as client,
        ThreadPoolExecutor(1) as pool,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection,
    ):
        taken = pool.submit(client.post, server.url + "/embed", content=slow)
        while "amdim_queue_images 0.0" in httpx.get(server.url + "/metrics").text:
            time.sleep(0.01)
        answers = connection.makefile("rb")
        connection.sendall(head + bytes(1000))
        assert _read_answer(answers).startswith(b"HTTP/1.1 429")
        connection.sendall(bytes(299_000) + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert _read_answer(answers).startswith(b"HTTP/1.1 200")
        assert taken.result().status_code == 200


def test_a_client_that_leaves_has_its_work_dropped(
    running_server: Running, repository: Path, make_picture: Picture
) -> None:
    files = [("images", make_picture((900, 900), "PNG"))] * 60
    with running_server(repository, "--decode-threads", "1") as server, httpx.Client() as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(server.url + "/embed", files=files, timeout=0.3)
        for _ in range(100):
            metrics = client.get(server.url + "/metrics").text
            if "amdim_queue_images 0.0" in metrics:
                break
            time.sleep(0.05)
        assert "amdim_queue_images 0.0" in metrics
        assert 'code="499"' in metrics
        assert server.stop() == 0
