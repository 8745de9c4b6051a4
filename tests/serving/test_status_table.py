"""Each code of the error table, provoked over HTTP in process."""

from __future__ import annotations

import asyncio
import base64
import struct
import threading
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from amdim_serving.engines import Engine
from amdim_serving.errors import ERRORS, EngineError
from amdim_serving.gateway import Gateway

Picture = Callable[..., bytes]
Outcome = Awaitable[httpx.Response]


def huge_png() -> bytes:
    """A PNG whose header claims 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    idat = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + idat + chunk(b"IEND", b"")


class Altered:
    """A real engine behind a fault."""

    is_proved = True

    def __init__(self, engine: Engine, fault: Callable[[NDArray[np.float32]], Any]) -> None:
        self._engine, self._fault = engine, fault
        self.spec, self.info = engine.spec, engine.info

    def encode(self, images: NDArray[np.uint8], outputs: Sequence[str]) -> Mapping[str, Any]:
        arrays = self._engine.encode(images, outputs)
        return {name: self._fault(array.copy()) for name, array in arrays.items()}

    def close(self) -> None:
        self._engine.close()


def with_fault(fault: Callable[[NDArray[np.float32]], Any]) -> Callable[[Gateway], None]:
    def prepare(gateway: Gateway) -> None:
        gateway.service.engine = Altered(gateway.service.engine, fault)

    return prepare


def provoke(
    client_for: Any, call: Callable[[httpx.AsyncClient], Outcome], **settings: Any
) -> httpx.Response:
    async def main() -> httpx.Response:
        async with client_for(**settings) as client:
            return await call(client)

    return asyncio.run(asyncio.wait_for(main(), 30))


def expect(answer: httpx.Response, code: str) -> None:
    body = answer.json()
    assert body["error"]["code"] == code
    assert answer.status_code == ERRORS[code].status
    assert body["error"]["request_id"] == answer.headers["x-request-id"]
    assert body["error"]["message"].endswith(".")


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


RAW = {"Content-Type": "image/jpeg"}
JSON_BODIES: list[tuple[str, Any]] = [
    ("bad_request", b"{"),
    ("bad_request", b"[]"),
    ("bad_request", b'{"images": 3}'),
    ("bad_request", b'{"pictures": []}'),
    ("bad_request", b'{"images": [], "colour": "red"}'),
    ("bad_request", b'{"images": [{"data": "aGk="}], "dtype": "float16"}'),
    ("bad_request", b'{"images": [{"data": "aGk="}], "dtype": "int8"}'),
    ("no_images", b'{"images": []}'),
    ("bad_base64", b'{"images": [{"data": "!!!"}]}'),
    ("bad_base64", b'{"images": [{"data": "data:image/png,raw"}]}'),
    ("unknown_output", b'{"images": [{"data": "aGk="}], "outputs": ["logits"]}'),
    ("unknown_model", b'{"images": [{"data": "aGk="}], "model": "resnet"}'),
]


@pytest.mark.parametrize(("code", "body"), JSON_BODIES)
def test_json_bodies(client_for: Any, code: str, body: bytes) -> None:
    def call(client: httpx.AsyncClient) -> Outcome:
        return client.post("/embed", content=body, headers={"Content-Type": "application/json"})

    expect(provoke(client_for, call), code)


@pytest.mark.parametrize(
    ("code", "body"),
    [
        ("no_images", b""),
        ("unsupported_media_type", b"just a text file\n"),
        ("unsupported_media_type", b"%!PS-Adobe-3.0 EPSF-3.0\n"),
        ("image_too_small", "pixel"),
        ("image_truncated", "half"),
        ("image_undecodable", "broken"),
        ("too_many_pixels", "huge"),
    ],
)
def test_raw_bodies(client_for: Any, make_picture: Picture, code: str, body: Any) -> None:
    picture = make_picture((64, 64), "PNG")
    made = {
        "pixel": make_picture((1, 1), "PNG"),
        "half": make_picture()[:900],
        "huge": huge_png(),
        "broken": picture[:60] + bytes(40) + picture[100:],
    }
    data = made.get(body, body) if isinstance(body, str) else body
    expect(provoke(client_for, lambda client: client.post("/embed", content=data)), code)


@pytest.mark.parametrize(
    ("code", "url"),
    [
        ("unknown_output", "/embed?outputs=logits"),
        ("unknown_model", "/embed?model=resnet"),
        ("bad_request", "/embed?colour=red"),
        ("bad_request", "/embed?normalize=perhaps"),
        ("bad_request", "/embed?dtype=float16&dtype=float32"),
        ("unknown_route", "/embeddings"),
    ],
)
def test_queries(client_for: Any, make_picture: Picture, code: str, url: str) -> None:
    expect(provoke(client_for, lambda client: client.post(url, content=make_picture())), code)


def test_method_not_allowed(client_for: Any) -> None:
    answer = provoke(client_for, lambda client: client.get("/embed"))
    expect(answer, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


def test_not_acceptable(client_for: Any, make_picture: Picture) -> None:
    def call(client: httpx.AsyncClient) -> Outcome:
        headers = {"Accept": "text/html, application/json;q=0"}
        return client.post("/embed", content=make_picture(), headers=headers)

    expect(provoke(client_for, call), "not_acceptable")


def test_npy_of_two_outputs_is_a_bad_request(client_for: Any, make_picture: Picture) -> None:
    def call(client: httpx.AsyncClient) -> Outcome:
        headers = {"Accept": "application/x-npy"}
        return client.post("/embed?outputs=global,local5", content=make_picture(), headers=headers)

    expect(provoke(client_for, call), "bad_request")


def test_content_encoding_is_refused(client_for: Any, make_picture: Picture) -> None:
    def call(client: httpx.AsyncClient) -> Outcome:
        headers = {"Content-Encoding": "gzip"}
        return client.post("/embed", content=make_picture(), headers=headers)

    expect(provoke(client_for, call), "unsupported_media_type")


@pytest.mark.parametrize("body", [b"--x\r\nno headers", b"--x\r\n\r\nnameless\r\n--x--\r\n"])
def test_broken_forms(client_for: Any, body: bytes) -> None:
    def call(client: httpx.AsyncClient) -> Outcome:
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        return client.post("/embed", content=body, headers=headers)

    expect(provoke(client_for, call), "bad_request")


def test_body_too_large_by_its_declared_length(client_for: Any) -> None:
    def call(client: httpx.AsyncClient) -> Outcome:
        return client.post("/embed", content=bytes(2000))

    expect(provoke(client_for, call, max_body_bytes=1000), "body_too_large")


def test_body_too_large_while_it_streams(client_for: Any) -> None:
    sent: list[int] = []

    async def endless() -> AsyncIterator[bytes]:
        for number in range(1000):
            sent.append(number)
            yield bytes(400)

    def call(client: httpx.AsyncClient) -> Outcome:
        return client.post("/embed", content=endless())

    expect(provoke(client_for, call, max_body_bytes=1000), "body_too_large")
    assert len(sent) < 10


def test_body_timeout(client_for: Any) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield b"\xff\xd8"
        await asyncio.sleep(20)

    def call(client: httpx.AsyncClient) -> Outcome:
        return client.post("/embed", content=stalled())

    expect(provoke(client_for, call, body_seconds=0.1), "body_timeout")


def test_too_many_images(client_for: Any, make_picture: Picture) -> None:
    def call(client: httpx.AsyncClient) -> Outcome:
        return client.post("/embed", files=[("images", make_picture())] * 3)

    expect(provoke(client_for, call, max_images=2), "too_many_images")


def test_unauthorized_until_a_key_is_given(client_for: Any, make_picture: Picture) -> None:
    async def main() -> None:
        async with client_for(api_keys="one, two") as client:
            expect(await client.post("/embed", content=make_picture()), "unauthorized")
            wrong = {"Authorization": "Bearer three"}
            expect(await client.get("/model", headers=wrong), "unauthorized")
            expect(await client.get("/metrics"), "unauthorized")
            assert (await client.get("/livez")).status_code == 200
            assert (await client.get("/readyz")).status_code == 200
            for headers in ({"Authorization": "Bearer two"}, {"X-API-Key": "one"}):
                answer = await client.post("/embed", content=make_picture(), headers=headers)
                assert answer.status_code == 200

    asyncio.run(main())


def test_overloaded_says_when_to_come_back(client_for: Any, make_picture: Picture) -> None:
    held = threading.Event()

    def hold(array: NDArray[np.float32]) -> NDArray[np.float32]:
        held.wait(10)
        return array

    async def main() -> None:
        async with client_for(prepare=with_fault(hold), queue_images=2, max_images=2) as client:
            accepted = [
                asyncio.create_task(client.post("/embed", content=make_picture())) for _ in range(2)
            ]
            await asyncio.sleep(0.1)
            refused = await client.post("/embed", content=make_picture())
            expect(refused, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            held.set()
            assert [(await task).status_code for task in accepted] == [200, 200]
            assert (await client.post("/embed", content=make_picture())).status_code == 200

    asyncio.run(main())


def test_a_picture_without_room_is_refused_before_it_is_read(
    client_for: Any, make_picture: Picture
) -> None:
    held = threading.Event()

    def hold(array: NDArray[np.float32]) -> NDArray[np.float32]:
        held.wait(10)
        return array

    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    async def main() -> None:
        async with client_for(prepare=with_fault(hold), queue_images=1, max_images=1) as client:
            accepted = asyncio.create_task(client.post("/embed", content=make_picture()))
            await asyncio.sleep(0.1)
            expect(await client.post("/embed", content=never()), "overloaded")
            counted = (await client.get("/metrics")).text
            assert 'amdim_images_total{outcome="overloaded"} 1.0' in counted
            held.set()
            assert (await accepted).status_code == 200

    asyncio.run(main())


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_an_unusable_vector_is_never_sent(
    client_for: Any, make_picture: Picture, bad: float
) -> None:
    def spoil(array: NDArray[np.float32]) -> NDArray[np.float32]:
        array[:1] = bad
        return array

    answer = provoke(
        client_for,
        lambda client: client.post("/embed", content=make_picture()),
        prepare=with_fault(spoil),
    )
    expect(answer, "invalid_embedding")


def test_an_engine_fault_is_internal_and_the_next_request_is_served(
    client_for: Any, make_picture: Picture
) -> None:
    faults = [EngineError("secret detail")]

    def fail_once(array: NDArray[np.float32]) -> NDArray[np.float32]:
        if faults:
            raise faults.pop()
        return array

    async def main() -> None:
        async with client_for(prepare=with_fault(fail_once)) as client:
            failed = await client.post("/embed", content=make_picture())
            expect(failed, "internal")
            assert "secret" not in failed.text
            assert (await client.post("/embed", content=make_picture())).status_code == 200

    asyncio.run(main())


def test_deadline_exceeded(client_for: Any, make_picture: Picture) -> None:
    held = threading.Event()

    def hold(array: NDArray[np.float32]) -> NDArray[np.float32]:
        held.wait(10)
        return array

    async def main() -> None:
        async with client_for(prepare=with_fault(hold), deadline_seconds=0.1) as client:
            expect(await client.post("/embed", content=make_picture()), "deadline_exceeded")
            held.set()

    asyncio.run(main())


def test_draining(client_for: Any, make_picture: Picture) -> None:
    gateways: list[Gateway] = []

    async def main() -> None:
        async with client_for(prepare=gateways.append) as client:
            gateways[0].draining = True
            expect(await client.get("/readyz"), "draining")
            assert (await client.post("/embed", content=make_picture())).status_code == 200
            await gateways[0].service.batcher.close()
            expect(await client.post("/embed", content=make_picture()), "draining")
            assert (await client.get("/livez")).status_code == 200

    asyncio.run(main())


def test_unready_while_the_canary_fails(client_for: Any) -> None:
    shift = [0.5]

    def prepare(gateway: Gateway) -> None:
        with_fault(lambda array: array + shift[0])(gateway)
        gateway.service.batcher.stats.last_good -= 3600

    async def main() -> None:
        async with client_for(prepare=prepare) as client:
            expect(await client.get("/readyz"), "not_ready")
            shift[0] = 0.0
            assert (await client.get("/readyz")).status_code == 200

    asyncio.run(main())


def test_a_fault_of_ours_is_internal_on_every_route(client_for: Any, make_picture: Any) -> None:
    def prepare(gateway: Gateway) -> None:
        gateway.digests = None  # type: ignore[assignment]
        gateway.certificate = None  # type: ignore[assignment]

    async def main() -> None:
        async with client_for(prepare=prepare) as client:
            expect(await client.post("/embed", content=make_picture()), "internal")
            expect(await client.get("/model"), "internal")
            files = [("query", make_picture()), ("candidates", make_picture())]
            expect(await client.post("/match", files=files), "internal")
            assert (await client.get("/livez")).status_code == 200

    asyncio.run(main())
