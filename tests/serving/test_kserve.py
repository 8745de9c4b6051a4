"""The KServe v2 faces, driven by Triton's own clients against a real server process."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from amdim_serving.opening import OpenModel

triton_http = pytest.importorskip("tritonclient.http")

NAMES = ["embedding", "global", "local5", "local7"]


@pytest.fixture
def pixels(opened: OpenModel) -> NDArray[np.uint8]:
    return np.ascontiguousarray(opened.certificate.pixels[:6])


@pytest.fixture
def expected(opened: OpenModel) -> dict[str, NDArray[np.float32]]:
    return {name: vectors[:6] for name, vectors in opened.certificate.expected.items()}


def tensor(client: Any, images: NDArray[np.uint8], **kwargs: Any) -> Any:
    made = client.InferInput("images", list(images.shape), "UINT8")
    made.set_data_from_numpy(images, **kwargs)
    return made


def check(result: Any, expected: dict[str, NDArray[np.float32]], names: list[str]) -> None:
    for name in names:
        np.testing.assert_allclose(result.as_numpy(name), expected[name], rtol=1e-4, atol=1e-5)
    for name in set(NAMES) - set(names):
        assert result.as_numpy(name) is None


@pytest.mark.parametrize("binary", [True, False])
def test_rest_infer_gives_the_certified_vectors(
    served: Any, pixels: Any, expected: Any, binary: bool
) -> None:
    with triton_http.InferenceServerClient(f"127.0.0.1:{served.port}") as client:
        image = tensor(triton_http, pixels, binary_data=binary)
        outputs = [
            triton_http.InferRequestedOutput(name, binary_data=binary) for name in NAMES[1:3]
        ]
        result = client.infer("amdim", [image], outputs=outputs, request_id="r1")
        check(result, expected, NAMES[1:3])
        assert result.get_response()["id"] == "r1"
        check(client.infer("amdim", [image], model_version="1"), expected, NAMES)


def test_rest_describes_itself(served: Any) -> None:
    with triton_http.InferenceServerClient(f"127.0.0.1:{served.port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("amdim")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        metadata = client.get_model_metadata("amdim")
        assert metadata["inputs"] == [
            {"name": "images", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}
        ]
        config = client.get_model_config("amdim")
        assert config["max_batch_size"] == 4
        assert config["input"][0]["dims"] == [32, 32, 3]
        assert config["input"][0]["data_type"] == "TYPE_UINT8"
        assert client.get_model_repository_index()[0]["state"] == "READY"


def test_grpc_infer_gives_the_certified_vectors(served: Any, pixels: Any, expected: Any) -> None:
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{served.grpc_port}") as client:
        image = tensor(triton_grpc, pixels)
        outputs = [triton_grpc.InferRequestedOutput("local7")]
        check(client.infer("amdim", [image], outputs=outputs), expected, ["local7"])
        check(client.infer("amdim", [image]), expected, NAMES)
        assert client.get_model_config("amdim").config.max_batch_size == 4
        assert client.get_model_metadata("amdim").inputs[0].shape == [-1, 32, 32, 3]
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("amdim")
        assert client.get_server_metadata().name == "amdim-embed"
        assert client.get_model_repository_index().models[0].name == "amdim"


def test_grpc_aio_infers_many_at_once(served: Any, pixels: Any, expected: Any) -> None:
    async def main() -> None:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{served.grpc_port}") as client:
            image = tensor(triton_aio, pixels)
            results = await asyncio.gather(*(client.infer("amdim", [image]) for _ in range(8)))
            for result in results:
                check(result, expected, NAMES)

    asyncio.run(main())


def test_statistics_count_what_was_computed(served: Any, pixels: Any) -> None:
    with (
        triton_grpc.InferenceServerClient(f"127.0.0.1:{served.grpc_port}") as client,
        triton_http.InferenceServerClient(f"127.0.0.1:{served.port}") as rest,
    ):
        before = client.get_inference_statistics("amdim").model_stats[0]
        for _ in range(5):
            client.infer("amdim", [tensor(triton_grpc, pixels)])
        after = client.get_inference_statistics("amdim").model_stats[0]
        assert after.inference_count - before.inference_count == 30
        assert after.inference_stats.success.count - before.inference_stats.success.count == 5
        assert after.execution_count - before.execution_count == 10  # 6 images: 4 and 2
        shown = rest.get_inference_statistics("amdim")["model_stats"][0]
        assert shown["inference_count"] == after.inference_count
        assert shown["inference_stats"]["success"]["count"] == after.inference_stats.success.count


@pytest.mark.parametrize(
    ("model", "status"), [("amdim", "INVALID_ARGUMENT"), ("resnet", "NOT_FOUND")]
)
def test_errors_have_the_tables_status_on_both_wires(
    served: Any, pixels: Any, model: str, status: str
) -> None:
    bad = pixels[:, :16]
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{served.grpc_port}") as client:
        with pytest.raises(InferenceServerException) as failure:
            client.infer(model, [tensor(triton_grpc, bad)])
        assert failure.value.status() == f"StatusCode.{status}"
        with pytest.raises(InferenceServerException) as failure:
            client.get_system_shared_memory_status()
        assert failure.value.status() == "StatusCode.UNIMPLEMENTED"
    with triton_http.InferenceServerClient(f"127.0.0.1:{served.port}") as rest:
        with pytest.raises(InferenceServerException) as failure:
            rest.infer(model, [tensor(triton_http, bad)])
        assert failure.value.status() == ("400" if model == "amdim" else "404")


def good_body() -> dict[str, Any]:
    image = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * 3072}
    return {"inputs": [image]}


@pytest.mark.parametrize(
    "change",
    [
        {"data": [0] * 3071},
        {"data": [0] * 3071 + [256]},
        {"data": [0] * 3071 + [-1]},
        {"data": [0.5] * 3072},
        {"data": "zeros"},
        {"data": [[1, 2], [3]]},
        {"data": None},
        {"shape": [1, 32, 32]},
        {"shape": [0, 32, 32, 3], "data": []},
        {"shape": [True, 32, 32, 3]},
        {"shape": [10**30, 32, 32, 3]},
        {"datatype": "FP32"},
        {"name": "image"},
        {"parameters": {"binary_data_size": 3072}},
        {"parameters": {"shared_memory_region": "r"}},
        {"parameters": 3},
    ],
)
def test_malformed_tensors_are_400(served: Any, change: dict[str, Any]) -> None:
    body = good_body()
    body["inputs"][0].update(change)
    url = f"{served.url}/v2/models/amdim/infer"
    answer = httpx.post(url, content=json.dumps(body))
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}


@pytest.mark.parametrize("length", ["x", "-1", "99999", "0"])
def test_a_wrong_header_length_is_400(served: Any, length: str) -> None:
    answer = httpx.post(
        f"{served.url}/v2/models/amdim/infer",
        content=json.dumps(good_body()),
        headers={"Inference-Header-Content-Length": length},
    )
    assert answer.status_code == 400


@pytest.mark.parametrize("wire", ["rest", "grpc"])
def test_files_give_the_vectors_of_embed(served: Any, make_picture: Any, wire: str) -> None:
    pictures = [make_picture(seed=seed) for seed in range(3)]
    files = np.array([[picture] for picture in pictures], dtype=np.object_)
    client_module = triton_http if wire == "rest" else triton_grpc
    port = served.port if wire == "rest" else served.grpc_port
    with client_module.InferenceServerClient(f"127.0.0.1:{port}") as client:
        image = client_module.InferInput("image", [3, 1], "BYTES")
        image.set_data_from_numpy(files)
        result = client.infer("amdim_image", [image])
        for name in NAMES:
            for row, picture in zip(result.as_numpy(name), pictures, strict=True):
                answer = httpx.post(
                    served.url + "/embed",
                    content=picture,
                    params={"outputs": name, "normalize": "false"},
                )
                own = answer.json()["data"][0][name]
                np.testing.assert_allclose(row, own, rtol=1e-4, atol=1e-5)
        metadata = client.get_model_metadata("amdim_image")
        shown = metadata["inputs"][0]["name"] if wire == "rest" else metadata.inputs[0].name
        assert shown == "image"


def test_a_bad_file_fails_its_request(served: Any) -> None:
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{served.grpc_port}") as client:
        image = triton_grpc.InferInput("image", [1], "BYTES")
        image.set_data_from_numpy(np.array([b"no picture"], dtype=np.object_))
        with pytest.raises(InferenceServerException) as failure:
            client.infer("amdim_image", [image])
        assert failure.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("data", [b"", b"\x01", b"\xff\xff\xff\xffx", b"\x00\x00\x00\x00" * 2])
def test_malformed_bytes_tensors_are_400(served: Any, data: bytes) -> None:
    parameters = {"binary_data_size": len(data)}
    image = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "parameters": parameters}
    head = json.dumps({"inputs": [image]}).encode()
    answer = httpx.post(
        f"{served.url}/v2/models/amdim_image/infer",
        content=head + data,
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert answer.status_code == 400


def test_keys_are_asked_for_on_both_wires(
    running_server: Any, repository: Any, pixels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMDIM_API_KEYS", "secret")
    with running_server(repository, "--drain-delay", "0") as server:
        url = f"127.0.0.1:{server.grpc_port}"
        with triton_grpc.InferenceServerClient(url) as client:
            assert client.is_server_ready()
            image = [tensor(triton_grpc, pixels)]
            for headers in (None, {"x-api-key": "wrong"}, {"authorization": "Bearer wrong"}):
                with pytest.raises(InferenceServerException) as failure:
                    client.infer("amdim", image, headers=headers)
                assert failure.value.status() == "StatusCode.UNAUTHENTICATED"
            for headers in ({"x-api-key": "secret"}, {"authorization": "Bearer secret"}):
                client.infer("amdim", image, headers=headers)
        assert httpx.get(f"{server.url}/v2/health/ready").status_code == 200
        answer = httpx.get(f"{server.url}/v2/models/amdim")
        assert answer.status_code == 401
        assert set(answer.json()) == {"error"}
        assert server.stop() == 0
        assert "secret" not in "".join(server.lines)


def test_work_of_a_call_that_is_given_up_is_dropped(served: Any, make_picture: Any) -> None:
    picture = make_picture((900, 900), "PNG")
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{served.grpc_port}") as client:
        image = triton_grpc.InferInput("image", [60, 1], "BYTES")
        image.set_data_from_numpy(np.array([[picture]] * 60, dtype=np.object_))
        with pytest.raises(InferenceServerException) as failure:
            client.infer("amdim_image", [image], client_timeout=0.3)
        assert failure.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    for _ in range(200):
        metrics = httpx.get(served.url + "/metrics").text
        if "amdim_queue_images 0.0" in metrics:
            break
        time.sleep(0.05)
    assert "amdim_queue_images 0.0" in metrics
    assert 'amdim_requests_total{code="499",route="grpc:ModelInfer"}' in metrics


def test_every_models_statistics_are_found_without_a_name(served: Any) -> None:
    with triton_http.InferenceServerClient(f"127.0.0.1:{served.port}") as client:
        found = client.get_inference_statistics()["model_stats"]
    assert [model["name"] for model in found] == ["amdim", "amdim_image"]
