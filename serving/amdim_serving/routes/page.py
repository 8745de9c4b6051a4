"""The web page at `/` and its files under /web/: static, from the package, for any browser.

Whoever is no browser (curl) gets a few lines of text at `/`. Knows no model and no service: the
page asks /model, /embed and /match as any client does. It is readable without a key, since it is
what asks for one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from amdim_serving.errors import RequestError

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).resolve().parents[1] / "web"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere, nothing inline; pictures are the reader's own (blob:).
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "worker-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Asked for again each time, answered with 304 while the server is the same.
    "Cache-Control": "no-cache",
}
_LANDING = """\
amdim-embed: images in, vectors out.

  curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' {base}/embed
  curl -F images=@a.jpg -F images=@b.png '{base}/embed?outputs=global,local7'

  {base}/         in a browser: a page that embeds and searches your pictures
  {base}/docs     every route, with examples
  {base}/model    what is served: precision, digests, limits
  {base}/readyz   whether it may get work
  {base}/metrics  Prometheus
"""


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page."""

    content: bytes
    media_type: str
    etag: str


@cache
def page_files() -> dict[str, PageFile]:
    """Returns the page's files by name, read once."""
    return {path.name: _read(path) for path in _FOLDER.iterdir() if path.suffix in _MEDIA_TYPES}


@router.api_route("/", methods=["GET", "HEAD"])
async def front(request: Request) -> Response:
    """The page for a browser, a few lines for anyone else."""
    if "text/html" in request.headers.get("accept", ""):
        return _answer(request, page_files()["index.html"], {"Vary": "Accept"})
    base = str(request.base_url).rstrip("/")
    return PlainTextResponse(_LANDING.format(base=base), headers={"Vary": "Accept"})


@router.api_route("/web/{name}", methods=["GET", "HEAD"])
async def page_file(request: Request, name: str) -> Response:
    """A stylesheet, script or drawing of the page."""
    file = page_files().get(name)
    if file is None:
        raise RequestError("unknown_route")
    return _answer(request, file, {})


def _answer(request: Request, file: PageFile, more: dict[str, str]) -> Response:
    headers = {**_HEADERS, **more, "ETag": file.etag}
    known = request.headers.get("if-none-match", "")
    if file.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return PageFile(content, _MEDIA_TYPES[path.suffix], etag)
