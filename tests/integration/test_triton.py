"""A real Triton serves what export publishes, with the vectors that the file gives in process."""

from __future__ import annotations

import asyncio
import urllib.request
import uuid

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http
import tritonclient.utils.shared_memory as shared_memory
from tritonclient.utils import InferenceServerException

from amdim_clients.contract import parse_model_config, read_model_spec
from amdim_clients.images import Preprocess, decode_image
from amdim_export.canaries import draw_canaries
from amdim_export.runtime import OnnxEncoder

pytestmark = pytest.mark.triton

MAX_BATCH = 16  # of the repository in conftest.py
OUTPUTS = ("embedding", "global", "local5", "local7")


def _images(module, pixels):
    tensor = module.InferInput("images", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    return [tensor]


def _files(module, files):
    rows = np.array(files, dtype=object).reshape(-1, 1)
    tensor = module.InferInput("image", [len(files), 1], "BYTES")
    tensor.set_data_from_numpy(rows)
    return [tensor]


def _pixels(count: int):
    return np.resize(draw_canaries(64), (count, 64, 64, 3))


def _assert_equal(result, expected):
    for name in OUTPUTS:
        given = result.as_numpy(name)
        assert given.shape == expected[name].shape
        # joined batches may take another kernel: the last bits differ, never more
        assert np.abs(given - expected[name]).max() <= 1e-4 * np.abs(expected[name]).max()


def test_health_and_metadata(grpc_client, http_client):
    for client in (grpc_client, http_client):
        assert client.is_server_live()
        assert client.is_server_ready()
        for model in ("amdim", "amdim_preprocess", "amdim_image"):
            assert client.is_model_ready(model)
    metadata = http_client.get_model_metadata("amdim")
    assert metadata["versions"] == ["2"]
    assert metadata["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 64, 64, 3]}]
    assert [output["name"] for output in metadata["outputs"]] == list(OUTPUTS)


def test_the_config_that_triton_tells_is_the_file_that_the_gateway_reads(grpc_client, repository):
    told = grpc_client.get_model_config("amdim").config
    assert parse_model_config(told, version="2") == read_model_spec(repository / "amdim")
    assert told.HasField("dynamic_batching")
    assert [warmup.batch_size for warmup in told.model_warmup] == [1, MAX_BATCH]


@pytest.mark.parametrize("count", [1, 7, MAX_BATCH])
def test_vectors_equal_those_in_process(grpc_client, http_client, in_process, count):
    pixels = _pixels(count)
    expected = in_process(pixels)
    _assert_equal(grpc_client.infer("amdim", _images(grpc, pixels)), expected)
    _assert_equal(http_client.infer("amdim", _images(http, pixels)), expected)


def test_asyncio_client_with_many_in_flight(triton, in_process):
    pixels = _pixels(16)
    expected = in_process(pixels)

    async def run():
        async with grpc_aio.InferenceServerClient(triton.grpc) as client:
            calls = [client.infer("amdim", _images(grpc_aio, pixels[i : i + 1])) for i in range(16)]
            return await asyncio.gather(*calls)

    for index, result in enumerate(asyncio.run(run())):
        one = {name: value[index : index + 1] for name, value in expected.items()}
        _assert_equal(result, one)


def test_only_what_is_asked_for_is_sent(grpc_client):
    asked = [grpc.InferRequestedOutput("global")]
    result = grpc_client.infer("amdim", _images(grpc, _pixels(2)), outputs=asked)
    assert result.as_numpy("global").shape == (2, 40)
    assert result.as_numpy("embedding") is None


def test_system_shared_memory(grpc_client, in_process, let_go):
    pixels = _pixels(3)
    key = f"/amdim-test-{uuid.uuid4().hex}"
    region = shared_memory.create_shared_memory_region("pixels", key, pixels.nbytes)
    try:
        shared_memory.set_shared_memory_region(region, [pixels])
        grpc_client.register_system_shared_memory("pixels", key, pixels.nbytes)
        tensor = grpc.InferInput("images", list(pixels.shape), "UINT8")
        tensor.set_shared_memory("pixels", pixels.nbytes)
        _assert_equal(grpc_client.infer("amdim", [tensor]), in_process(pixels))
    finally:
        let_go(grpc_client, "pixels")
        shared_memory.destroy_shared_memory_region(region)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 32, 32, 3), "UINT8"), ((1, 64, 64, 3), "FP32"), ((MAX_BATCH + 1, 64, 64, 3), "UINT8")],
)
def test_wrong_inputs_are_refused(grpc_client, shape, dtype):
    tensor = grpc.InferInput("images", list(shape), dtype)
    tensor.set_data_from_numpy(np.zeros(shape, np.uint8 if dtype == "UINT8" else np.float32))
    with pytest.raises(InferenceServerException):
        grpc_client.infer("amdim", [tensor])


@pytest.mark.parametrize("count", [1, 7])
def test_picture_files_give_the_vectors_of_their_pixels(
    grpc_client, http_client, in_process, photos, count
):
    preprocess = Preprocess.for_image_size(64)
    pixels = np.stack([decode_image(data, preprocess).pixels for data in photos[:count]])
    expected = in_process(pixels)
    _assert_equal(grpc_client.infer("amdim_image", _files(grpc, photos[:count])), expected)
    _assert_equal(http_client.infer("amdim_image", _files(http, photos[:count])), expected)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "unsupported_media_type"),
        (b"just text, no picture", "unsupported_media_type"),
        (b"\xff\xd8\xff\xe0 not a whole jpeg", "image_"),
    ],
)
def test_broken_files_are_named_and_the_server_goes_on(grpc_client, photos, data, code):
    with pytest.raises(InferenceServerException) as refused:
        grpc_client.infer("amdim_image", _files(grpc, [photos[0], data]))
    assert code in refused.value.message()
    assert "image 1" in refused.value.message()
    assert "Traceback" not in refused.value.message()
    result = grpc_client.infer("amdim_image", _files(grpc, photos[:1]))
    assert result.as_numpy("embedding").shape[0] == 1


def test_a_cut_photo_is_called_truncated(grpc_client, photos):
    cut = photos[0][: len(photos[0]) // 2]
    with pytest.raises(InferenceServerException, match="image_truncated: image 0"):
        grpc_client.infer("amdim_image", _files(grpc, [cut]))


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 72, 96), (4, 128, 80)])
def test_windows_equal_those_in_process(grpc_client, repository, shape):
    count, height, width = shape
    pixels = np.ascontiguousarray(draw_canaries(128)[:count, :height, :width])
    expected = OnnxEncoder(repository / "amdim_windows" / "1" / "model.onnx")(pixels)["windows"]
    given = grpc_client.infer("amdim_windows", _images(grpc, pixels)).as_numpy("windows")
    assert given.shape == expected.shape
    assert given.shape[1:3] == ((height - 64) // 8 + 1, (width - 64) // 8 + 1)
    assert np.abs(given - expected).max() <= 1e-4 * np.abs(expected).max()


def test_statistics_and_metrics_count_images(grpc_client, triton):
    def counted() -> int:
        statistics = grpc_client.get_inference_statistics("amdim").model_stats
        return sum(entry.inference_count for entry in statistics)

    before = counted()
    grpc_client.infer("amdim", _images(grpc, _pixels(5)))
    assert counted() == before + 5
    with urllib.request.urlopen(f"http://{triton.metrics}/metrics", timeout=10) as answer:
        assert 'nv_inference_count{model="amdim",version="2"}' in answer.read().decode()
