"""A real Triton as it is deployed: versions, restarts, and the flags that docs/triton.md names."""

from __future__ import annotations

import json
import shutil
import signal

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
import tritonclient.utils.shared_memory as shared_memory
from tritonclient.utils import InferenceServerException

from amdim_export.canaries import draw_canaries
from amdim_export.repository import roll_back

pytestmark = pytest.mark.triton

KEY = {"x-amdim-admin": "a-secret"}
RESTRICTED = "shared-memory,model-repository,model-config,statistics,trace,logging"
# as docs/triton.md has them
SECURED = (
    f"--http-restricted-api={RESTRICTED}:x-amdim-admin=a-secret",
    f"--grpc-restricted-protocol={RESTRICTED}:x-amdim-admin=a-secret",
)


def _images(module, pixels):
    tensor = module.InferInput("images", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    return [tensor]


def _pixels(count: int):
    return np.resize(draw_canaries(64), (count, 64, 64, 3))


def _assert_equal(result, expected):
    for name, value in expected.items():
        given = result.as_numpy(name)
        assert np.abs(given - value).max() <= 1e-4 * np.abs(value).max()


def test_versions_are_loaded_and_unloaded_on_request(start_triton, repository):
    server = start_triton(repository, explicit=True)
    with http.InferenceServerClient(server.http) as client:
        assert not client.is_model_ready("amdim")
        client.load_model("amdim")
        assert client.is_model_ready("amdim", "2")
        config = {**client.get_model_config("amdim"), "version_policy": {"all": {}}}
        client.load_model("amdim", config=json.dumps(config))
        assert client.is_model_ready("amdim", "1")
        result = client.infer("amdim", _images(http, _pixels(2)), model_version="1")
        assert result.as_numpy("embedding").shape[0] == 2
        client.unload_model("amdim")
        with pytest.raises(InferenceServerException):
            client.infer("amdim", _images(http, _pixels(1)))
    assert server.stop() == 0


def test_killed_and_started_again(start_triton, repository, in_process):
    server = start_triton(repository)
    server.stop(how=signal.SIGKILL)
    again = start_triton(repository)
    with grpc.InferenceServerClient(again.grpc) as client:
        _assert_equal(client.infer("amdim", _images(grpc, _pixels(2))), in_process(_pixels(2)))
    assert again.stop() == 0


def test_rolled_back_the_version_before_is_served(start_triton, repository, tmp_path):
    copy = shutil.copytree(repository, tmp_path / "models")
    roll_back(copy, "amdim")
    server = start_triton(copy)
    with http.InferenceServerClient(server.http) as client:
        assert client.get_model_metadata("amdim")["versions"] == ["1"]
        assert client.infer("amdim", _images(http, _pixels(1))).as_numpy("global").shape[0] == 1
    assert server.stop() == 0


def test_models_cannot_be_changed_from_outside(http_client):
    with pytest.raises(InferenceServerException, match="not allowed"):
        http_client.load_model("amdim")
    with pytest.raises(InferenceServerException, match="not allowed"):
        http_client.unload_model("amdim")
    assert http_client.is_model_ready("amdim")


def test_restricted_endpoints_need_the_key_and_inference_does_not(start_triton, repository):
    server = start_triton(repository, *SECURED)
    with (
        grpc.InferenceServerClient(server.grpc) as by_grpc,
        http.InferenceServerClient(server.http) as by_http,
    ):
        for module, client in ((grpc, by_grpc), (http, by_http)):
            result = client.infer("amdim", _images(module, _pixels(2)))
            assert result.as_numpy("embedding").shape[0] == 2
            assert client.is_server_ready()
            assert client.get_model_metadata("amdim")
            for call in (
                client.get_model_repository_index,
                client.get_system_shared_memory_status,
                client.get_inference_statistics,
                client.get_log_settings,
            ):
                with pytest.raises(InferenceServerException, match=r"restrict|expecting header"):
                    call()
                prefix = "triton-grpc-protocol-" if module is grpc else ""
                call(headers={f"{prefix}{name}": key for name, key in KEY.items()})
    assert server.stop() == 0


def test_output_through_shared_memory(grpc_client, http_client, in_process, let_go):
    pixels = _pixels(2)
    expected = in_process(pixels)["embedding"]
    for module, client in ((grpc, grpc_client), (http, http_client)):
        name = f"vectors-{module.__name__.rpartition('.')[2]}"
        region = shared_memory.create_shared_memory_region(name, f"/amdim-{name}", expected.nbytes)
        try:
            client.register_system_shared_memory(name, f"/amdim-{name}", expected.nbytes)
            asked = module.InferRequestedOutput("embedding")
            asked.set_shared_memory(name, expected.nbytes)
            client.infer("amdim", _images(module, pixels), outputs=[asked])
            given = shared_memory.get_contents_as_numpy(region, np.float32, expected.shape)
            assert np.abs(given - expected).max() <= 1e-4 * np.abs(expected).max()
        finally:
            let_go(client, name)
            shared_memory.destroy_shared_memory_region(region)
