"""A tiny but real model repository: a random graph in the contract's shape, certified by itself."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from amdim_clients.images import Preprocess
from amdim_serving.app import create_app
from amdim_serving.deployment import Deployment
from amdim_serving.gateway import Gateway, build_gateway
from amdim_serving.opening import OpenModel, open_model
from amdim_serving.settings import Settings

S, D, E = 32, 8, 12
# A request's deadline where no test is about it: a machine that stops for a while fails nothing.
_PATIENCE_S = 120

ClientFactory = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


def tiny_graph(seed: int = 0) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        values = rng.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(values.astype(np.float32), name)

    def channels_last(source: str, target: str) -> onnx.NodeProto:
        return helper.make_node("Transpose", [source], [target], perm=[0, 2, 3, 1])

    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["nchw"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Conv", ["pooled", "w7"], ["f7"]),
        helper.make_node("Conv", ["pooled", "w5"], ["f5"]),
        helper.make_node("Conv", ["pooled", "w1"], ["f1"]),
        helper.make_node("Flatten", ["f1"], ["global"]),
        helper.make_node("MatMul", ["global", "whiten"], ["embedding"]),
        channels_last("f5", "local5"),
        channels_last("f7", "local7"),
    ]

    def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])

    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", S, S, 3])],
        [
            value("embedding", E),
            value("global", D),
            value("local5", 5, 5, D),
            value("local7", 7, 7, D),
        ],
        [
            numpy_helper.from_array(np.array(127.5, np.float32), "mean"),
            numpy_helper.from_array(np.array(64.0, np.float32), "std"),
            weights("w7", D, 3, 2, 2),
            weights("w5", D, 3, 4, 4),
            weights("w1", D, 3, 8, 8),
            weights("whiten", D, E),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _config(digests: dict[str, str], max_batch_size: int, delay_us: int) -> str:
    parameters = {
        "format": "1",
        "image_size": str(S),
        "resize": str(Preprocess.for_image_size(S).resize),
        "preprocess_version": "1",
        "embed_dim": str(D),
        "embedding_dim": str(E),
        "default_output": "embedding",
        "precision": "fp32",
        **digests,
    }
    outputs = {"embedding": [E], "global": [D], "local5": [5, 5, D], "local7": [7, 7, D]}
    lines = [
        'name: "amdim"',
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        f"max_batch_size: {max_batch_size}",
        f'input [{{ name: "images" data_type: TYPE_UINT8 dims: [{S}, {S}, 3] }}]',
        *(
            f'output {{ name: "{name}" data_type: TYPE_FP32 dims: {dims} }}'
            for name, dims in outputs.items()
        ),
        f"dynamic_batching {{ max_queue_delay_microseconds: {delay_us} }}",
        "instance_group [{ count: 1 kind: KIND_CPU }]",
        "version_policy { latest { num_versions: 1 } }",
        *(
            f'parameters {{ key: "amdim.{key}" value {{ string_value: "{text}" }} }}'
            for key, text in parameters.items()
        ),
    ]
    return "\n".join(lines)


def _packed(array: np.ndarray) -> dict[str, object]:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"shape": list(array.shape), "dtype": array.dtype.name, "data": data}


def write_repository(
    root: Path,
    *,
    version_name: str = "1",
    seed: int = 0,
    canary_shift: float = 0.0,
    max_batch_size: int = 4,
    delay_us: int = 0,
) -> Path:
    """Writes a version of model_repository/amdim; a `canary_shift` makes its certificate untrue."""
    version = root / "amdim" / version_name
    version.mkdir(parents=True)
    data = tiny_graph(seed).SerializeToString()
    (version / "model.onnx").write_bytes(data)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(1).integers(0, 256, (16, S, S, 3), dtype=np.uint8)
    names = ["embedding", "global", "local5", "local7"]
    vectors = dict(zip(names, session.run(names, {"images": pixels}), strict=True))

    digests = {
        "encoder_digest": "sha256:" + "e" * 64,
        "preprocess_digest": Preprocess.for_image_size(S).digest,
        "artifact_digest": "sha256:" + hashlib.sha256(data).hexdigest(),
    }
    certificate = {
        "format": 1,
        **digests,
        "precision": "fp32",
        "tolerance": {"max_relative_error": 1e-3, "min_cosine": 0.9999},
        "canaries": {
            "pixels": _packed(pixels),
            "vectors": {name: _packed(array + canary_shift) for name, array in vectors.items()},
        },
    }
    (version / "certificate.json").write_text(json.dumps(certificate))
    (root / "amdim" / "config.pbtxt").write_text(_config(digests, max_batch_size, delay_us))
    return root


def windows_graph() -> onnx.ModelProto:
    """The tiny graph's `embedding` of every window: it pads nothing, so one pass gives them all."""
    model = tiny_graph()
    graph = model.graph
    kept = [node for node in graph.node if node.output[0] in _TO_F1]
    del graph.node[:]
    graph.node.extend(kept)
    graph.node.append(helper.make_node("Transpose", ["f1"], ["grid"], perm=[0, 2, 3, 1]))
    graph.node.append(helper.make_node("MatMul", ["grid", "whiten"], ["windows"]))
    for tensor in [weight for weight in graph.initializer if weight.name in ("w5", "w7")]:
        graph.initializer.remove(tensor)
    del graph.input[:], graph.output[:]
    sizes: list[str | int | None] = ["N", "H", "W", 3]
    graph.input.append(helper.make_tensor_value_info("images", TensorProto.UINT8, sizes))
    shape: list[str | int | None] = ["N", "h", "w", E]
    graph.output.append(helper.make_tensor_value_info("windows", TensorProto.FLOAT, shape))
    return model


_TO_F1 = ("float", "centred", "scaled", "nchw", "pooled", "f1")


def write_windows(root: Path, *, encoder: str = "e" * 64, canary_shift: float = 0.0) -> Path:
    """Writes model_repository/amdim_windows/1 beside the tiny model."""
    version = root / "amdim_windows" / "1"
    version.mkdir(parents=True)
    data = windows_graph().SerializeToString()
    (version / "model.onnx").write_bytes(data)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(2).integers(0, 256, (4, S + 4, S + 8, 3), dtype=np.uint8)
    (windows,) = session.run(["windows"], {"images": pixels})
    config = (root / "amdim" / "config.pbtxt").read_text()
    certificate = json.loads((root / "amdim" / "1" / "certificate.json").read_text())
    own = "sha256:" + hashlib.sha256(data).hexdigest()
    old = certificate["artifact_digest"]
    certificate |= {"artifact_digest": own, "encoder_digest": "sha256:" + encoder}
    certificate["canaries"] = {
        "pixels": _packed(pixels),
        "vectors": {"windows": _packed(windows + np.float32(canary_shift))},
    }
    (version / "certificate.json").write_text(json.dumps(certificate))
    lines = [
        line.replace(f"[{S}, {S}, 3]", "[-1, -1, 3]")
        .replace('"amdim"', '"amdim_windows"')
        .replace('string_value: "embedding"', 'string_value: "windows"')
        .replace(old, own)
        .replace("e" * 64, encoder)
        for line in config.splitlines()
        if not line.startswith("output")
    ]
    lines += [
        f'output {{ name: "windows" data_type: TYPE_FP32 dims: [-1, -1, {E}] }}',
        'parameters { key: "amdim.kind" value { string_value: "windows" } }',
        'parameters { key: "amdim.window_stride" value { string_value: "4" } }',
    ]
    (root / "amdim_windows" / "config.pbtxt").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="session")
def publish_windows() -> Callable[..., Path]:
    """Writes the windows model of the tiny model beside it."""
    return write_windows


@pytest.fixture(scope="session")
def windows_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_windows(write_repository(tmp_path_factory.mktemp("with-windows")))


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
def publish() -> Callable[..., Path]:
    """Writes a version of the tiny model: `publish(root, version_name="2", seed=1)`."""
    return write_repository


@pytest.fixture
def lying_repository(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "lying", canary_shift=0.5)


@pytest.fixture
def opened(repository: Path) -> Iterator[OpenModel]:
    model = open_model(repository, "amdim", threads=1)
    yield model
    model.engine.close()


@pytest.fixture
def client_for(repository: Path) -> ClientFactory:
    """Opens an in-process client of a gateway on the tiny model; keywords are settings."""

    @asynccontextmanager
    async def connect(
        *, prepare: Callable[[Gateway], None] | None = None, **settings: object
    ) -> AsyncIterator[httpx.AsyncClient]:
        values = {"model_repository": repository, "engine": "onnxruntime", "threads": 1}
        values["deadline_seconds"] = _PATIENCE_S
        values |= settings
        gateway = build_gateway(Settings(**values))  # type: ignore[arg-type]
        if prepare is not None:
            prepare(gateway)
        app = create_app(Deployment(gateway))
        async with app.lifespan():
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                yield client

    return connect


def encode_picture(size: tuple[int, int] = (120, 90), kind: str = "JPEG", seed: int = 0) -> bytes:
    """A picture with structure at every scale."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., bytes]:
    return encode_picture


_READY = re.compile(r"ready on http://127\.0\.0\.1:(\d+) \(gRPC (\d+|off)\) in")


class Server:
    """A real `amdim serve` process on free ports."""

    def __init__(self, repository: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "amdim_clients.cli", "serve", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--repository", str(repository), *flags],
            env={"AMDIM_DEADLINE_SECONDS": str(_PATIENCE_S), **os.environ},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        told = threading.Event()

        def listen() -> None:
            # to its end: a pipe that nobody empties would stop the server once it is full
            assert self.process.stderr is not None
            with self.process.stderr as stream:
                for line in stream:
                    self.lines.append(line)
                    if found := _READY.search(line):
                        self.port = int(found[1])
                        self.grpc_port = 0 if found[2] == "off" else int(found[2])
                        told.set()
            told.set()

        self._listener = threading.Thread(target=listen, daemon=True)
        self._listener.start()
        told.wait(120)
        if not hasattr(self, "port"):
            self.process.kill()
            pytest.fail("the server did not start: " + self.log())
        self.url = f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        """All that an ended server has said."""
        self._listener.join(30)
        return "".join(self.lines)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@contextlib.contextmanager
def running(repository: Path, *flags: str) -> Iterator[Server]:
    server = Server(repository, *flags)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        server.log()


@pytest.fixture(scope="session")
def running_server() -> Callable[..., contextlib.AbstractContextManager[Server]]:
    """Starts a server on a repository, with flags; ends it on leaving."""
    return running


@pytest.fixture(scope="session")
def served(repository: Path) -> Iterator[Server]:
    """One server for the tests that only ask."""
    with running(repository) as server:
        yield server
