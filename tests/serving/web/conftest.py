"""A real Chromium on the page of a real server; any complaint of the page fails the test."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

_NOTE_VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) => {
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`);
});
"""


# Not for the session: while Playwright runs, no test of another module can run an event loop.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        missing = "needs Chromium; on Debian and Ubuntu: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


class Visitor:
    """Opens the page, and does what a reader does with it.

    Attributes:
        complaints: Errors and warnings of the console, uncaught exceptions, policy violations.
        expected: Parts of complaints that a test provokes.
    """

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.page: Page = context.new_page()
        self.url = url
        self.complaints: list[str] = []
        self.expected: list[str] = []
        self.page.set_default_timeout(15_000)
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def open(self) -> Page:
        self.page.goto(self.url)
        self.page.wait_for_function(
            "() => document.getElementById('model').textContent.includes('fp32')"
        )
        return self.page

    def drop(self, *paths: Path) -> None:
        """Drops files and folders from the desktop, as the browser itself receives them."""
        session = self.page.context.new_cdp_session(self.page)
        held = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            event = {"type": kind, "x": 200, "y": 200, "data": held}
            session.send("Input.dispatchDragEvent", event)
        session.detach()

    def wait_until_embedded(self, count: int) -> None:
        self.page.wait_for_function(
            """count => document.querySelectorAll(".tile:not(.pending)").length === count
            && document.getElementById("progress").hidden""",
            arg=count,
            timeout=60_000,
        )

    def names(self) -> list[str]:
        """The tiles in their order, without the folder that was dropped."""
        found = self.page.locator(".tile .name").all_text_contents()
        return [name.rpartition("/")[2] for name in found]

    def scores(self) -> list[float]:
        return [float(text) for text in self.page.locator(".tile .score").all_text_contents()]

    def tile(self, name: str) -> Any:
        return self.page.locator(".tile").filter(has_text=name)

    def unexpected(self) -> list[str]:
        return [text for text in self.complaints if not any(part in text for part in self.expected)]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visitor]]:
    """Makes a visitor of an address; keywords are the browser context's."""
    visitors = []

    def start(url: str, **options: Any) -> Visitor:
        context = browser.new_context(viewport={"width": 1200, "height": 800}, **options)
        context.add_init_script(_NOTE_VIOLATIONS)
        visitors.append(Visitor(context, url))
        return visitors[-1]

    yield start
    for visitor in visitors:
        visitor.page.context.close()
        assert visitor.unexpected() == []


@pytest.fixture
def visitor(visit: Callable[..., Visitor], served: Any) -> Visitor:
    return visit(served.url)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, make_picture: Callable[..., bytes]) -> Path:
    """24 pictures of several shapes in nested folders; a broken one, a text and a hidden file."""
    folder = tmp_path_factory.mktemp("drop") / "photos"
    for n in range(24):
        inner = folder / ("a" if n % 2 else "b/c")
        inner.mkdir(parents=True, exist_ok=True)
        size = [(120, 90), (90, 130), (100, 100)][n % 3]
        (inner / f"{n:02}.jpg").write_bytes(make_picture(size, seed=n))
    (folder / "broken.jpg").write_bytes(make_picture(seed=1)[:700])
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.jpg").write_bytes(make_picture(seed=2))
    return folder


@pytest.fixture(scope="session")
def good(photos: Path) -> list[Path]:
    """The pictures that can be embedded, in the page's order."""
    return sorted(photos.rglob("[0-9]*.jpg"), key=str)


@pytest.fixture(scope="session")
def vectors(good: list[Path], served: Any) -> dict[str, Any]:
    """The unit vector of each picture by its name, from /embed as JSON numbers."""
    files = [("images", (path.name, path.read_bytes())) for path in good]
    data = httpx.post(f"{served.url}/embed", files=files).raise_for_status().json()["data"]
    return {entry["id"]: np.array(entry["embedding"], np.float32) for entry in data}


@pytest.fixture
def filled(visitor: Visitor, photos: Path, good: list[Path]) -> Visitor:
    """The page with the pictures embedded."""
    visitor.open()
    visitor.drop(photos)
    visitor.wait_until_embedded(len(good))
    return visitor


@pytest.fixture(scope="session")
def windows_repository(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, and the same weights run over pictures of any size."""
    root = tmp_path_factory.mktemp("windows") / "repository"
    shutil.copytree(repository, root)
    data = _windows_graph(onnx.load(root / "amdim" / "1" / "model.onnx")).SerializeToString()
    version = root / "amdim_windows" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(data)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(1).integers(0, 256, (16, 36, 44, 3), dtype=np.uint8)
    (vectors,) = session.run(["windows"], {"images": pixels})
    certificate = json.loads((root / "amdim" / "1" / "certificate.json").read_text())
    artifact = certificate["artifact_digest"]
    certificate["artifact_digest"] = "sha256:" + hashlib.sha256(data).hexdigest()
    certificate["canaries"] = {"pixels": _packed(pixels), "vectors": {"windows": _packed(vectors)}}
    (version / "certificate.json").write_text(json.dumps(certificate))

    config = (root / "amdim" / "config.pbtxt").read_text()
    kept = [line for line in config.splitlines() if not line.startswith("output ")]
    config = "\n".join(kept).replace(artifact, certificate["artifact_digest"])
    for old, new in [
        ('name: "amdim"', 'name: "amdim_windows"'),
        ("dims: [32, 32, 3]", "dims: [-1, -1, 3]"),
        ('string_value: "embedding"', 'string_value: "windows"'),
    ]:
        assert old in config
        config = config.replace(old, new)
    width = vectors.shape[-1]
    config += f'\noutput {{ name: "windows" data_type: TYPE_FP32 dims: [-1, -1, {width}] }}'
    for key, value in [("kind", "windows"), ("encoder", "amdim"), ("window_stride", "4")]:
        config += f'\nparameters {{ key: "amdim.{key}" value {{ string_value: "{value}" }} }}'
    (root / "amdim_windows" / "config.pbtxt").write_text(config)
    return root


def _windows_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """The tiny graph without its fixed size: `embedding` of every window."""
    graph = model.graph
    upto = [node for node in graph.node if node.output[0] not in ("f7", "f5", "local5", "local7")]
    body = [node for node in upto if node.op_type not in ("Flatten", "MatMul")]
    whitening = next(node.input[1] for node in upto if node.op_type == "MatMul")
    body.append(onnx.helper.make_node("Transpose", ["f1"], ["last"], perm=[0, 2, 3, 1]))
    body.append(onnx.helper.make_node("MatMul", ["last", whitening], ["windows"]))
    floats, uint8 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8
    used = {name for node in body for name in node.input}
    weights = [each for each in graph.initializer if each.name in used]
    width = next(each.dims[1] for each in weights if each.name == whitening)
    images = onnx.helper.make_tensor_value_info("images", uint8, ["N", "H", "W", 3])
    windows = onnx.helper.make_tensor_value_info("windows", floats, ["N", "h", "w", width])
    whole = onnx.helper.make_graph(body, "windows", [images], [windows], weights)
    return onnx.helper.make_model(whole, opset_imports=model.opset_import, ir_version=9)


def _packed(array: NDArray[Any]) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"shape": list(array.shape), "dtype": array.dtype.name, "data": data}
