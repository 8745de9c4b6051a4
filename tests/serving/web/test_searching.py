"""Vectors out: neighbours, boxes, comparison, map, files of vectors, keys, many pictures."""

from __future__ import annotations

import io
import json
import struct

import httpx
import numpy as np
import pytest
from PIL import Image

from amdim_clients.regions import cut_squares
from amdim_clients.searching import shrunk_mean

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def order_of_likeness(vectors, name):
    """Names by falling cosine to one of them less what all have in common, and the cosines."""
    common = shrunk_mean(np.stack(list(vectors.values())), len(vectors))
    rest = {other: vector - common for other, vector in vectors.items()}
    unit = {other: vector / np.linalg.norm(vector) for other, vector in rest.items()}
    scores = {other: float(unit[name] @ vector) for other, vector in unit.items()}
    return sorted(scores, key=lambda other: -scores[other]), scores


def draw(page, box):
    x0, y0, x1, y1 = box
    page.wait_for_function(  # the original has been decoded
        "() => document.querySelector('#inspector .sheet img').naturalWidth > 0"
    )
    frame = page.locator("#inspector .sheet").bounding_box()
    at = lambda x, y: (frame["x"] + x * frame["width"], frame["y"] + y * frame["height"])  # noqa: E731
    page.mouse.move(*at(x0, y0))
    page.mouse.down()
    page.mouse.move(*at((x0 + x1) / 2, y1))
    page.mouse.move(*at(x1, y1))
    page.mouse.up()


def drawn_box(page):
    """The box as the page has it, read from the frame's style."""
    style = page.locator("#inspector .box").evaluate(
        "({ style }) => [style.left, style.top, style.width, style.height].map(parseFloat)"
    )
    left, top, width, height = (value / 100 for value in style)
    return [left, top, left + width, top + height]


def test_neighbours_are_in_the_order_of_the_cosines(filled, vectors):
    page = filled.page
    for name in ("07.jpg", "16.jpg"):
        filled.tile(name).click()
        page.get_by_role("heading", name="Alike").wait_for()
        order, scores = order_of_likeness(vectors, name)
        assert filled.names() == order
        assert filled.scores() == pytest.approx([scores[other] for other in order], abs=0.0051)
        assert page.get_by_role("heading", name=name).is_visible()
        assert filled.tile(name).get_attribute("aria-selected") == "true"
    page.get_by_role("button", name="Show all pictures").click()
    assert filled.names() == list(vectors)
    assert filled.scores() == []


def test_box_finds_the_part_in_other_pictures(filled, vectors, good, served):
    page = filled.page
    filled.tile("06.jpg").click()
    search = page.get_by_role("button", name="Search this box")
    assert search.is_disabled()
    draw(page, (0.3, 0.25, 0.7, 0.6))
    box = drawn_box(page)
    assert box == pytest.approx([0.3, 0.25, 0.7, 0.6], abs=0.02)
    search.click()
    page.get_by_role("heading", name="Holding this part").wait_for()

    by_name = {path.name: path for path in good}
    query = by_name["06.jpg"].read_bytes()
    files = [("query", query), *(("candidates", by_name[name].read_bytes()) for name in vectors)]
    region = {"region": ",".join(map(str, box))}
    answer = httpx.post(f"{served.url}/match", files=files, data=region).raise_for_status().json()
    expected = dict(zip(vectors, answer["data"], strict=True))
    scores = {name: entry["region_score"] for name, entry in expected.items()}
    assert filled.names() == sorted(scores, key=lambda name: -scores[name])
    assert filled.scores() == pytest.approx(sorted(scores.values(), reverse=True), abs=0.0051)
    shown = (
        filled.tile("06.jpg")
        .locator(".found")
        .evaluate(
            "({ style }) => [style.left, style.top, style.width, style.height].map(parseFloat)"
        )
    )
    x0, y0, x1, y1 = expected["06.jpg"]["region_box"]
    with Image.open(by_name["06.jpg"]) as image:
        width, height = image.size
    w, h = width / max(width, height), height / max(width, height)
    place = [(1 - w) / 2 + x0 * w, (1 - h) / 2 + y0 * h, (x1 - x0) * w, (y1 - y0) * h]
    assert shown == pytest.approx([100 * value for value in place], abs=0.01)


def test_box_is_sought_among_windows_where_the_server_has_them(
    visit, running_server, windows_repository, photos, good
):
    with running_server(windows_repository) as server:
        visitor = visit(server.url)
        page = visitor.open()
        sent = []
        page.on("request", lambda request: sent.append(request.url))
        visitor.drop(photos)
        visitor.wait_until_embedded(len(good))
        visitor.tile("06.jpg").click()
        draw(page, (0.3, 0.3, 0.5, 0.7))
        box = drawn_box(page)
        page.get_by_role("button", name="Search this box").click()
        page.get_by_text("by the nearest window of each").wait_for()

        files = [("images", (path.name, path.read_bytes())) for path in good]
        options = {"outputs": "windows", "scales": "1,1.5,2", "encoding_format": "float"}
        answer = httpx.post(f"{server.url}/embed", files=files, params=options).raise_for_status()
        query = next(path for path in good if path.name == "06.jpg").read_bytes()
        bodies = [
            httpx.post(f"{server.url}/embed", content=square).json()
            for square in cut_squares(query, tuple(box))
        ]
        assert len(bodies) == 2  # with a little and with more of what is around
        vector = np.mean([body["data"][0]["embedding"] for body in bodies], axis=0)
        vector /= np.linalg.norm(vector)
        scores = {
            entry["id"]: max(np.max(np.array(grid["data"]) @ vector) for grid in entry["windows"])
            for entry in answer.json()["data"]
        }
        assert visitor.names()[0] == "06.jpg"
        found = dict(zip(visitor.names(), visitor.scores(), strict=True))
        assert found == pytest.approx(scores, abs=0.03)  # float16; two JPEG decoders
        assert visitor.scores() == sorted(visitor.scores(), reverse=True)
        asked = sum("outputs=windows" in url for url in sent)
        assert asked == len(good) / 4

        draw(page, (0.2, 0.2, 0.8, 0.8))
        page.get_by_role("button", name="Search this box").click()
        page.wait_for_function(
            "(old) => document.querySelector('.score').textContent !== old",
            arg=f"{max(found.values()):.2f}",
        )
        assert sum("outputs=windows" in url for url in sent) == asked  # kept from the first box


def test_box_outside_what_the_encoder_sees_is_told(filled):
    filled.expected.append("400")
    filled.tile("01.jpg").click()  # 90 x 130: top and bottom are cut off
    draw(filled.page, (0.2, 0.01, 0.8, 0.09))
    filled.page.get_by_role("button", name="Search this box").click()
    filled.page.get_by_role("alert").get_by_text("lies outside the centre crop").wait_for()


def test_comparison_shows_how_alike_and_where(filled, vectors):
    page = filled.page
    filled.tile("03.jpg").click()
    page.get_by_role("button", name="Compare with…").click()
    assert page.get_by_role("button", name="Now choose the other").is_visible()
    filled.tile("10.jpg").click()
    dialog = page.get_by_role("dialog", name="How alike, and where")
    dialog.get_by_role("img", name="Where 10.jpg holds what 03.jpg shows").wait_for()
    assert dialog.get_by_role("img").count() == 2
    cosine = float(vectors["03.jpg"] @ vectors["10.jpg"])
    assert dialog.locator(".cosine").text_content() == f"{cosine:.3f}"
    page.keyboard.press("Escape")
    assert dialog.is_hidden()
    assert page.get_by_role("heading", name="03.jpg").is_visible()  # only the dialog was left


def test_map_places_walks_and_opens(filled, good):
    page = filled.page
    page.get_by_role("button", name="Map", exact=True).click()
    page.get_by_text(f"{len(good)} pictures, placed by neighbourhood").wait_for()
    page.wait_for_timeout(100)
    canvas = page.locator("#plane")
    colours = """node => new Set(new Uint32Array(node.getContext("2d")
      .getImageData(0, 0, node.width, node.height).data.buffer)).size"""
    assert canvas.evaluate(colours) > 100  # thumbnails have many colours
    before = canvas.screenshot()
    canvas.hover()
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(100)
    assert canvas.screenshot() != before
    canvas.focus()
    page.keyboard.press("0")
    page.keyboard.press("n")
    page.keyboard.press("n")
    page.keyboard.press("Enter")
    assert page.locator("#inspector-title").text_content() == good[1].name
    page.get_by_role("button", name="By neighbours").click()
    page.get_by_text("along the two main axes").wait_for()


def saved(page):
    with page.expect_download() as download:
        page.get_by_role("button", name="Save vectors").click()
    return download.value.path().read_bytes()


def split_file(data):
    """The header of a safetensors file and what follows it."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, body):
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + body


def open_file(page, data):
    file = {"name": "v.safetensors", "mimeType": "application/octet-stream", "buffer": data}
    page.locator("#pick-vectors").set_input_files(file)


def test_saved_vectors_come_back(filled, photos, good, vectors):
    page = filled.page
    data = saved(page)
    header, body = split_file(data)
    start, end = header["embedding"]["data_offsets"]
    stored = np.frombuffer(body[start:end], "<f4").reshape(header["embedding"]["shape"])
    np.testing.assert_allclose(stored, list(vectors.values()), atol=1e-6)
    assert header["__metadata__"]["amdim.encoder_digest"] == "sha256:" + "e" * 64

    filled.open()  # a new page knows nothing
    assert page.locator(".tile").count() == 0
    open_file(page, data)
    page.get_by_text(f"{len(good)} vectors opened.").wait_for()
    filled.wait_until_embedded(len(good))
    page.wait_for_function("() => !document.querySelector('.tile img:not([src])')")
    filled.tile("07.jpg").click()
    assert filled.names() == order_of_likeness(vectors, "07.jpg")[0]
    assert page.get_by_text("Only the vector is here.").is_visible()
    page.keyboard.press("Escape")

    filled.drop(photos)  # gives the originals back
    page.wait_for_function("() => document.querySelectorAll('#failures-list li').length === 1")
    assert len(filled.names()) == len(good)
    filled.tile("07.jpg").click()
    assert page.get_by_text("Draw a box on the picture").is_visible()


def test_vectors_of_another_encoder_are_refused(filled):
    page = filled.page
    header, body = split_file(saved(page))
    header["__metadata__"]["amdim.encoder_digest"] = "sha256:" + "0" * 64
    page.get_by_role("button", name="Clear", exact=True).click()
    open_file(page, joined(header, body))
    refusal = page.get_by_role("alert")
    refusal.get_by_text("These vectors come from another encoder (00000000)").wait_for()
    assert page.locator(".tile").count() == 0
    refusal.get_by_role("button", name="Dismiss").click()

    del header["__metadata__"]["amdim.encoder_digest"]
    open_file(page, joined(header, body))
    page.get_by_role("alert").get_by_text("does not say which encoder").wait_for()
    open_file(page, joined(header, body)[:5000])
    page.get_by_role("alert").get_by_text("The file is cut short").wait_for()
    assert page.locator(".tile").count() == 0


def test_vectors_that_the_server_wrote_are_opened(visitor, good, served):
    files = [("images", path.read_bytes()) for path in good[:4]]
    accept = {"Accept": "application/vnd.safetensors"}
    data = httpx.post(f"{served.url}/embed?normalize=false", files=files, headers=accept).content
    page = visitor.open()
    open_file(page, data)
    visitor.wait_until_embedded(4)
    assert visitor.names() == [f"v.safetensors #{n}" for n in (1, 2, 3, 4)]
    page.locator(".tile").first.click()
    assert visitor.scores()[0] == 1.0  # made of unit length


def focused(page):
    return page.evaluate(
        "() => document.activeElement.id || document.activeElement.textContent.trim()"
    )


def test_everything_by_keys(filled):
    page, press = filled.page, filled.page.keyboard.press
    page.evaluate("() => document.activeElement.blur()")
    walked = []
    for _ in range(9):
        press("Tab")
        walked.append(focused(page))
    assert walked[0] == "Skip to the pictures"
    assert walked[1:8] == ["Pictures", "Map", "add", "add-folder", "save", "open", "clear"]
    while not focused(page).startswith("p"):
        press("Tab")  # notices and failures come before the grid, which is one stop
    first = focused(page)
    press("ArrowRight")
    press("ArrowDown")
    press("ArrowUp")
    press("End")
    press("Home")
    assert focused(page) == first
    press("ArrowRight")
    press("Enter")
    assert page.locator("#inspector-title").text_content() == "03.jpg"
    assert focused(page) == filled.tile("03.jpg").get_attribute("id")  # though the order changed
    filled.page.locator("#inspector .sheet").focus()
    press("Enter")
    assert drawn_box(page) == pytest.approx([0.3, 0.3, 0.7, 0.7])
    press("ArrowRight")
    press("Shift+ArrowDown")
    assert drawn_box(page) == pytest.approx([0.32, 0.3, 0.72, 0.72])
    page.get_by_text("Box from 32 to 72 % across and 30 to 72 % down.").wait_for(state="attached")
    press("Enter")
    page.get_by_role("heading", name="Holding this part").wait_for()
    press("Escape")
    assert page.locator("#inspector .box").is_hidden()
    filled.tile("10.jpg").focus()
    press("c")
    page.get_by_role("dialog", name="How alike, and where").wait_for()
    press("Escape")
    press("Escape")
    assert page.locator("#inspector").is_hidden()
    assert filled.tile("03.jpg").evaluate("node => node === document.activeElement")


def test_two_thousand_pictures_stay_fluid(filled):
    header, _ = split_file(saved(filled.page))
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2000, 12)).astype("<f4")
    thumbnails = []
    for _ in range(2000):
        pixels = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        pixels.resize((160, 120)).save(buffer, "JPEG", quality=60)
        thumbnails.append(buffer.getvalue())
    ends = np.cumsum([len(each) for each in thumbnails]).astype("<u4")
    names = [{"name": f"{n}.jpg", "bytes": 1, "width": 160, "height": 120} for n in range(2000)]
    tensors = {
        "embedding": ("F32", vectors.shape, vectors.tobytes()),
        "thumbnail_ends": ("U32", ends.shape, ends.tobytes()),
        "thumbnails": ("U8", (int(ends[-1]),), b"".join(thumbnails)),
    }
    metadata = {**header["__metadata__"], "amdim.pictures": json.dumps(names)}
    table, body = {"__metadata__": metadata}, b""
    for name, (dtype, shape, data) in tensors.items():
        offsets = [len(body), len(body) + len(data)]
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        body += data
    page = filled.open()
    open_file(page, joined(table, body))
    filled.wait_until_embedded(2000)
    laid_out = page.evaluate(
        """() => [...document.querySelectorAll(".tile .name")].filter(
          (name) => name.checkVisibility({ contentVisibilityAuto: true })).length"""
    )
    assert 0 < laid_out < 400  # the rest costs nothing until it is scrolled to
    frames = page.evaluate(
        """() => new Promise((resolve) => {
          const times = [];
          const step = (now) => {
            times.push(now);
            scrollBy(0, 120);
            if (times.length < 40) requestAnimationFrame(step);
            else resolve(times.slice(1).map((time, at) => time - times[at]));
          };
          requestAnimationFrame(step);
        })"""
    )
    assert np.median(frames) < 100  # ms, on a machine that does other things too
    spent = page.evaluate(
        """() => {
          const began = performance.now();
          document.querySelector(".tile:nth-child(900)").click();
          document.body.offsetHeight;
          return performance.now() - began;
        }"""
    )
    assert spent < 2000
    assert len(filled.scores()) == 2000
