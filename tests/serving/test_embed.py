from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.numpy

Picture = Callable[..., bytes]
RunWith = Callable[..., None]


@pytest.fixture
def run_with(client_for: Any) -> RunWith:
    def run(scenario: Callable[[httpx.AsyncClient], Awaitable[None]], **settings: object) -> None:
        async def main() -> None:
            async with client_for(**settings) as client:
                await scenario(client)

        asyncio.run(asyncio.wait_for(main(), 30))

    return run


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_raw_picture_gives_a_unit_vector(run_with: RunWith, make_picture: Picture) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(
            "/embed",
            content=make_picture((120, 90)),
            headers={"Content-Type": "application/x-www-form-urlencoded", "X-Request-ID": "me-1"},
        )
        assert answer.status_code == 200
        assert answer.headers["x-request-id"] == "me-1"
        timing = answer.headers["server-timing"]
        assert [part.split(";")[0].strip() for part in timing.split(",")] == [
            "decode",
            "queue",
            "infer",
            "encode",
        ]
        body = answer.json()
        assert body["model"] == "amdim"
        assert body["version"] == "1"
        assert body["normalized"] is True
        assert body["usage"] == {"images": 1, "pixels": 120 * 90}
        assert set(body["data"][0]) == {"index", "embedding"}
        assert np.linalg.norm(body["data"][0]["embedding"]) == pytest.approx(1, abs=1e-6)
        for name in ("encoder_digest", "preprocess_digest", "artifact_digest"):
            assert body[name].startswith("sha256:")

    run_with(scenario)


def test_one_picture_has_one_vector_by_every_way_in_and_out(
    run_with: RunWith, make_picture: Picture
) -> None:
    picture = make_picture()

    async def scenario(client: httpx.AsyncClient) -> None:
        async def raw(**kwargs: Any) -> httpx.Response:
            return await client.post("/embed", content=picture, **kwargs)

        answers = {
            "raw": await raw(),
            "form": await client.post("/embed", files={"images": ("a", picture)}),
            "json": await client.post("/embed", json={"images": [{"data": b64(picture)}]}),
            "uri": await client.post(
                "/embed", json={"images": [{"data": "data:image/jpeg;base64," + b64(picture)}]}
            ),
        }
        vectors = {
            name: np.array(answer.json()["data"][0]["embedding"], np.float32)
            for name, answer in answers.items()
        }
        packed = (await raw(params={"encoding_format": "base64"})).json()["data"][0]["embedding"]
        assert packed["shape"] == [12]
        vectors["base64"] = np.frombuffer(base64.b64decode(packed["data"]), packed["dtype"])
        npy = await raw(headers={"Accept": "application/x-npy"})
        vectors["npy"] = np.load(io.BytesIO(npy.content))[0]
        assert npy.headers["x-amdim-encoder-digest"] == answers["raw"].json()["encoder_digest"]
        tensors = await raw(headers={"Accept": "application/vnd.safetensors"})
        vectors["safetensors"] = safetensors.numpy.load(tensors.content)["embedding"][0]
        for name, vector in vectors.items():
            np.testing.assert_array_equal(vector, vectors["raw"], err_msg=name)
        half = await raw(params={"encoding_format": "base64", "dtype": "float16"})
        packed = half.json()["data"][0]["embedding"]
        assert packed["dtype"] == "float16"
        half_vector = np.frombuffer(base64.b64decode(packed["data"]), "<f2")
        np.testing.assert_allclose(half_vector, vectors["raw"], atol=1e-3)

    run_with(scenario)


def test_grids_keep_their_shape_and_every_cell_is_a_unit_vector(
    run_with: RunWith, make_picture: Picture
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post("/embed?outputs=global,local7", content=make_picture())
        item = answer.json()["data"][0]
        assert set(item) == {"index", "global", "local7"}
        grid = np.array(item["local7"])
        assert grid.shape == (7, 7, 8)
        np.testing.assert_allclose(np.linalg.norm(grid, axis=-1), 1, atol=1e-6)
        raw = await client.post("/embed?outputs=local7&normalize=false", content=make_picture())
        assert raw.json()["normalized"] is False
        plain = np.array(raw.json()["data"][0]["local7"])
        np.testing.assert_allclose(
            plain / np.linalg.norm(plain, axis=-1, keepdims=True), grid, atol=1e-5
        )

    run_with(scenario)


def test_a_bad_image_fails_alone_and_order_and_ids_are_kept(
    run_with: RunWith, make_picture: Picture
) -> None:
    good = make_picture()
    body = {
        "images": [
            {"id": "a", "data": b64(good)},
            {"id": "b", "data": b64(good[: len(good) // 2])},
            {"id": "c", "data": b64(b"no picture at all")},
            {"data": b64(make_picture(seed=1))},
        ]
    }

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post("/embed", json=body)
        assert answer.status_code == 200
        data = answer.json()["data"]
        assert [item["index"] for item in data] == [0, 1, 2, 3]
        assert [item.get("id") for item in data] == ["a", "b", "c", None]
        codes = [item.get("error", {}).get("code") for item in data]
        assert codes == [None, "image_truncated", "unsupported_media_type", None]
        assert answer.json()["usage"] == {"images": 4, "pixels": 2 * 120 * 90}
        failed = await client.post("/embed", json={**body, "on_error": "fail"})
        assert failed.status_code == 422
        assert failed.json()["error"]["code"] == "image_truncated"
        assert failed.json()["error"]["index"] == 1

    run_with(scenario)


def test_a_big_request_comes_back_whole_and_in_order(
    run_with: RunWith, make_picture: Picture
) -> None:
    pictures = [make_picture((40, 40), "PNG", seed) for seed in range(30)]

    async def scenario(client: httpx.AsyncClient) -> None:
        files = [("images", (str(at), picture)) for at, picture in enumerate(pictures)]
        together = (await client.post("/embed", files=files)).json()["data"]
        assert [item["id"] for item in together] == [str(at) for at in range(30)]
        for at in (0, 13, 29):
            alone = await client.post("/embed", content=pictures[at])
            np.testing.assert_allclose(
                together[at]["embedding"], alone.json()["data"][0]["embedding"], atol=1e-6
            )

    run_with(scenario)


def test_form_fields_and_body_options_go_over_the_query(
    run_with: RunWith, make_picture: Picture
) -> None:
    picture = make_picture()

    async def scenario(client: httpx.AsyncClient) -> None:
        form = await client.post(
            "/embed?outputs=global",
            files={"images": ("a", picture)},
            data={"outputs": "local5", "normalize": "false"},
        )
        assert set(form.json()["data"][0]) == {"index", "id", "local5"}
        assert form.json()["normalized"] is False
        body = await client.post(
            "/embed?outputs=global&normalize=false",
            json={"images": [{"data": b64(picture)}], "outputs": ["local5"]},
        )
        assert set(body.json()["data"][0]) == {"index", "local5"}
        assert body.json()["normalized"] is False

    run_with(scenario)
