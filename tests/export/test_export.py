from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest

from amdim_clients.contract import read_model_spec
from amdim_clients.images import Preprocess
from amdim_export.artifact import Artifact
from amdim_export.certificate import read_certificate
from amdim_export.certifying import certify
from amdim_export.digests import encoder_digest
from amdim_export.errors import CertificateError, ParityError
from amdim_export.fingerprint import artifact_digest
from amdim_export.listing import list_artifacts
from amdim_export.pipeline import ExportOptions, export_encoder
from amdim_export.whitening import load_recipe


def test_published_files(published):
    folder = published / "amdim"
    names = sorted(path.name for path in (folder / "1").iterdir())
    assert names == ["certificate.json", "config.pbtxt", "model.onnx"]
    assert (folder / "config.pbtxt").read_text() == (folder / "1/config.pbtxt").read_text()
    spec = read_model_spec(folder)
    assert dict(spec.outputs) == {
        "embedding": (16,),
        "global": (40,),
        "local5": (5, 5, 40),
        "local7": (7, 7, 40),
    }
    assert (spec.default_output, spec.max_batch_size, spec.precision) == ("embedding", 9, "fp32")
    assert spec.artifact_digest == artifact_digest(folder / "1/model.onnx")
    assert spec.preprocess == Preprocess.for_image_size(64)


def test_certificate_says_what_was_measured(published):
    certificate = read_certificate(published / "amdim/1/certificate.json")
    assert certificate.parity.batches == (1, 2, 7, 9)
    assert certificate.parity.images == 16 + 60
    assert certificate.parity.neighbor_agreement > 0.99
    assert set(certificate.parity.outputs) == {"embedding", "global", "local5", "local7"}
    for found in certificate.parity.outputs.values():
        assert found.relative_error <= 1e-4
        assert found.min_cosine >= 0.999999
    assert certificate.weights_stored == "fp16"
    assert certificate.storage_loss is not None
    assert 0.0 < certificate.storage_loss["global"].relative_error < 1e-2
    assert certificate.canaries.pixels.shape == (16, 64, 64, 3)
    assert certificate.canaries.vectors["local7"].shape == (16, 7, 7, 40)
    assert certificate.canaries.vectors["embedding"].dtype == np.float32
    assert certificate.tools["opset"] == "20"
    assert "60 pictures" in certificate.recipe
    again = certificate.to_json()
    assert again == (published / "amdim/1/certificate.json").read_text()


def test_pictures_give_the_search_vector_and_the_recipe_stays(make_checkpoint, pictures, tmp_path):
    checkpoint = make_checkpoint()
    export_encoder(checkpoint.path, tmp_path, ExportOptions())
    spec = read_model_spec(tmp_path / "amdim")
    assert (spec.default_output, spec.embedding_dim) == ("global", None)
    assert list(spec.outputs) == ["global", "local5", "local7"]

    options = ExportOptions(fit_on=(pictures,), embedding_dim=8)
    (published,) = export_encoder(checkpoint.path, tmp_path, options)
    assert published.folder.name == "2"
    spec = read_model_spec(tmp_path / "amdim")
    assert (spec.default_output, spec.embedding_dim) == ("embedding", 8)
    assert [row[:3] for row in list_artifacts(tmp_path)] == [
        ("amdim", "1", "older"),
        ("amdim", "2", "served"),
    ]
    # the next export without --fit-on takes the recipe that this one left with the checkpoint
    again = encoder_digest(checkpoint, load_recipe(checkpoint.path))
    assert again == published.certificate.encoder_digest


def test_an_artifact_that_differs_has_no_certificate(plain):
    checkpoint, artifact = plain
    model = onnx.load_from_string(artifact.model)
    bias = next(t for t in model.graph.initializer if t.name == "trunk.head5.shortcut.bias")
    values = onnx.numpy_helper.to_array(bias) + np.float32(0.01)
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    wrong = Artifact(model.SerializeToString(), artifact.graph, artifact.halves)
    with pytest.raises(ParityError, match="local5 differs by"):
        certify(checkpoint, None, wrong)


def test_a_broken_certificate_is_refused(tmp_path):
    path = tmp_path / "certificate.json"
    for text in ("", "[]", '{"format": 2}', '{"format": 1}', '{"format": 1, "outputs": 3}'):
        path.write_text(text)
        with pytest.raises(CertificateError):
            read_certificate(path)


@pytest.mark.slow
def test_bytes_are_the_same_in_another_process(plain):
    checkpoint, artifact = plain
    program = (
        "import sys; from amdim_training.checkpoint import load_checkpoint;"
        "from amdim_export.artifact import build_artifact;"
        "from amdim_export.fingerprint import artifact_digest;"
        "print(artifact_digest(build_artifact(load_checkpoint(sys.argv[1]), None).model))"
    )
    command = [sys.executable, "-c", program, str(checkpoint.path)]
    told = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "1"}
    )
    assert told.stdout.strip() == artifact_digest(artifact.model)
