"""The real process against signals, slow and oversized senders, and strangers."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from amdim_serving.settings import load_settings

Running = Callable[..., contextlib.AbstractContextManager[Any]]
Picture = Callable[..., bytes]


def files_tensor(files: list[bytes]) -> Any:
    tensor = grpc.InferInput("image", [len(files), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(files, dtype=object).reshape(-1, 1))
    return [tensor]


def wait_until(ask: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if ask():
            return True
        time.sleep(0.02)
    return False


def queued_images(metrics: str) -> float:
    found = re.search(r"^amdim_queue_images ([0-9.]+)$", metrics, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_a_drain_finishes_http_and_grpc_while_readyz_says_503(
    running_server: Running, repository: Path, make_picture: Picture
) -> None:
    photo = make_picture((1500, 1500), "PNG")
    answers: dict[str, Any] = {}

    def ask_http(url: str) -> None:
        sent = [("images", photo)] * 20
        answers["http"] = httpx.post(url + "/embed", files=sent, timeout=30).status_code

    def ask_grpc(address: str) -> None:
        with grpc.InferenceServerClient(address) as client:
            result = client.infer("amdim_image", files_tensor([photo] * 20))
            answers["grpc"] = result.as_numpy("global").shape[0]

    flags = ("--drain-delay", "0.5", "--decode-threads", "1")
    with running_server(repository, *flags) as server, httpx.Client() as client:
        asks = [
            threading.Thread(target=ask_http, args=(server.url,)),
            threading.Thread(target=ask_grpc, args=(f"127.0.0.1:{server.grpc_port}",)),
        ]
        for ask in asks:
            ask.start()
        # more than either request has: both are in
        assert wait_until(lambda: queued_images(client.get(server.url + "/metrics").text) > 20)
        server.process.send_signal(signal.SIGTERM)
        assert wait_until(lambda: client.get(server.url + "/readyz").status_code == 503, 0.4)
        with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as triton:
            assert not triton.is_server_ready()
            assert triton.is_server_live()
        for ask in asks:
            ask.join(20)
        assert answers == {"http": 200, "grpc": 20}
        assert server.process.wait(20) == 0


def test_after_kill_9_the_next_one_starts_at_once_on_the_same_port(
    running_server: Running, repository: Path, make_picture: Picture
) -> None:
    with running_server(repository) as server, httpx.Client() as client:
        assert client.post(server.url + "/embed", content=make_picture()).status_code == 200
        server.process.kill()
        server.process.wait()
        # The later --port is the one that counts.
        flags = ("--port", str(server.port), "--grpc-port", str(server.grpc_port))
        with running_server(repository, *flags) as again:
            assert (again.port, again.grpc_port) == (server.port, server.grpc_port)
            answer = httpx.post(again.url + "/embed", content=make_picture())
            assert answer.status_code == 200
            assert again.stop() == 0


def read_all(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


def test_a_body_over_the_limit_is_cut_off_while_it_streams(
    running_server: Running, repository: Path
) -> None:
    flags = ("--max-body-bytes", "100000", "--drain-delay", "0")
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n"
    with running_server(repository, *flags) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(head)
            sent = 0
            with contextlib.suppress(OSError):
                for _ in range(2000):  # 32 MB, were they taken
                    connection.sendall(chunk)
                    sent += 1
            assert sent < 1000
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 100001\r\n\r\n")
            assert read_all(connection).startswith(b"HTTP/1.1 413")
        with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
            with pytest.raises(InferenceServerException, match="RESOURCE_EXHAUSTED"):
                client.infer("amdim_image", files_tensor([bytes(200_000)]))
            assert client.is_server_ready()
        assert server.stop() == 0


def test_the_bodies_of_both_wires_are_bounded_together(
    running_server: Running, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMDIM_INFLIGHT_BYTES", "100000")
    flags = ("--max-body-bytes", "100000", "--drain-delay", "0")
    half = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\nhalf"
    with (
        running_server(repository, *flags) as server,
        grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client,
    ):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(half)
            time.sleep(0.2)
            with pytest.raises(InferenceServerException, match="RESOURCE_EXHAUSTED"):
                client.infer("amdim_image", files_tensor([bytes(60_000)]))
        time.sleep(0.2)
        with pytest.raises(InferenceServerException, match="INVALID_ARGUMENT"):  # read, now
            client.infer("amdim_image", files_tensor([bytes(60_000)]))


def test_drips_and_crowds_of_silent_connections_hold_nobody_up(
    running_server: Running,
    repository: Path,
    make_picture: Picture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AMDIM_HEADER_SECONDS", "0.8")
    monkeypatch.setenv("AMDIM_BODY_SECONDS", "0.8")
    heads = {
        "head": (b"GET /livez HTTP/1.1\r\n", b"X-Drip: 1\r\n"),
        "body": (b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n", b"y"),
    }
    with (
        running_server(repository, "--drain-delay", "0") as server,
        contextlib.ExitStack() as stack,
    ):
        address = ("127.0.0.1", server.port)
        silent = [stack.enter_context(socket.create_connection(address)) for _ in range(200)]
        photo = make_picture()
        assert httpx.post(server.url + "/embed", content=photo).status_code == 200
        for first, drip in heads.values():
            with socket.create_connection(address, timeout=5) as connection:
                started = time.monotonic()
                connection.sendall(first)
                with contextlib.suppress(OSError):
                    while time.monotonic() - started < 4:
                        time.sleep(0.1)
                        connection.sendall(drip)  # never quiet for long, and never done
                assert time.monotonic() - started < 3
        with socket.create_connection((address[0], server.grpc_port), timeout=5) as connection:
            read_all(connection)  # gRPC ends it too
        assert [connection.recv(20)[:12] for connection in silent] == [b"HTTP/1.1 408"] * 200
        assert httpx.post(server.url + "/embed", content=photo).status_code == 200
        assert wait_until(lambda: len(os.listdir(f"/proc/{server.process.pid}/fd")) < 100)
        assert server.stop() == 0


def test_endless_heads_and_trailers_are_cut_off(served: Any, make_picture: Picture) -> None:
    chunked = b"POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    endless = {
        "address": (b"GET /", b"a" * 65536),
        "header": (b"GET /livez HTTP/1.1\r\nX: ", b"a" * 65536),
        "headers": (b"GET /livez HTTP/1.1\r\n", b"X: a\r\n" * 8192),
        "extension": (chunked + b"1;", b"a" * 65536),
        "trailer": (chunked + b"1\r\nx\r\n0\r\nX: ", b"a" * 65536),
    }
    for name, (first, more) in endless.items():
        with socket.create_connection(("127.0.0.1", served.port), timeout=5) as connection:
            connection.sendall(first)
            sent = 0
            with contextlib.suppress(OSError):
                while sent < 400:  # 26 MB, were they taken
                    connection.sendall(more)
                    sent += 1
            assert sent < 200, name
    photo = make_picture((700, 700), "PNG")

    def in_small_chunks() -> Iterator[bytes]:
        for at in range(0, len(photo), 100):
            yield photo[at : at + 100]

    assert httpx.post(served.url + "/embed", content=in_small_chunks()).status_code == 200


def test_no_other_site_is_let_in(served: Any, make_picture: Picture) -> None:
    origin = {"Origin": "https://elsewhere.example"}
    answer = httpx.post(served.url + "/embed", content=make_picture(), headers=origin)
    asked = httpx.options(
        served.url + "/embed", headers={**origin, "Access-Control-Request-Method": "POST"}
    )
    for got in (answer, asked):
        assert [name for name in got.headers if name.startswith("access-control")] == []
    assert asked.status_code == 405


def test_by_default_only_this_machine_reaches_it() -> None:
    assert load_settings().host == "127.0.0.1"


def test_keys_come_from_the_environment_and_a_file_and_a_bad_file_is_said(
    running_server: Running, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMDIM_API_KEYS", "first, second")
    keys = tmp_path / "keys"
    keys.write_text("third\n\nfourth \n")
    with running_server(repository, "--api-keys-file", str(keys), "--drain-delay", "0") as server:
        for key, status in [(k, 200) for k in ("first", "second", "third", "fourth")] + [
            (k, 401) for k in ("firs", "fift", "first,", "thirdfourth")
        ]:
            answer = httpx.get(server.url + "/model", headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == status
    command = [sys.executable, "-m", "amdim_clients.cli", "serve", "--port", "0"]
    for missing in (str(tmp_path / "absent"), os.devnull):
        ran = subprocess.run(
            [*command, "--repository", str(repository), "--api-keys-file", missing],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert ran.returncode == 1
        assert re.fullmatch(r"amdim: the key file .* (cannot be read|holds no key)\n", ran.stderr)


def test_odd_requests_are_answered_and_the_server_lives(served: Any) -> None:
    oddities = [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /%00%ff/../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
    for odd in oddities:
        with socket.create_connection(("127.0.0.1", served.port), timeout=5) as connection:
            connection.sendall(odd)
            connection.shutdown(socket.SHUT_WR)
            status = read_all(connection).split(b"\r\n")[0]
            assert status == b"" or re.match(rb"HTTP/1\.1 4\d\d ", status), (odd[:40], status)
    assert httpx.get(served.url + "/readyz").status_code == 200
