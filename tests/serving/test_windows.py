from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from amdim_clients.contract import WINDOWS
from amdim_clients.images import Preprocess
from amdim_clients.windows import decode_windows
from amdim_serving.errors import CanaryError, EngineError, StartError
from amdim_serving.gateway import build_gateway
from amdim_serving.local import open_local_encoder, open_local_windows
from amdim_serving.pictures import Picture
from amdim_serving.settings import Settings

PREPROCESS = Preprocess.for_image_size(32)
E = 12


@pytest.fixture
def picture(make_picture: Callable[..., bytes]) -> bytes:
    return make_picture((120, 90), "PNG")


def ask(client_for, repository, *requests, **settings):
    """The answers to POST requests, all on one gateway."""

    async def run():
        async with client_for(model_repository=repository, **settings) as client:
            return [await client.post(path, **request) for path, request in requests]

    return asyncio.run(run())


def as_json(*files: bytes, **options):
    images = [{"data": base64.b64encode(file).decode()} for file in files]
    return {"json": {"images": images, "outputs": ["windows"], **options}}


def test_a_window_is_what_its_crop_gives(windows_repository, picture):
    windows = open_local_windows(windows_repository)
    encoder = open_local_encoder(windows_repository, "amdim")
    (grid, pixels), *_ = decode_windows(picture, PREPROCESS, (2,))
    got = windows.encode(pixels)
    assert got.shape == (grid.rows, grid.columns, E)
    i, j = 3, 5
    crop = np.ascontiguousarray(pixels[4 * i : 4 * i + 32, 4 * j : 4 * j + 32])
    want = encoder.encode(crop[None], ["embedding"])["embedding"][0]
    np.testing.assert_allclose(got[i, j], want, atol=1e-4 * np.abs(want).max())
    many = windows.encode(np.stack([pixels] * 5))
    np.testing.assert_allclose(many[4], got, rtol=1e-5, atol=1e-5)
    windows.close()
    encoder.close()
    with pytest.raises(EngineError):
        windows.encode(pixels)


def test_only_a_windows_model_is_opened_as_one(windows_repository, tmp_path, publish):
    with pytest.raises(StartError, match="no model of windows"):
        open_local_windows(windows_repository, "amdim")
    lying = publish(tmp_path / "lying")
    with pytest.raises(StartError):
        open_local_windows(lying)


def test_every_scale_comes_with_its_boxes(client_for, windows_repository, picture):
    (answer,) = ask(
        client_for,
        windows_repository,
        ("/embed?outputs=windows,embedding&scales=1,1.5", {"content": picture}),
    )
    assert answer.status_code == 200, answer.text
    document = answer.json()
    (entry,) = document["data"]
    assert len(entry["embedding"]) == E
    assert document["windows_artifact_digest"] != document["artifact_digest"]
    encoder = open_local_windows(windows_repository)
    for part, (grid, pixels) in zip(
        entry["windows"], decode_windows(picture, PREPROCESS, (1, 1.5)), strict=True
    ):
        assert part["scale"] == grid.scale
        assert part["shape"] == [grid.rows, grid.columns, E]
        np.testing.assert_allclose(part["first_box"], grid.first_box)
        np.testing.assert_allclose(part["step"], grid.step)
        want = encoder.encode(pixels)
        want /= np.linalg.norm(want, axis=-1, keepdims=True)
        np.testing.assert_allclose(np.asarray(part["data"]), want, atol=2e-5)
    encoder.close()


def test_base64_and_safetensors_hold_the_same_windows(client_for, windows_repository, picture):
    query = "/embed?outputs=windows,global&scales=2&normalize=false"
    plain, packed, file = ask(
        client_for,
        windows_repository,
        (query, {"content": picture}),
        (query + "&encoding_format=base64", {"content": picture}),
        (query, {"content": picture, "headers": {"Accept": "application/vnd.safetensors"}}),
    )
    (want,) = plain.json()["data"][0]["windows"]
    (part,) = packed.json()["data"][0]["windows"]
    values = np.frombuffer(base64.b64decode(part["data"]), "<f4").reshape(part["shape"])
    np.testing.assert_allclose(values, np.asarray(want["data"]), rtol=1e-5, atol=1e-6)
    size = int.from_bytes(file.content[:8], "little")
    head = json.loads(file.content[8 : 8 + size])
    assert set(head) == {"__metadata__", "global", "windows/0/2"}
    start, end = head["windows/0/2"]["data_offsets"]
    stored = np.frombuffer(file.content[8 + size + start : 8 + size + end], "<f4")
    np.testing.assert_array_equal(stored.reshape(head["windows/0/2"]["shape"]), values)
    place = json.loads(head["__metadata__"]["windows/0/2"])
    assert place["first_box"] == want["first_box"] and place["step"] == want["step"]


def test_a_bad_picture_fails_alone_among_pictures_of_many_sizes(
    client_for, windows_repository, make_picture
):
    files = [make_picture((60 + 30 * n, 90)) for n in range(6)] + [b"no picture", make_picture()]
    (answer,) = ask(client_for, windows_repository, ("/embed", as_json(*files)))
    data = answer.json()["data"]
    assert [entry.get("error", {}).get("code") for entry in data] == [
        *[None] * 6,
        "unsupported_media_type",
        None,
    ]
    shapes = [entry["windows"][0]["shape"] for entry in data if "windows" in entry]
    assert len(set(map(tuple, shapes))) > 3


def test_too_many_windows_are_refused_before_anything_is_decoded(
    client_for, windows_repository, make_picture, picture
):
    strip = make_picture((3000, 10), "PNG")
    alone, among, together, fits = ask(
        client_for,
        windows_repository,
        ("/embed?outputs=windows", {"content": strip}),
        ("/embed", as_json(strip, picture)),
        ("/embed", as_json(*[picture] * 8)),
        ("/embed", as_json(picture)),
        max_windows=300,
        max_images=8,
        queue_images=20,
    )
    assert (alone.status_code, alone.json()["error"]["code"]) == (413, "too_many_windows")
    assert among.status_code == 200
    assert among.json()["data"][0]["error"]["code"] == "too_many_windows"
    assert "windows" in among.json()["data"][1]
    assert (together.status_code, together.json()["error"]["code"]) == (413, "too_many_windows")
    assert "send fewer" in together.json()["error"]["message"]
    assert fits.status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "message"),
    [
        ("/embed?outputs=windows&scales=5", {}, "from 1 to 4"),
        ("/embed?outputs=windows&scales=1,1", {}, "different"),
        ("/embed?scales=1", {}, "for the output windows"),
        ("/embed?outputs=windows", {"Accept": "application/x-npy"}, "boxes"),
    ],
)
def test_options_that_make_no_sense_are_said(
    client_for, windows_repository, picture, path, headers, message
):
    (answer,) = ask(
        client_for, windows_repository, (path, {"content": picture, "headers": headers})
    )
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_without_a_windows_model_the_output_is_unknown(client_for, repository, picture):
    (answer,) = ask(client_for, repository, ("/embed?outputs=windows", {"content": picture}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_output")
    assert "windows" in answer.json()["error"]["message"]


def test_windows_of_another_encoder_are_not_served(tmp_path, publish, publish_windows, caplog):
    root = publish_windows(publish(tmp_path / "models"), encoder="f" * 64)
    settings = Settings(model_repository=root, engine="onnxruntime", threads=1)
    gateway = build_gateway(settings)
    assert gateway.service.windows is None and "another encoder" in caplog.text


def test_windows_that_do_not_reproduce_their_canaries_stop_the_start(
    tmp_path: Path, publish: Callable[..., Path], publish_windows: Callable[..., Path]
) -> None:
    root = publish_windows(publish(tmp_path / "models"), canary_shift=0.5)
    settings = Settings(model_repository=root, engine="onnxruntime", threads=1)
    with pytest.raises(CanaryError):
        build_gateway(settings)


def test_a_big_picture_takes_as_many_permits_as_it_has_pixels(windows_repository, picture):
    settings = Settings(model_repository=windows_repository, engine="onnxruntime", threads=1)
    gateway = build_gateway(settings)
    windows = gateway.service.windows
    assert windows is not None

    async def run() -> int:
        await gateway.service.start()
        embedding = asyncio.ensure_future(
            gateway.service.embed_windows([Picture(picture)], (WINDOWS,), scales=(1, 4))
        )
        most = 0
        while not embedding.done():
            most = max(most, windows.batcher.admitted)
            await asyncio.sleep(0)
        assert windows.batcher.admitted == 0
        await gateway.service.close()
        return most

    taken = asyncio.run(run())
    sizes = [pixels.shape for _, pixels in decode_windows(picture, PREPROCESS, (1, 4))]
    assert taken == sum(-(-h * w // 1024) for h, w, _ in sizes)


def test_kserve_serves_windows_too(client_for, windows_repository, picture):
    ((_, pixels),) = decode_windows(picture, PREPROCESS, (1,))
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, *pixels.shape]}
    body = {"inputs": [{**tensor, "data": pixels.ravel().tolist()}]}
    odd = {"inputs": [{**tensor, "shape": [1, 33, 32, 3], "data": [0] * (33 * 32 * 3)}]}
    good, bad = ask(
        client_for,
        windows_repository,
        ("/v2/models/amdim_windows/infer", {"json": body}),
        ("/v2/models/amdim_windows/infer", {"json": odd}),
    )
    assert good.status_code == 200, good.text
    (output,) = good.json()["outputs"]
    assert output["name"] == WINDOWS
    encoder = open_local_windows(windows_repository)
    want = encoder.encode(pixels)
    np.testing.assert_allclose(
        np.reshape(output["data"], output["shape"])[0], want, rtol=1e-4, atol=1e-4
    )
    encoder.close()
    assert bad.status_code == 400 and "multiple of 4 more" in bad.json()["error"]


def test_the_windows_model_is_shown_with_its_certificate(windows_repository):
    settings = Settings(model_repository=windows_repository, engine="onnxruntime", threads=1)
    shown = build_gateway(settings).describe()
    assert set(shown["models"]) == {"amdim", "amdim_windows"}
    assert shown["models"]["amdim_windows"]["spec"]["window_stride"] == 4
    assert shown["limits"]["max_windows"] == 2048


def test_match_finds_the_window_that_holds_the_query(client_for, windows_repository, picture):
    ((grid, pixels),) = decode_windows(picture, PREPROCESS, (2,))
    i, j = 4, 9
    buffer = io.BytesIO()
    Image.fromarray(pixels[4 * i : 4 * i + 32, 4 * j : 4 * j + 32]).save(buffer, "PNG")
    images: dict[str, Any] = {
        "query": {"data": base64.b64encode(buffer.getvalue()).decode()},
        "candidates": [
            {"data": base64.b64encode(data).decode()} for data in (picture, b"no picture")
        ],
    }
    whole, region, wrong = ask(
        client_for,
        windows_repository,
        ("/match", {"json": {**images, "windows": True, "scales": [2]}}),
        (
            "/match",
            {
                "json": {
                    "query": images["candidates"][0],
                    "candidates": images["candidates"][:1],
                    "windows": True,
                    "region": [0.3, 0.2, 0.6, 0.6],
                }
            },
        ),
        ("/match", {"json": {**images, "scales": [2]}}),
    )
    assert whole.status_code == 200, whole.text
    found, failed = whole.json()["data"]
    assert found["window_cosine"] > 0.9999 and found["window_scale"] == 2
    np.testing.assert_allclose(found["window_box"], grid.box(i, j))
    assert failed["error"]["code"] == "unsupported_media_type"
    (inside,) = region.json()["data"]
    assert inside["window_cosine"] > 0.9 and "region_box" in inside
    x0, y0, x1, y1 = inside["window_box"]
    assert x0 < 0.45 < x1 and y0 < 0.4 < y1
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "bad_request")


def test_match_without_a_windows_model_says_so(client_for, repository, picture):
    data = {"data": base64.b64encode(picture).decode()}
    body = {"query": data, "candidates": [data], "windows": True}
    (answer,) = ask(client_for, repository, ("/match", {"json": body}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_output")
