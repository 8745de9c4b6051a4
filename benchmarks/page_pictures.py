"""Takes the page's two pictures in docs/ with the shipped encoder, in a real Chromium.

    python benchmarks/page_pictures.py docs       # page_region.jpg, page_map.jpg

Of the first thirty products of Grocery Store (MIT, (c) 2019 Marcus Klasson) an iconic picture and
four photos each are dropped on the page; a box is drawn on one photo and sought in the others; then
the map, in the dark. The photos are named here, not picked by how well they do.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from load import Server
from neighbors_sheet import as_jpeg
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PRODUCTS, PHOTOS = 30, 4
QUERY, BOX = "natural-278.jpg", (0.38, 0.2, 0.75, 0.55)
ON_MAP = "natural-286.jpg"
SIZE = {"width": 1280, "height": 800}


def main(argv: list[str] | None = None) -> int:
    """Serves, drops, draws and saves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", type=Path, help="the folder to write to")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository")
    pack = ROOT.parent / "shared" / "data" / "grocery_retrieval.parquet"
    parser.add_argument("--pack", type=Path, default=pack)
    arguments = parser.parse_args(argv)
    serve = [sys.executable, "-m", "amdim_clients.cli", "serve", "--port", "0", "--grpc-port", "0"]
    serve += ["--repository", str(arguments.repository), "--drain-delay", "0"]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        count = unpack(arguments.pack, Path(folder) / "photos")
        options = {"executable_path": arguments.chromium, "args": ["--no-sandbox"]}
        browser = playwright.chromium.launch(**options)
        with Server(serve) as server:
            url = f"http://127.0.0.1:{server.port}/"
            for name, scheme in (("page_region", "light"), ("page_map", "dark")):
                page = opened(browser, url, scheme, Path(folder) / "photos", count)
                shot = Path(folder) / "shot.png"
                (draw_region if name == "page_region" else draw_map)(page)
                page.screenshot(path=shot)
                with Image.open(shot) as image:
                    (arguments.target / f"{name}.jpg").write_bytes(as_jpeg(image.convert("RGB")))
                page.context.close()
        browser.close()
    return 0


def unpack(pack: Path, folder: Path) -> int:
    """Writes the pictures as files, a folder a product; returns how many."""
    names = json.loads((pq.read_schema(pack).metadata or {})[b"label_names"])
    taken: dict[tuple[int, str], int] = {}
    for number, row in enumerate(pq.read_table(pack).to_pylist()):
        key = row["label"], row["split"]
        taken[key] = taken.get(key, 0) + 1
        named = f"natural-{number}.jpg" in (QUERY, ON_MAP)
        if not named and (row["label"] >= PRODUCTS or taken[key] > PHOTOS):
            continue
        target = folder / names[row["label"]] / f"{row['split']}-{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(row["image"]["bytes"])
    return sum(1 for path in folder.rglob("*.jpg"))


def opened(browser: Browser, url: str, scheme: str, photos: Path, count: int) -> Page:
    """Returns the page with all pictures embedded."""
    context = browser.new_context(viewport=SIZE, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(url)
    session = context.new_cdp_session(page)
    held = {"items": [], "files": [str(photos)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": 200, "y": 200, "data": held}
        session.send("Input.dispatchDragEvent", event)
    page.wait_for_function(
        """count => document.querySelectorAll(".tile:not(.pending)").length === count
        && document.getElementById("progress").hidden""",
        arg=count,
        timeout=60_000,
    )
    return page


def draw_region(page: Page) -> None:
    """Seeks a box of one photo in the others."""
    page.locator(".tile").filter(has_text=QUERY).click()
    page.wait_for_function("() => document.querySelector('#inspector .sheet img').naturalWidth > 0")
    frame = page.locator("#inspector .sheet").bounding_box()
    assert frame is not None
    x0, y0, x1, y1 = BOX
    corners = [
        (frame["x"] + x * frame["width"], frame["y"] + y * frame["height"])
        for x, y in ((x0, y0), (x1, y1))
    ]
    page.mouse.move(*corners[0])
    page.mouse.down()
    page.mouse.move(*corners[1], steps=3)
    page.mouse.up()
    page.get_by_role("button", name="Search this box").click()
    page.get_by_text("by the nearest window of each").wait_for(timeout=60_000)
    page.wait_for_timeout(500)


def draw_map(page: Page) -> None:
    """Places all pictures, one of them chosen."""
    page.locator(".tile").filter(has_text=ON_MAP).click()
    page.get_by_role("button", name="Map", exact=True).click()
    page.get_by_text("placed by neighbourhood").wait_for(timeout=60_000)
    page.wait_for_timeout(500)


if __name__ == "__main__":
    sys.exit(main())
