from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

import amdim_serving

WEB = Path(amdim_serving.__file__).parent / "web"
FILES = sorted(path.name for path in WEB.iterdir())
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def ask(client_for, *requests, **settings):
    """The answers to requests of (method, path, headers)."""

    async def run():
        async with client_for(**settings) as client:
            return [
                await client.request(method, path, headers=headers)
                for method, path, headers in requests
            ]

    return asyncio.run(run())


def test_front_is_a_page_for_browsers_and_text_for_others(client_for):
    page, text = ask(client_for, ("GET", "/", BROWSER), ("GET", "/", {"Accept": "*/*"}))
    assert page.status_code == text.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.content == (WEB / "index.html").read_bytes()
    assert text.headers["content-type"].startswith("text/plain")
    assert "curl --data-binary @photo.jpg" in text.text
    assert page.headers["vary"] == text.headers["vary"] == "Accept"


def test_policy_admits_nothing_inline_and_nothing_from_elsewhere(client_for):
    paths = ["/", *(f"/web/{name}" for name in FILES)]
    for answer in ask(client_for, *(("GET", path, BROWSER) for path in paths)):
        assert answer.status_code == 200
        policy = dict(
            part.strip().split(" ", 1)
            for part in answer.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_known_file_is_not_sent_again(client_for):
    (first,) = ask(client_for, ("GET", "/web/main.js", {}))
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    tag = first.headers["etag"]
    again, weak, other, head = ask(
        client_for,
        ("GET", "/web/main.js", {"If-None-Match": tag}),
        ("GET", "/web/main.js", {"If-None-Match": f'"x", W/{tag}'}),
        ("GET", "/web/main.js", {"If-None-Match": '"x"'}),
        ("HEAD", "/web/main.js", {}),
    )
    assert [again.status_code, weak.status_code, other.status_code] == [304, 304, 200]
    assert again.content == b""
    assert again.headers["etag"] == tag
    assert head.status_code == 200
    assert int(head.headers["content-length"]) == len(first.content)


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fapp.py", "%2e%2e/app.py", "main.js/x", ""])
def test_nothing_else_is_served(client_for, name):
    (answer,) = ask(client_for, ("GET", f"/web/{name}", {}))
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_route"


def test_page_is_open_where_the_rest_needs_a_key(client_for):
    paths = ["/", "/web/main.js", "/web/theme.css", "/model", "/webx", "/web"]
    answers = ask(client_for, *(("GET", path, BROWSER) for path in paths), api_keys=("secret",))
    assert [answer.status_code for answer in answers] == [200, 200, 200, 401, 401, 401]


def test_every_file_is_used_and_every_file_used_is_there():
    named = {"index.html"}
    for name in FILES:
        text = (WEB / name).read_text("utf-8")
        named |= set(re.findall(r"/web/([\w.]+)", text))
        named |= set(re.findall(r'from "\./([\w.]+)"', text))
    assert named == set(FILES)


def test_files_are_short_and_all_our_own():
    for name in FILES:
        text = (WEB / name).read_text("utf-8")
        assert text.count("\n") < 300, name
        others = [url for url in re.findall(r"https?://[^\s\"')]+", text) if "w3.org" not in url]
        assert others == [], name
    page = (WEB / "index.html").read_text("utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)
