from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from amdim_clients.contract import read_certificate as read_for_serving
from amdim_clients.contract import read_model_spec
from amdim_export.certificate import read_certificate
from amdim_export.check import check_repository
from amdim_export.errors import ParityError, PicturesError
from amdim_export.finetune import FineTuning
from amdim_export.fingerprint import artifact_digest
from amdim_export.pipeline import ExportOptions, export_encoder
from amdim_export.quantize import QuantizeOptions, quantize_encoder

pytest.importorskip("openvino")
pytestmark = pytest.mark.slow

QUICK = FineTuning(steps=2, batch_size=4)


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint):
    return make_checkpoint(width=8)


@pytest.fixture(scope="module")
def both(checkpoint, pictures, tmp_path_factory) -> Path:
    """A repository with an encoder in fp32 and in int8; read only, see `repository`."""
    root = tmp_path_factory.mktemp("both")
    export_encoder(checkpoint.path, root, ExportOptions(fit_on=(pictures,), embedding_dim=16))
    options = QuantizeOptions(calibrate_on=(pictures,), parity_on=(pictures,), tuning=QUICK)
    quantize_encoder(checkpoint.path, root, options)
    return root


@pytest.fixture
def repository(both, tmp_path) -> Path:
    return Path(shutil.copytree(both, tmp_path / "repository"))


def _failures(repository: Path) -> dict[str, str]:
    found = check_repository(repository)
    return {f"{f.model} {f.what}": f.problem for f in found if not f.holds}


def test_int8_is_a_model_of_the_same_encoder(both):
    whole, int8 = read_model_spec(both / "amdim"), read_model_spec(both / "amdim_int8")
    assert int8.precision == "int8"
    assert int8.encoder_digest == whole.encoder_digest
    assert int8.preprocess_digest == whole.preprocess_digest
    assert int8.artifact_digest == artifact_digest(both / "amdim_int8/1/model.onnx")
    assert int8.artifact_digest != whole.artifact_digest
    assert (int8.outputs, int8.default_output) == (whole.outputs, whole.default_output)
    sizes = [(both / name / "1/model.onnx").stat().st_size for name in ("amdim", "amdim_int8")]
    assert sizes[1] < sizes[0]


def test_triton_runs_it_with_openvino(both):
    config = (both / "amdim_int8/config.pbtxt").read_text()
    assert 'backend: "openvino"' in config
    assert 'default_model_filename: "model.onnx"' in config
    assert re.search(r'key: "ENABLE_BATCH_PADDING"\s+value {\s+string_value: "YES"', config)


def test_its_certificate_says_what_it_costs_and_whether_it_qualifies(both):
    path = both / "amdim_int8/1/certificate.json"
    certificate = read_certificate(path)
    (int8,) = certificate.precisions.values()
    assert (int8.precision, int8.engine) == ("int8", "openvino")
    assert int8.parity is not None
    assert int8.speedup is not None
    assert int8.parity.images == 60
    assert int8.parity.batches == (1, 2, 7, 16)
    for found in int8.parity.outputs.values():
        assert 0.9 < found.mean_cosine < 0.999999  # of weights that nothing has trained
    assert int8.speedup > 0
    assert json.loads(path.read_text())["precisions"]["int8"]["qualifies"] is int8.qualifies
    served = read_for_serving(path)
    assert served.precisions["int8"].qualifies is int8.qualifies
    assert served.at("int8").tolerance.min_cosine == int8.tolerance.min_cosine
    # canaries are what the trained encoder says, the same ones that fp32 is held to
    trained = read_certificate(both / "amdim/1/certificate.json").canaries
    for name, vectors in trained.vectors.items():
        np.testing.assert_array_equal(certificate.canaries.vectors[name], vectors)


def test_the_server_s_engine_runs_it_and_proves_it(both):
    from amdim_serving.opening import open_model

    opened = open_model(both, "amdim_int8", engine_name="openvino", threads=1)
    assert opened.engine.info.precision == "int8"
    opened.engine.close()


def test_check_measures_it_again(both):
    findings = check_repository(both)
    assert all(finding.holds for finding in findings)
    measured = [f.what for f in findings if f.model == "amdim_int8" and f.outputs]
    assert measured == ["canaries"]
    assert "canaries at bf16" in [f.what for f in findings if f.model == "amdim"]


def test_a_flipped_bit_is_caught(repository):
    path = repository / "amdim_int8/1/model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(bytes(data))
    assert "amdim_int8 model.onnx artifact_digest" in _failures(repository)


def test_changed_weights_with_a_mended_digest_are_caught_by_canaries(repository):
    path = repository / "amdim_int8/1/model.onnx"
    before = artifact_digest(path)
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name.endswith("1.conv1.weight_int8"))
    values = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(-values, tensor.name))
    onnx.save(model, path)
    for name in ("config.pbtxt", "1/config.pbtxt", "1/certificate.json"):
        file = repository / "amdim_int8" / name
        file.write_text(file.read_text().replace(before, artifact_digest(path)))
    assert list(_failures(repository)) == ["amdim_int8 canaries"]


def test_another_encoder_s_int8_is_caught(repository):
    digest = read_model_spec(repository / "amdim").encoder_digest
    for name in ("config.pbtxt", "1/config.pbtxt", "1/certificate.json"):
        file = repository / "amdim" / name
        file.write_text(file.read_text().replace(digest, f"sha256:{'0' * 64}"))
    assert list(_failures(repository)) == ["amdim_int8 config.pbtxt against its encoder"]


def test_strict_publishes_nothing_that_misses_a_target(checkpoint, pictures, tmp_path):
    # so small an encoder is nowhere near three times as fast in int8
    options = QuantizeOptions(
        calibrate_on=(pictures,), parity_on=(pictures,), tuning=FineTuning(steps=0), strict=True
    )
    with pytest.raises(ParityError, match="times as fast as fp32, not 3"):
        quantize_encoder(checkpoint.path, tmp_path, options)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_measure_on_is_an_error(checkpoint, pictures, tmp_path):
    options = QuantizeOptions(calibrate_on=(pictures,), parity_on=(tmp_path,), tuning=QUICK)
    with pytest.raises(PicturesError):
        quantize_encoder(checkpoint.path, tmp_path / "repository", options)


def test_for_tensorrt_another_model_is_published_and_the_command_says_what_it_found(
    checkpoint, pictures, tmp_path
):
    import typer

    from amdim_export.quantize_command import quantize

    app = typer.Typer()
    app.command()(quantize)
    told = tmp_path / "found.json"
    words = [str(checkpoint.path), "--to", str(tmp_path / "repository"), "--target", "tensorrt"]
    words += ["--calibrate-on", str(pictures), "--parity-on", str(pictures), "--steps", "0"]
    done = CliRunner().invoke(app, [*words, "--json", str(told)])
    assert done.exit_code == 0, done.output
    assert "int8          in onnxruntime: mean cosine 0.99" in done.output
    assert json.loads(told.read_text())["int8"]["speedup"] is None
    config = (tmp_path / "repository/amdim_int8_gpu/config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in config
    assert "KIND_GPU" in config
    assert 'name: "tensorrt"' in config
