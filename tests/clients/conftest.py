from __future__ import annotations

import asyncio
import base64
import dataclasses
import functools
import io
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from amdim_clients.cli import main
from amdim_clients.contract import ModelSpec, read_model_spec
from amdim_clients.embedders import LocalEmbedder
from amdim_clients.errors import ImageError
from amdim_clients.images import Preprocess, decode_image
from amdim_clients.window_embedders import LocalWindowEmbedder
from amdim_clients.window_rows import WindowPlan
from amdim_clients.windows import decode_windows

SIDE, D, E = 64, 8, 6


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


CONFIG = """
name: "amdim"
backend: "onnxruntime"
default_model_filename: "model.onnx"
max_batch_size: 16
input [ {{ name: "images" data_type: TYPE_UINT8 dims: [ 64, 64, 3 ] }} ]
output [
  {{ name: "embedding" data_type: TYPE_FP32 dims: [ 6 ] }},
  {{ name: "global" data_type: TYPE_FP32 dims: [ 8 ] }},
  {{ name: "local5" data_type: TYPE_FP32 dims: [ 5, 5, 8 ] }},
  {{ name: "local7" data_type: TYPE_FP32 dims: [ 7, 7, 8 ] }}
]
dynamic_batching {{ max_queue_delay_microseconds: 250 }}
instance_group [ {{ count: 2 kind: KIND_CPU }} ]
version_policy {{ latest {{ num_versions: 1 }} }}
{parameters}
"""


def parameters() -> dict[str, str]:
    return {
        "format": "1",
        "image_size": "64",
        "resize": "70",
        "preprocess_version": "1",
        "embed_dim": "8",
        "embedding_dim": "6",
        "default_output": "embedding",
        "encoder_digest": digest("a"),
        "preprocess_digest": Preprocess.for_image_size(64).digest,
        "artifact_digest": digest("c"),
        "precision": "fp32",
    }


def config_text(values: dict[str, str], template: str = CONFIG) -> str:
    lines = [
        f'parameters {{ key: "amdim.{key}" value {{ string_value: "{value}" }} }}'
        for key, value in values.items()
    ]
    return template.format(parameters="\n".join(lines))


def encoded(array: np.ndarray) -> dict[str, object]:
    data = base64.b64encode(array.tobytes()).decode()
    return {"shape": list(array.shape), "dtype": array.dtype.name, "data": data}


def certificate_document(values: dict[str, str]) -> dict[str, object]:
    return {
        "format": 1,
        **{k: values[k] for k in ("encoder_digest", "preprocess_digest", "artifact_digest")},
        "precision": values["precision"],
        "tolerance": {"max_relative_error": 1e-3, "min_cosine": 0.9999},
        "canaries": {
            "pixels": encoded(np.zeros((2, SIDE, SIDE, 3), np.uint8)),
            "vectors": {
                "embedding": encoded(np.ones((2, E), np.float32)),
                "global": encoded(np.ones((2, D), np.float32)),
            },
        },
    }


@pytest.fixture
def model_dir(tmp_path):
    folder = tmp_path / "model_repository" / "amdim"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config_text(parameters()))
    (folder / "1" / "certificate.json").write_text(json.dumps(certificate_document(parameters())))
    return folder


@pytest.fixture
def write_config(model_dir):
    """Rewrites the model's config with some parameters changed, or left out where None."""

    def write(**changes: str | None) -> None:
        values = {**parameters(), **changes}
        kept = {key: value for key, value in values.items() if value is not None}
        (model_dir / "config.pbtxt").write_text(config_text(kept))

    return write


@pytest.fixture
def write_certificate(model_dir):
    """Writes a version's certificate after `edit` changed the document in place."""

    def write(version="1", edit=lambda document: None) -> None:
        document = certificate_document(parameters())
        edit(document)
        (model_dir / version).mkdir(exist_ok=True)
        (model_dir / version / "certificate.json").write_text(json.dumps(document))

    return write


@pytest.fixture(scope="session")
def photo_bytes():
    """A factory of small JPEGs, each seed another picture."""

    @functools.cache
    def make(seed: int = 0, size: tuple[int, int] = (120, 90), format: str = "JPEG") -> bytes:
        rng = np.random.default_rng(seed)
        blocks = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        blocks.resize(size, Image.Resampling.BICUBIC).save(buffer, format)
        return buffer.getvalue()

    return make


class FakeGateway:
    """`POST /embed` as the wire contract says it, with a toy encoder behind real decoding.

    `answers` holds canned httpx responses that are given first.
    """

    def __init__(self):
        self.answers: list[httpx.Response | Exception] = []
        self.requests: list[dict[str, Any]] = []
        self.max_images = 1000
        self.max_windows = 2048
        self.encoder_digest = digest("a")
        self.running = self.most_running = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/model":
            return httpx.Response(200, json={"limits": {"max_images": self.max_images}})
        body = json.loads(request.content)
        self.requests.append(body)
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        if len(body["images"]) > self.max_images:
            return wire_error(413, "too_many_images")
        return httpx.Response(200, json=self.answer(body))

    async def asynchronous(self, request: httpx.Request) -> httpx.Response:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0.01)
        self.running -= 1
        return self(request)

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        data: list[dict[str, object]] = []
        for index, image in enumerate(body["images"]):
            try:
                decoded = decode_image(
                    base64.b64decode(image["data"]), Preprocess.for_image_size(64)
                )
            except ImageError as error:
                failure = {"code": error.code, "message": error.message}
                data.append({"index": index, "error": failure})
                continue
            if "windows" in body.get("outputs", []):
                data.append(self.windows(index, base64.b64decode(image["data"]), body["scales"]))
                continue
            vectors = toy_encode(decoded.pixels[None], body.get("outputs", ["embedding"]))
            if body["normalize"]:
                vectors = {
                    name: v / np.linalg.norm(v, axis=-1, keepdims=True)
                    for name, v in vectors.items()
                }
            data.append({"index": index, **{name: encoded(v[0]) for name, v in vectors.items()}})
        return {
            "model": "amdim",
            "version": "1",
            "encoder_digest": self.encoder_digest,
            "preprocess_digest": Preprocess.for_image_size(64).digest,
            "artifact_digest": digest("c"),
            "normalized": body["normalize"],
            "data": data,
            "usage": {"images": len(data), "pixels": 0},
        }

    def windows(self, index: int, data: bytes, scales: list[float]) -> dict[str, Any]:
        parts = []
        preprocess = Preprocess.for_image_size(64)
        try:
            grids = decode_windows(data, preprocess, scales, max_windows=self.max_windows)
        except ImageError as error:
            return {"index": index, "error": {"code": error.code, "message": error.message}}
        for grid, pixels in grids:
            crops = np.lib.stride_tricks.sliding_window_view(pixels, (SIDE, SIDE), axis=(0, 1))
            crops = crops[::8, ::8].transpose(0, 1, 3, 4, 2)
            flat = np.ascontiguousarray(crops).reshape(-1, SIDE, SIDE, 3)
            vectors = toy_encode(flat, ["embedding"])["embedding"].reshape(*crops.shape[:2], E)
            vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
            parts.append(
                {
                    "scale": grid.scale,
                    "first_box": grid.first_box,
                    "step": grid.step,
                    **encoded(vectors.astype(np.float16)),
                }
            )
        return {"index": index, "windows": parts}


def wire_error(status: int, code: str, **headers: str) -> httpx.Response:
    document = {"error": {"code": code, "message": "A sentence.", "request_id": "r-1"}}
    return httpx.Response(
        status, json=document, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


def toy_encode(pixels, outputs):
    """Averages of pixel blocks, so that alike pictures get alike vectors."""
    shapes = {"embedding": (E,), "global": (D,), "local5": (5, 5, D), "local7": (7, 7, D)}
    grid = pixels.reshape(len(pixels), 8, 8, 8, 8, 3).mean((2, 4)).reshape(len(pixels), -1)
    vectors = {}
    for name in outputs:
        size = int(np.prod(shapes[name]))
        projection = np.random.default_rng(size).standard_normal((grid.shape[1], size))
        vector = (grid / 255 - 0.5) @ projection
        vectors[name] = vector.reshape(-1, *shapes[name]).astype(np.float32)
    return vectors


@pytest.fixture
def gateway():
    return FakeGateway()


@pytest.fixture
def make_wire_error():
    return wire_error


@pytest.fixture
def encode_toy():
    return toy_encode


class ToyEncoder:
    """A local encoder in the contract's shape whose arithmetic is a few averages."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.batches: list[int] = []
        self.is_closed = False

    def encode(self, images, outputs):
        assert images.dtype == np.uint8
        self.batches.append(len(images))
        return toy_encode(images, outputs)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def toy_encoder(model_dir):
    return ToyEncoder(read_model_spec(model_dir))


@pytest.fixture
def toy_embedder(toy_encoder):
    return LocalEmbedder(toy_encoder)


@pytest.fixture
def photo_folder(tmp_path, photo_bytes):
    """Nested folders of 20 photos, one text file called .jpg, one cut photo and one to ignore."""
    folder = tmp_path / "photos"
    for n in range(20):
        inner = folder / f"class{n % 3}"
        inner.mkdir(parents=True, exist_ok=True)
        (inner / f"{n:02}.jpg").write_bytes(photo_bytes(n))
    (folder / "broken.jpg").write_text("no photo")
    (folder / "cut.png").write_bytes(photo_bytes(3, format="PNG")[:200])
    (folder / "notes.txt").write_text("not looked at")
    (folder / ".hidden.jpg").write_bytes(photo_bytes(1))
    return folder


@pytest.fixture
def parquet_pack(tmp_path, photo_bytes):
    images = [{"bytes": photo_bytes(n), "path": f"c/{n}.jpg" if n else None} for n in range(70)]
    images[5]["bytes"] = b"broken"
    images[6]["bytes"] = None
    path = tmp_path / "pack.parquet"
    pq.write_table(pa.table({"image": images, "label": list(range(70))}), path)
    return path


@pytest.fixture
def gateway_transport(gateway):
    return httpx.MockTransport(gateway)


@pytest.fixture(scope="session")
def repository(repo_root):
    """The shipped model; another one where `AMDIM_MODEL_REPOSITORY` names it."""
    folder = Path(os.environ.get("AMDIM_MODEL_REPOSITORY", repo_root / "model_repository"))
    if not (folder / "amdim" / "config.pbtxt").is_file():
        missing = f"needs a model at {folder}/amdim"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return folder


@pytest.fixture(scope="session")
def gateway_process(repository):
    """HTTP and gRPC addresses of a real gateway in a process of its own."""
    command = [sys.executable, "-m", "amdim_clients.cli", "serve", "--port", "0", "--grpc-port"]
    # the engine and precision of the one in process, so that vectors can be compared closely
    options = ["--repository", str(repository), "--engine", "onnxruntime", "--precision", "fp32"]
    process = subprocess.Popen([*command, "0", *options], stderr=subprocess.PIPE, text=True)
    stderr = process.stderr
    assert stderr is not None
    lines: list[str] = []
    # a pipe that nobody empties would stop the server once it is full
    emptied = threading.Thread(target=lambda: lines.extend(stderr), daemon=True)
    try:
        for line in stderr:
            lines.append(line)
            if found := re.search(r"ready on (http://127\.0\.0\.1:\d+) \(gRPC (\d+)\)", line):
                emptied.start()
                yield found[1], f"127.0.0.1:{found[2]}"
                break
        else:
            pytest.fail("the gateway did not start: " + "".join(lines))
    finally:
        process.terminate()
        process.wait(20)
        if emptied.ident is not None:
            emptied.join(20)
        stderr.close()


@pytest.fixture(scope="session")
def served(gateway_process):
    """The HTTP address of a real gateway."""
    return gateway_process[0]


@pytest.fixture
def run_amdim(capsys):
    """Runs the command line in process; gives its exit code, output and errors."""

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return left.value.code or 0, printed.out, printed.err

    return run


class ToyWindows:
    """A local model of windows: the toy encoder on every window, one after the other."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = dataclasses.replace(
            spec, name="amdim_windows", outputs={"windows": (-1, -1, E)}, window_stride=8
        )
        self.pictures = 0

    def encode(self, pixels):
        self.pictures += len(pixels)
        crops = np.lib.stride_tricks.sliding_window_view(pixels, (SIDE, SIDE), axis=(1, 2))
        crops = crops[:, ::8, ::8].transpose(0, 1, 2, 4, 5, 3)  # (N, h, w, S, S, 3)
        flat = np.ascontiguousarray(crops).reshape(-1, SIDE, SIDE, 3)
        return toy_encode(flat, ["embedding"])["embedding"].reshape(*crops.shape[:3], E)

    def close(self) -> None:
        pass


@pytest.fixture
def toy_windows(toy_encoder):
    return ToyWindows(toy_encoder.spec)


@pytest.fixture
def window_embedder(toy_windows):
    return LocalWindowEmbedder(toy_windows, WindowPlan((1.0, 1.5, 2.0), 2))
