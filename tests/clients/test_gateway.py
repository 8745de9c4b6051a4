from __future__ import annotations

import asyncio
import json

import httpx
import numpy as np
import pytest
from PIL import Image

from amdim_clients.errors import (
    ClientError,
    DigestMismatchError,
    ImageError,
    OverloadedError,
    ResponseError,
    ServerError,
    SourceError,
    TransportError,
)
from amdim_clients.gateway import AsyncEmbedClient, EmbedClient
from amdim_clients.images import Preprocess, decode_image
from amdim_clients.inputs import RequestLimits
from amdim_clients.retries import RetryPolicy

ONE_BY_ONE = RequestLimits(max_images=1, concurrency=1)


@pytest.fixture(params=["sync", "async"])
def embed(request, gateway):
    """Runs the same call on either client: they must not differ."""

    def call(images, *, limits=None, retries=None, api_key=None, **options):
        retries = retries or RetryPolicy(first_wait_s=0.001)
        shared = {"limits": limits, "retries": retries, "api_key": api_key}
        if request.param == "sync":
            with EmbedClient(transport=httpx.MockTransport(gateway), **shared) as client:
                return client.embed(images, **options)

        async def run():
            transport = httpx.MockTransport(gateway.asynchronous)
            async with AsyncEmbedClient(transport=transport, **shared) as client:
                return await client.embed(images, **options)

        return asyncio.run(run())

    return call


def test_every_kind_of_input_gives_its_vector(embed, photo_bytes, encode_toy, tmp_path):
    png = photo_bytes(1, format="PNG")
    (tmp_path / "a.png").write_bytes(png)
    picture = Image.open(tmp_path / "a.png")
    picture.load()
    pixels = np.asarray(picture)
    inputs = [tmp_path / "a.png", str(tmp_path / "a.png"), png, memoryview(png), picture, pixels]
    result = embed(inputs, normalize=False)
    expected = encode_toy(
        decode_image(png, Preprocess.for_image_size(64)).pixels[None], ["embedding"]
    )
    assert result["embedding"].shape == (6, 6)
    assert result["embedding"].dtype == np.float32
    np.testing.assert_allclose(result["embedding"], expected["embedding"].repeat(6, 0), rtol=1e-6)
    assert result.ok.tolist() == [0, 1, 2, 3, 4, 5]
    assert not result.normalized
    picture.close()


def test_one_image_counts_as_a_list_of_one(embed, photo_bytes, tmp_path):
    (tmp_path / "a.jpg").write_bytes(photo_bytes())
    assert embed(str(tmp_path / "a.jpg"))["embedding"].shape == (1, 6)
    assert embed(np.zeros((20, 20, 3), np.uint8) + 9)["embedding"].shape == (1, 6)


def test_answer_names_its_model_and_is_normalised_by_default(embed, photo_bytes):
    result = embed([photo_bytes(n) for n in range(3)], outputs=["global", "local7"])
    assert result["global"].shape == (3, 8)
    assert result["local7"].shape == (3, 7, 7, 8)
    np.testing.assert_allclose(np.linalg.norm(result["local7"], axis=-1), 1, rtol=1e-5)
    assert result.normalized
    assert result.served_by.model == "amdim"
    assert result.served_by.preprocess_digest == Preprocess.for_image_size(64).digest


def test_bad_images_fail_alone(embed, photo_bytes, tmp_path):
    cut = photo_bytes(5)[:300]
    result = embed([photo_bytes(0), b"text", tmp_path / "missing.jpg", cut, photo_bytes(1)])
    assert result.ok.tolist() == [0, 4]
    assert result["embedding"].shape == (2, 6)
    codes = {position: failure.code for position, failure in result.errors.items()}
    assert codes == {1: "unsupported_media_type", 2: "unreadable", 3: "image_truncated"}
    with pytest.raises(ImageError):
        result.raise_for_errors()


def test_array_that_is_no_picture_is_named(embed):
    result = embed([np.zeros((4, 4, 3), np.float32)])
    assert result.arrays == {}
    assert "float32" in result.errors[0].message
    with pytest.raises(SourceError, match="image 0"):
        result.raise_for_errors()


def test_requests_are_cut_by_count_and_by_bytes_and_order_is_kept(embed, gateway, photo_bytes):
    images = [photo_bytes(n) for n in range(11)]
    together = embed(images)
    gateway.requests.clear()
    apart = embed(images, limits=RequestLimits(max_images=4))
    assert sorted(len(r["images"]) for r in gateway.requests) == [3, 4, 4]
    assert np.array_equal(together["embedding"], apart["embedding"])
    gateway.requests.clear()
    embed(images, limits=RequestLimits(max_bytes=3 * len(images[0])))
    assert max(len(r["images"]) for r in gateway.requests) == 2


def test_too_many_images_are_sent_in_halves(embed, gateway, photo_bytes):
    gateway.max_images = 2
    images = [photo_bytes(n) for n in range(7)]
    result = embed(images)
    assert result.ok.tolist() == list(range(7))
    gateway.max_images = 1000
    assert np.array_equal(result["embedding"], embed(images)["embedding"])


def test_an_image_of_megabytes_goes_beside_small_ones(embed, photo_bytes):
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    result = embed([photo_bytes(0), noise])  # 1.5 MB: noise does not compress
    assert np.array_equal(result["embedding"][0], embed([photo_bytes(0)])["embedding"][0])
    assert np.array_equal(result["embedding"][1], embed([noise])["embedding"][0])


def test_progress_counts_every_image(embed, photo_bytes):
    seen: list[int] = []
    limits = RequestLimits(max_images=2)
    embed([photo_bytes(n) for n in range(5)] + [b"text"], limits=limits, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 6


def test_overload_is_retried_until_it_is_over(embed, gateway, make_wire_error, photo_bytes):
    gateway.answers = [
        make_wire_error(429, "overloaded", retry_after="0"),
        make_wire_error(503, "draining"),
        httpx.ConnectError("refused"),
    ]
    assert embed([photo_bytes()]).ok.tolist() == [0]
    assert len(gateway.requests) == 4


def test_overload_without_end_is_an_error(embed, gateway, make_wire_error, photo_bytes):
    gateway.answers = [make_wire_error(429, "overloaded") for _ in range(3)]
    with pytest.raises(OverloadedError) as caught:
        embed([photo_bytes()], retries=RetryPolicy(max_retries=2, first_wait_s=0.001))
    assert (caught.value.status, caught.value.code) == (429, "overloaded")
    assert caught.value.request_id == "r-1"


def test_dead_server_and_slow_server_are_told(embed, gateway, photo_bytes):
    gateway.answers = [httpx.ConnectError("refused")] * 3
    with pytest.raises(TransportError, match="refused"):
        embed([photo_bytes()], retries=RetryPolicy(max_retries=2, first_wait_s=0.001))
    gateway.answers = [httpx.ReadTimeout("slow")]
    with pytest.raises(TransportError, match="within 60 s"):
        embed([photo_bytes()])
    assert len(gateway.requests) == 4


@pytest.mark.parametrize("status", [400, 401, 404, 500, 504])
def test_other_refusals_are_not_retried(embed, gateway, make_wire_error, photo_bytes, status):
    gateway.answers = [make_wire_error(status, "some_code")]
    with pytest.raises(ServerError, match="some_code"):
        embed([photo_bytes(0), photo_bytes(1)])
    assert len(gateway.requests) == 1


def test_single_image_refused_as_a_request_is_its_own_error(embed, gateway, make_wire_error):
    gateway.answers = [
        make_wire_error(422, "image_undecodable"),
        make_wire_error(413, "body_too_large"),
    ]
    result = embed([b"a", b"b"], limits=ONE_BY_ONE)
    assert [result.errors[n].code for n in (0, 1)] == ["image_undecodable", "body_too_large"]


def test_proxy_page_instead_of_an_error_is_told(embed, gateway, photo_bytes):
    gateway.answers = [httpx.Response(404, text="<html>")]
    with pytest.raises(ServerError, match="404"):
        embed([photo_bytes()])


def test_change_of_encoder_within_a_call_is_refused(embed, gateway, photo_bytes):
    body = {"images": [{"data": ""}], "normalize": True}
    other = gateway.answer(body) | {"encoder_digest": "sha256:" + "f" * 64}
    gateway.answers = [httpx.Response(200, json=other)]
    with pytest.raises(DigestMismatchError):
        embed([photo_bytes(0), photo_bytes(1)], limits=ONE_BY_ONE)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("encoder_digest"),
        lambda d: d["data"].clear(),
        lambda d: d["data"][0].pop("embedding"),
        lambda d: d["data"][0]["embedding"].update(dtype="object"),
        lambda d: d["data"][0]["embedding"].update(shape=[7]),
        lambda d: d["data"][0]["embedding"].update(data="!"),
        lambda d: d["data"][0]["embedding"].update(data="AADAfwAAwH8AAMB/AADAfwAAwH8AAMB/"),
        lambda d: d["data"][0].update(index=4),
    ],
)
def test_answer_that_breaks_the_contract_is_refused(embed, gateway, photo_bytes, damage):
    class Damaged:
        def __call__(self, body):
            document = original(body)
            damage(document)
            return document

    original, gateway.answer = gateway.answer, Damaged()
    with pytest.raises(ResponseError):
        embed([photo_bytes()])


def test_what_is_not_json_is_refused(embed, gateway, photo_bytes):
    gateway.answers = [httpx.Response(200, text="hello")]
    with pytest.raises(ResponseError):
        embed([photo_bytes()])


def test_api_key_and_options_are_sent(photo_bytes, gateway):
    seen = []

    def handler(request):
        seen.append(request.headers["authorization"])
        return gateway(request)

    with EmbedClient(api_key="k", transport=httpx.MockTransport(handler)) as client:
        client.embed([photo_bytes()], outputs="global", model="amdim")
        assert client.model()["limits"]["max_images"] == 1000
    assert seen[0] == "Bearer k"
    assert gateway.requests[0]["outputs"] == ["global"]
    assert gateway.requests[0]["model"] == "amdim"
    assert gateway.requests[0]["encoding_format"] == "base64"


def test_requests_on_their_way_are_bounded_and_files_are_read_late(gateway, photo_bytes):
    read_ahead = []

    def images():
        for n in range(30):
            read_ahead.append(n - gateway.running)
            yield photo_bytes(n)

    async def run():
        limits = RequestLimits(max_images=1, concurrency=3)
        transport = httpx.MockTransport(gateway.asynchronous)
        async with AsyncEmbedClient(limits=limits, transport=transport) as client:
            return await client.embed(images())

    assert asyncio.run(run()).ok.tolist() == list(range(30))
    assert gateway.most_running == 3


def test_cancelled_call_leaves_nothing_running(gateway, photo_bytes):
    async def run():
        transport = httpx.MockTransport(gateway.asynchronous)
        async with AsyncEmbedClient(limits=ONE_BY_ONE, transport=transport) as client:
            call = asyncio.create_task(client.embed([photo_bytes(n) for n in range(50)]))
            await asyncio.sleep(0.05)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1
    assert len(gateway.requests) < 50


def test_retry_waits_grow_and_obey_retry_after():
    policy = RetryPolicy(max_retries=3, first_wait_s=1, max_wait_s=10)

    def wait(*args):
        return policy.wait_s(*args) or 0.0

    assert 0.5 <= wait(0, 429) <= 1
    assert 2 <= wait(2, 503) <= 4
    assert policy.wait_s(3, 429) is None
    assert policy.wait_s(0, 500) is None
    assert wait(0, 429, {"retry-after": "7"}) == 7
    assert policy.wait_s(0, 429, {"retry-after": "11"}) is None
    assert wait(0, 429, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) <= 1
    assert wait(0, 429, {"retry-after": "soon"}) <= 1
    assert policy.wait_s(0) is not None


def test_every_error_is_for_the_user():
    assert issubclass(ServerError, ClientError)
    assert ClientError.is_user_error
    assert ClientError.exit_code == 1
    assert json.dumps(ImageError("image_truncated").message)
