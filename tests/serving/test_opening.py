from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from amdim_serving.canaries import check_canaries
from amdim_serving.engines import Engine
from amdim_serving.engines.onnxruntime import OnnxRuntimeEngine
from amdim_serving.errors import CanaryError, EngineError, ProviderError, StartError
from amdim_serving.local import open_local_encoder
from amdim_serving.opening import OpenModel, open_model, read_artifact
from amdim_serving.service import EmbedService
from amdim_serving.settings import find_repository, load_settings


def test_the_canaries_reproduce(opened: OpenModel) -> None:
    assert opened.canary_cosine > 0.999999
    assert opened.engine.info.engine == "onnxruntime"
    assert opened.engine.info.provider == "CPUExecutionProvider"


def test_a_certificate_that_is_not_reproduced_is_refused(lying_repository: Path) -> None:
    with pytest.raises(CanaryError):
        open_model(lying_repository, "amdim")


def test_an_artifact_that_is_not_the_certified_one_is_refused(lying_repository: Path) -> None:
    model = lying_repository / "amdim" / "1" / "model.onnx"
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(StartError, match="vouches"):
        open_model(lying_repository, "amdim")


def test_a_provider_is_never_replaced(repository: Path, opened: OpenModel) -> None:
    path = repository / "amdim" / "1" / "model.onnx"
    with pytest.raises(ProviderError):
        OnnxRuntimeEngine(path, opened.engine.spec, provider="CUDAExecutionProvider")


def test_a_missing_model_is_one_sentence(repository: Path) -> None:
    with pytest.raises(StartError):
        open_model(repository, "resnet")
    with pytest.raises(StartError, match="--repository"):
        find_repository(repository / "nowhere")


def test_only_the_outputs_asked_for_leave_the_engine(opened: OpenModel) -> None:
    images = np.zeros((2, 32, 32, 3), np.uint8)
    got = opened.engine.encode(images, ["local5"])
    assert {name: array.shape for name, array in got.items()} == {"local5": (2, 5, 5, 8)}


def test_a_closed_engine_says_so(repository: Path) -> None:
    engine = open_model(repository, "amdim").engine
    engine.close()
    engine.close()
    with pytest.raises(EngineError):
        engine.encode(np.zeros((1, 32, 32, 3), np.uint8), ["global"])


def test_the_local_encoder_takes_any_number_of_images(repository: Path, opened: OpenModel) -> None:
    encoder = open_local_encoder(repository, "amdim")
    pixels = opened.certificate.pixels[:11]
    got = encoder.encode(pixels, ["embedding"])["embedding"]
    np.testing.assert_allclose(got, opened.certificate.expected["embedding"][:11], rtol=1e-4)
    assert encoder.encode(pixels[:0], ["global"])["global"].shape == (0, 8)
    encoder.close()


def test_settings_come_from_flags_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMDIM_PORT", "9000")
    monkeypatch.setenv("AMDIM_MAX_IMAGES", "7")
    monkeypatch.setenv("AMDIM_API_KEYS", "a, b")
    settings = load_settings(port=9001, host=None)
    assert (settings.port, settings.host, settings.limits.max_images) == (9001, "127.0.0.1", 7)
    assert settings.keys() == (b"a", b"b")
    with pytest.raises(StartError, match="port"):
        load_settings(port=70000)


def test_serving_imports_no_torch() -> None:
    code = (
        "import sys, amdim_serving.app, amdim_serving.server;"
        "print(*{'torch', 'onnx', 'amdim_training', 'amdim_export'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


def test_openvino_gives_the_certified_vectors(repository: Path) -> None:
    pytest.importorskip("openvino")
    opened = open_model(repository, "amdim", engine_name="openvino", threads=1)
    assert opened.engine.info.engine == "openvino"
    assert opened.canary_cosine > 0.99999
    got = opened.engine.encode(opened.certificate.pixels[:3], ["local5"])
    assert {name: array.shape for name, array in got.items()} == {"local5": (3, 5, 5, 8)}
    opened.engine.close()
    with pytest.raises(EngineError):
        opened.engine.encode(opened.certificate.pixels[:1], ["local5"])


@pytest.mark.parametrize(("model", "precision"), [("amdim", "fp32"), ("amdim_int8", "int8")])
def test_the_shipped_models_are_right_in_however_many_streams(
    repo_root: Path, model: str, precision: str
) -> None:
    """An int8 file whose convolutions shared weights was compiled wrongly every other time."""
    pytest.importorskip("openvino")
    artifact = read_artifact(repo_root / "model_repository", model)
    cosines = []
    for calls in (1, 2, 4, 4, 4, 4):
        engine, cosine = artifact.load("openvino", precision=precision, threads=1, calls=calls)
        engine.close()
        cosines.append(cosine)
    assert min(cosines) > max(cosines) - 0.005
    assert min(cosines) > 0.9


def test_the_default_output_alone_is_proved_too(opened: OpenModel) -> None:
    class WrongAlone:
        spec = opened.engine.spec

        def encode(self, images, outputs):
            got = opened.engine.encode(images, outputs)
            if tuple(outputs) == (self.spec.default_output,):
                return {name: value[:, ::-1] for name, value in got.items()}
            return got

    check_canaries(opened.engine, opened.certificate)
    with pytest.raises(CanaryError, match="does not reproduce"):
        check_canaries(cast("Engine", WrongAlone()), opened.certificate)


def test_on_one_core_the_engine_is_its_own_second_one(repository: Path) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        model = open_model(repository, "amdim", beside=True)
        assert model.beside is model.engine and model.engine.info.threads == 1

        async def main() -> None:
            service = EmbedService(model.engine, beside=model.beside)
            await service.start()
            pixels = np.zeros((9, 32, 32, 3), np.uint8)
            answers = [service.encode_pixels(pixels, ("global",)) for _ in range(4)]
            for vectors in await asyncio.gather(*answers):
                assert vectors["global"].shape == (9, 8)
            await service.close()

        asyncio.run(asyncio.wait_for(main(), 30))
    finally:
        os.sched_setaffinity(0, allowed)
