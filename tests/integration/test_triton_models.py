"""The models beside the encoder in a real Triton: picture files, windows, OpenVINO's backend."""

from __future__ import annotations

import asyncio
import subprocess
import time
import zipfile

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

from amdim_clients.errors import ImageError
from amdim_clients.images import Preprocess, decode_image
from amdim_export.canaries import draw_canaries
from amdim_export.openvino_runtime import OpenVinoEncoder
from amdim_export.runtime import OnnxEncoder

pytestmark = pytest.mark.triton


def _images(module, pixels):
    tensor = module.InferInput("images", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    return [tensor]


def _files(module, files):
    tensor = module.InferInput("image", [len(files), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(files, dtype=object).reshape(-1, 1))
    return [tensor]


def _near(given, expected):
    return given.shape == expected.shape and (
        np.abs(given - expected).max() <= 1e-4 * np.abs(expected).max()
    )


def _read(path, *, suffix: str = "") -> list[bytes]:
    with zipfile.ZipFile(path) as archive:
        names = sorted(entry.filename for entry in archive.infolist() if not entry.is_dir())
        return [archive.read(name) for name in names if name.endswith(suffix)]


def test_decoding_needs_numpy_1_and_pillow_alone(triton_python, photos, tmp_path):
    """In the environment whose Python decodes for Triton."""
    picture = tmp_path / "picture"
    picture.write_bytes(photos[0])
    program = (
        "import sys, numpy; from pathlib import Path;"
        "from amdim_clients.images import Preprocess, decode_image;"
        "decoded = decode_image(Path(sys.argv[1]).read_bytes(), Preprocess.for_image_size(64));"
        "files = (getattr(m, '__file__', None) or '' for m in list(sys.modules.values()));"
        "print(numpy.__version__, decoded.pixels.shape, sorted({f.split('site-packages/')[1]"
        ".split('/')[0].split('.')[0] for f in files if 'site-packages/' in f}))"
    )
    done = subprocess.run(
        [triton_python, "-c", program, picture], capture_output=True, text=True, check=True
    )
    version, _, rest = done.stdout.strip().partition(" ")
    assert version == "1.26.4"
    # setuptools puts a start-up hook of its own into every environment
    assert rest.replace("'_distutils_hack', ", "") == "(64, 64, 3) ['PIL', 'numpy']"


def test_photos_give_the_vectors_of_their_pixels(triton, in_process, shared_dir):
    photos = _read(shared_dir / "data" / "photos.zip", suffix=".JPEG")[:24]
    preprocess = Preprocess.for_image_size(64)
    pixels = np.stack([decode_image(photo, preprocess).pixels for photo in photos])
    expected = in_process(pixels)["embedding"]

    async def ask():
        async with grpc_aio.InferenceServerClient(triton.grpc) as client:
            calls = [client.infer("amdim_image", _files(grpc_aio, [photo])) for photo in photos]
            return await asyncio.gather(*calls)

    answers = [result.as_numpy("embedding") for result in asyncio.run(ask())]
    assert _near(np.concatenate(answers), expected)


def test_awkward_files_are_answered_as_they_decode(grpc_client, shared_dir):
    """Real files that programs stumble over: each has its vector, or its own error code."""
    preprocess = Preprocess.for_image_size(64)
    answered = refused = 0
    for data in _read(shared_dir / "data" / "awkward_public.zip")[::7]:
        try:
            decode_image(data, preprocess)
        except ImageError as error:
            refused += 1
            with pytest.raises(InferenceServerException) as failure:
                grpc_client.infer("amdim_image", _files(grpc, [data]))
            said = f"{error.code}: image 0: {error.message}"
            assert failure.value.message().endswith(said)
        else:
            answered += 1
            result = grpc_client.infer("amdim_image", _files(grpc, [data]))
            assert np.isfinite(result.as_numpy("embedding")).all()
    assert answered > 10
    assert refused > 5


def test_windows_over_every_protocol(triton, grpc_client, http_client, repository):
    pixels = np.ascontiguousarray(draw_canaries(128)[:2, :96, :112])
    expected = OnnxEncoder(repository / "amdim_windows/1/model.onnx")(pixels)["windows"]
    assert expected.shape[:3] == (2, 5, 7)

    async def ask():
        async with grpc_aio.InferenceServerClient(triton.grpc) as client:
            # other sizes at the same time: each batch is of one size
            shapes = [(96, 112), (64, 64), (96, 112), (128, 72)]
            calls = [
                client.infer(
                    "amdim_windows",
                    _images(grpc_aio, np.ascontiguousarray(draw_canaries(128)[:2, :h, :w])),
                )
                for h, w in shapes
            ]
            return await asyncio.gather(*calls)

    for result in (
        grpc_client.infer("amdim_windows", _images(grpc, pixels)),
        http_client.infer("amdim_windows", _images(http, pixels)),
        asyncio.run(ask())[0],
    ):
        assert _near(result.as_numpy("windows"), expected)


def test_a_picture_smaller_than_a_window_or_too_many_are_refused(grpc_client):
    for shape in ((1, 32, 64, 3), (5, 64, 64, 3)):
        with pytest.raises(InferenceServerException):
            grpc_client.infer("amdim_windows", _images(grpc, np.zeros(shape, np.uint8)))


def test_statistics_tell_the_steps_of_an_ensemble(grpc_client, photos):
    def counted(model: str) -> int:
        (found,) = grpc_client.get_inference_statistics(model).model_stats
        return int(found.inference_count)

    models = ("amdim_image", "amdim_preprocess", "amdim")
    before = [counted(model) for model in models]
    grpc_client.infer("amdim_image", _files(grpc, photos[:3]))
    deadline = time.monotonic() + 30  # Triton counts a request a moment after it has answered it
    while True:
        more = [counted(model) - was for model, was in zip(models, before, strict=True)]
        if more == [3, 3, 3] or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    assert more == [3, 3, 3]


@pytest.mark.parametrize("count", [1, 7, 16])
def test_int8_is_served_by_openvino(grpc_client, http_client, repository, count):
    pixels = np.resize(draw_canaries(64), (count, 64, 64, 3))
    expected = OpenVinoEncoder(repository / "amdim_int8/1/model.onnx")(pixels)
    config = grpc_client.get_model_config("amdim_int8").config
    assert (config.backend, config.default_model_filename) == ("openvino", "model.onnx")
    for module, client in ((grpc, grpc_client), (http, http_client)):
        result = client.infer("amdim_int8", _images(module, pixels))
        for name, value in expected.items():
            assert _near(result.as_numpy(name), value)
