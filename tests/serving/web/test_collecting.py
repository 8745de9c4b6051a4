"""Pictures in: dropped, chosen, pasted; progress, failures, servers that refuse."""

from __future__ import annotations

import base64
import re

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

_WATCH_PROGRESS = """
window.seen = [];
const text = document.getElementById("progress-text");
new MutationObserver(() => window.seen.push(text.textContent)).observe(text, { childList: true });
"""


def test_dropped_folder_is_walked_to_its_ends(visitor, photos, good):
    page = visitor.open()
    page.evaluate(_WATCH_PROGRESS)
    visitor.drop(photos)
    page.get_by_text("Passed over: 1 file that is no picture.").wait_for()
    visitor.wait_until_embedded(len(good))

    assert visitor.names() == [path.name for path in good]
    assert page.locator(".tile").first.get_attribute("aria-label") == "photos/a/01.jpg"
    page.wait_for_function(
        "() => !document.querySelector('.tile img:not([src])')"
    )  # all have thumbnails
    assert page.locator("#failures-title").text_content() == "1 picture could not be embedded"
    failure = page.locator("#failures-list li").text_content()
    assert re.fullmatch(r"photos/broken\.jpg The image .+\.", failure)
    counts = [int(text.split()[0]) for text in page.evaluate("seen")]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == len(good) + 1
    page.wait_for_function(
        "() => document.getElementById('announce').textContent.includes('ready')"
    )


def test_same_folder_again_embeds_only_what_is_missing(filled, photos, good):
    page = filled.page
    sent = []
    page.on("request", lambda request: sent.append(request.url))
    filled.drop(photos)
    page.wait_for_function("() => document.querySelectorAll('#failures-list li').length === 2")
    assert len(filled.names()) == len(good)
    assert len([url for url in sent if "/embed" in url]) == 1  # the broken one
    filled.drop(photos / "a")  # the same pictures under other paths are others
    filled.wait_until_embedded(len(good) + 12)
    filled.drop(photos / "a")
    page.get_by_text("These pictures are here already.").wait_for()
    assert len(filled.names()) == len(good) + 12


def test_chosen_files_and_a_chosen_folder(visitor, photos, good):
    page = visitor.open()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose pictures").click()
    chooser.value.set_files(good[:3])
    visitor.wait_until_embedded(3)
    page.locator("#pick-folder").set_input_files(photos / "b")
    visitor.wait_until_embedded(3 + 12)
    assert page.locator(".tile").last.get_attribute("aria-label").startswith("b/c/")


def test_pasted_picture(visit, served, good):
    visitor = visit(served.url, permissions=["clipboard-read", "clipboard-write"])
    page = visitor.open()
    page.evaluate(
        """async (data) => {
          const image = await createImageBitmap(await (await new Blob([Uint8Array.from(atob(data),
            (c) => c.charCodeAt(0))])));
          const canvas = new OffscreenCanvas(image.width, image.height);
          canvas.getContext("2d").drawImage(image, 0, 0);
          const png = await canvas.convertToBlob({ type: "image/png" });
          await navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
        }""",
        base64.b64encode(good[0].read_bytes()).decode(),
    )
    page.keyboard.press("Control+V")
    visitor.wait_until_embedded(1)
    page.keyboard.press("Control+V")
    visitor.wait_until_embedded(2)
    assert visitor.names() == ["pasted 1.png", "pasted 2.png"]


def test_files_without_a_picture_are_told(visitor, photos):
    page = visitor.open()
    visitor.drop(photos / "notes.txt")
    page.get_by_role("alert").get_by_text("None of these files is a picture.").wait_for()
    assert page.get_by_role("heading", name="Find the pictures that are alike").is_visible()


def test_server_that_is_away_leaves_the_pictures_to_be_tried_again(visitor, photos, good):
    visitor.expected.append("ERR_FAILED")
    page = visitor.open()
    page.route("**/embed*", lambda route: route.abort())
    visitor.drop(*good[:5])
    page.get_by_role("alert").get_by_text("The server cannot be reached.").wait_for()
    assert page.locator("#failures-title").text_content() == "5 pictures could not be embedded"
    page.unroute("**/embed*")
    page.get_by_role("button", name="Try these again").click()
    visitor.wait_until_embedded(5)
    assert page.locator("#failures").is_hidden()


def test_busy_server_is_asked_again_after_the_time_it_names(visitor, good):
    visitor.expected.append("429")
    page = visitor.open()
    answers = [429, 200]

    def answer(route):
        if answers.pop(0) == 429:
            error = '{"error": {"code": "overloaded", "message": "Full.", "request_id": "r"}}'
            route.fulfill(status=429, headers={"Retry-After": "1"}, body=error)
        else:
            route.continue_()

    page.route("**/embed*", answer)
    visitor.drop(*good[:2])
    visitor.wait_until_embedded(2)
    assert answers == []
    assert page.locator("#failures").is_hidden()


def test_stopped_run_keeps_what_is_done(visitor, good):
    page = visitor.open()
    held = []
    page.route("**/embed*", lambda route: held.append(route))  # answered only when the test says so
    visitor.drop(*good)
    page.wait_for_function("() => document.querySelectorAll('.tile').length > 0")
    page.wait_for_timeout(100)
    page.get_by_role("button", name="Stop").click()
    page.locator("#progress").wait_for(state="hidden")
    assert held
    assert page.locator(".tile").count() == 0
    assert page.locator("#failures").is_hidden()


def test_key_is_asked_for_and_what_is_too_large_is_not_sent(
    visit, running_server, repository, good, tmp_path
):
    keys = tmp_path / "keys"
    keys.write_text("right-key\n")
    flags = ["--api-keys-file", str(keys), "--max-body-bytes", "4000"]
    with running_server(repository, *flags) as server:
        visitor = visit(server.url)
        visitor.expected.append("401")
        page = visitor.page
        page.goto(server.url)
        dialog = page.get_by_role("dialog", name="This server asks for a key")
        dialog.wait_for()
        field = page.get_by_label("API key")
        assert field.evaluate("node => node === document.activeElement")
        field.fill("wrong-key")
        page.keyboard.press("Enter")
        page.get_by_text("The key given before was not accepted.").wait_for()
        field.fill("right-key")
        page.keyboard.press("Enter")
        page.get_by_text("amdim, fp32, 12 values a picture").wait_for()
        assert dialog.is_hidden()
        small = min(good, key=lambda path: path.stat().st_size)
        big = tmp_path / "padded.jpg"
        big.write_bytes(small.read_bytes() + bytes(4000))
        visitor.drop(small, big)
        visitor.wait_until_embedded(1)
        failure = page.locator("#failures-list li").text_content()
        assert failure == "padded.jpg The file is larger than this server takes."
