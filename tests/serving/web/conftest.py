"""A real Chromium on the page of a real server; any complaint of the page fails the test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
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
