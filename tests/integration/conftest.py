from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from PIL import Image
from tritonclient.utils import InferenceServerException

from amdim_export.canaries import draw_canaries
from amdim_export.finetune import FineTuning
from amdim_export.pipeline import ExportOptions, export_encoder
from amdim_export.quantize import QuantizeOptions, quantize_encoder
from amdim_export.runtime import OnnxEncoder
from amdim_training.checkpoint import save_checkpoint
from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.views import Normalization

TOOLS = Path(__file__).resolve().parents[2] / "export" / "triton_server"
READY_WITHIN_S = 60.0
MAX_BATCH = 16


@dataclasses.dataclass
class Triton:
    """A running Triton server of the test's own."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.port + 1}"

    @property
    def metrics(self) -> str:
        return f"127.0.0.1:{self.port + 2}"

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"Triton ended:\n{self.tail()}"
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=5).close()
                return
            time.sleep(0.1)
        pytest.fail(f"Triton was not ready within {READY_WITHIN_S:.0f} s:\n{self.tail()}")

    def stop(self, *, how: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])


@pytest.fixture(scope="session")
def triton_python() -> Path:
    """The Python of the pinned Triton environment, built where it is not there yet.

    Where it cannot be built a test is skipped; in CI it fails, lest a green run prove nothing.
    """
    build = subprocess.run(["bash", TOOLS / "build.sh"], capture_output=True, text=True)
    python = TOOLS.parents[1] / ".venv" / "triton" / "bin" / "python"
    if build.returncode == 0:
        return python
    problem = f"the Triton environment cannot be built: {build.stderr[-500:]}"
    if os.environ.get("CI") == "true":
        pytest.fail(problem)
    pytest.skip(problem)


@pytest.fixture(scope="session")
def start_triton(
    triton_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Triton]]:
    """Starts Triton on a repository and waits for it; every server is stopped at the end."""
    running: list[Triton] = []

    def start(repository: Path, *flags: str, explicit: bool = False) -> Triton:
        port = _three_free_ports()
        log = tmp_path_factory.mktemp("triton") / "log"
        command = [triton_python, TOOLS / "run.py", repository, "--port", str(port)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*map(str, command), *(["--explicit"] if explicit else []), *flags],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        server = Triton(process, port, log)
        running.append(server)
        server.wait_until_ready()
        return server

    yield start
    for server in running:
        server.stop()


@pytest.fixture(scope="session")
def photos() -> list[bytes]:
    """Ten pictures in three formats."""
    files = []
    for index, pixels in enumerate(draw_canaries(128)[:10]):
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((160, 120)).save(buffer, ("JPEG", "PNG", "WEBP")[index % 3])
        files.append(buffer.getvalue())
    return files


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, photos: list[bytes]) -> Path:
    """Two versions of an encoder and all that goes with it; read only."""
    root = tmp_path_factory.mktemp("triton-repository")
    pictures = root / "pictures"
    pictures.mkdir()
    for index, data in enumerate(photos):
        (pictures / f"{index}.png").write_bytes(data)
    normalization = Normalization(mean=(0.43, 0.42, 0.39), std=(0.27, 0.26, 0.27))
    encoder = AmdimEncoder(EncoderConfig(width=4, embed_dim=40))
    checkpoint = save_checkpoint(root / "checkpoint", encoder, normalization)
    options = ExportOptions(fit_on=(pictures,), max_batch_size=MAX_BATCH, image=True, windows=True)
    models = root / "models"
    export_encoder(checkpoint, models, options)
    export_encoder(checkpoint, models, ExportOptions(max_batch_size=MAX_BATCH, image=True))
    int8 = QuantizeOptions(
        calibrate_on=(pictures,),
        parity_on=(pictures,),
        tuning=FineTuning(steps=0),
        max_batch_size=MAX_BATCH,
    )
    quantize_encoder(checkpoint, models, int8)
    return models


@pytest.fixture(scope="session")
def triton(start_triton: Callable[..., Triton], repository: Path) -> Triton:
    """A server that only answers: tests that load, unload or kill start their own."""
    return start_triton(repository)


@pytest.fixture(scope="session")
def in_process(repository: Path) -> OnnxEncoder:
    """What the served version gives without a server."""
    return OnnxEncoder(repository / "amdim" / "2" / "model.onnx")


@pytest.fixture(scope="session")
def grpc_client(triton: Triton) -> Iterator[grpc.InferenceServerClient]:
    """A gRPC client of it."""
    with grpc.InferenceServerClient(triton.grpc) as client:
        yield client


@pytest.fixture(scope="session")
def http_client(triton: Triton) -> Iterator[http.InferenceServerClient]:
    """An HTTP client of it."""
    with http.InferenceServerClient(triton.http) as client:
        yield client


def _three_free_ports() -> int:
    for first in range(8100, 8400, 3):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + 3):
                    held = stack.enter_context(socket.socket())
                    held.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    pytest.fail("no three free ports between 8100 and 8400")


@pytest.fixture(scope="session")
def let_go() -> Callable[[http.InferenceServerClient | grpc.InferenceServerClient, str], None]:
    """Unregisters shared memory from Triton, which lets go of it a moment after the answer."""

    def unregister(
        client: http.InferenceServerClient | grpc.InferenceServerClient, name: str
    ) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                return client.unregister_system_shared_memory(name)
            except InferenceServerException as error:
                if "in use" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    return unregister
