"""`amdim serve --workers 2`: real processes behind one address."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.grpc as triton

from amdim_serving.errors import StartError
from amdim_serving.settings import load_settings

Picture = Callable[..., bytes]
Running = Callable[..., AbstractContextManager[Any]]

FLAGS = ("--workers", "2", "--drain-delay", "0", "--engine", "onnxruntime")


@pytest.fixture(scope="module")
def server(running_server: Running, repository: Path) -> Iterator[Any]:
    with running_server(repository, *FLAGS, "--grpc-port", "0") as running:
        yield running


def workers_of(pid: int) -> list[int]:
    """The worker processes of a server."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if fields[1] == str(pid) and b"spawn_main" in command and fields[0] != "Z":
            found.append(int(folder.name))
    return found


def embed(url: str, photo: bytes) -> int:
    """One request on a connection of its own, so that any worker may get it."""
    return httpx.post(url + "/embed", content=photo, timeout=20).status_code


def counted(url: str) -> float:
    text = httpx.get(url + "/metrics").text
    found = re.search(r'amdim_images_total\{outcome="ok"\} (\S+)', text)
    return float(found[1]) if found else 0.0


def test_metrics_add_up_and_outlive_a_killed_worker_that_is_replaced(
    server: Any, make_picture: Picture
) -> None:
    photo = make_picture((64, 48))
    before = workers_of(server.process.pid)
    assert len(before) == 2
    for stopped in before:  # while one cannot accept, the other must
        os.kill(stopped, signal.SIGSTOP)
        assert [embed(server.url, photo) for _ in range(5)] == [200] * 5
        os.kill(stopped, signal.SIGCONT)
    assert counted(server.url) == 10
    os.kill(before[0], signal.SIGKILL)
    assert [embed(server.url, photo) for _ in range(3)] == [200] * 3
    deadline = time.monotonic() + 30
    while len(workers_of(server.process.pid)) < 2 or before[0] in workers_of(server.process.pid):
        assert time.monotonic() < deadline, "nothing took the place of the killed worker"
        time.sleep(0.1)
    assert counted(server.url) == 13
    assert httpx.get(server.url + "/readyz").status_code == 200


def test_every_worker_answers_on_the_grpc_port(server: Any) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        assert client.is_server_ready()
        assert client.is_model_ready("amdim")


def test_a_signal_drains_every_worker(server: Any) -> None:
    workers = workers_of(server.process.pid)
    assert server.stop() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_workers_end_without_their_parent(running_server: Running, repository: Path) -> None:
    with running_server(repository, *FLAGS) as server:
        workers = workers_of(server.process.pid)
        server.process.kill()
        server.process.wait()
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < deadline, "workers outlive their parent"
            time.sleep(0.1)


def test_no_number_of_workers_means_one_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})

    assert load_settings(workers=0).workers == 3
    assert load_settings(workers=2).workers == 2
    assert load_settings().workers == 1
    with pytest.raises(StartError):
        load_settings(workers=-1)
