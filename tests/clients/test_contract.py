from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest

from amdim_clients.contract import file_digest, read_certificate, read_model_spec
from amdim_clients.errors import ContractError
from amdim_clients.images import Preprocess


def digest(letter):
    return "sha256:" + letter * 64


def test_spec_is_read_from_the_triton_config(model_dir):
    spec = read_model_spec(model_dir)
    assert (spec.name, spec.version, spec.image_size) == ("amdim", "1", 64)
    assert (spec.embed_dim, spec.embedding_dim, spec.default_output) == (8, 6, "embedding")
    assert dict(spec.outputs) == {
        "embedding": (6,),
        "global": (8,),
        "local5": (5, 5, 8),
        "local7": (7, 7, 8),
    }
    assert list(spec.outputs) == ["embedding", "global", "local5", "local7"]
    assert (spec.max_batch_size, spec.max_queue_delay_us, spec.instance_count) == (16, 250, 2)
    assert spec.preprocess == Preprocess(64, 70)
    assert (spec.encoder_digest, spec.artifact_digest) == (digest("a"), digest("c"))
    assert spec.precision == "fp32"


def test_certificate_carries_canaries(model_dir):
    certificate = read_certificate(model_dir / "1")
    assert certificate.pixels.shape == (2, 64, 64, 3)
    assert certificate.expected["embedding"].dtype == np.float32
    assert certificate.tolerance.min_cosine == 0.9999
    assert certificate.raw["format"] == 1


def test_certificate_says_at_which_precisions_an_artifact_may_run(model_dir, write_certificate):
    assert list(read_certificate(model_dir / "1").precisions) == ["fp32"]
    bf16 = {
        "engine": "openvino",
        "qualifies": None,
        "tolerance": {"max_relative_error": 0.05, "min_cosine": 0.99},
    }
    write_certificate("1", lambda document: document.update(precisions={"bf16": bf16}))
    certificate = read_certificate(model_dir / "1")
    assert list(certificate.precisions) == ["fp32", "bf16"]
    assert certificate.precisions["fp32"].qualifies is True
    assert certificate.precisions["bf16"].qualifies is None
    assert certificate.at("fp32") == certificate
    at_bf16 = certificate.at("bf16")
    assert (at_bf16.precision, at_bf16.tolerance.min_cosine) == ("bf16", 0.99)
    assert at_bf16.expected is certificate.expected
    with pytest.raises(ContractError, match="fp32, bf16, not for int8"):
        certificate.at("int8")


def test_an_int8_artifact_qualifies_only_where_its_certificate_says_so(
    model_dir, write_certificate
):
    write_certificate("1", lambda document: document.update(precision="int8"))
    assert read_certificate(model_dir / "1").precisions["int8"].qualifies is None


def test_model_without_embedding_defaults_to_global(model_dir, write_config):
    write_config(embedding_dim=None, default_output="global")
    text = (model_dir / "config.pbtxt").read_text()
    (model_dir / "config.pbtxt").write_text(
        "\n".join(line for line in text.splitlines() if '"embedding"' not in line)
    )
    spec = read_model_spec(model_dir)
    assert spec.embedding_dim is None
    assert list(spec.outputs) == ["global", "local5", "local7"]


def test_highest_version_is_numeric_and_older_ones_follow_their_certificate(
    model_dir, write_certificate
):
    shutil.copytree(model_dir / "1", model_dir / "10")
    for version in ("1", "9"):
        write_certificate(version, lambda document: document.update(encoder_digest=digest("b")))
    assert read_model_spec(model_dir).version == "10"
    assert read_model_spec(model_dir, "9").encoder_digest == digest("b")
    with pytest.raises(ContractError, match="no version 3"):
        read_model_spec(model_dir, "3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_digest": digest("e")}, "differ in encoder_digest"),
        ({"artifact_digest": digest("e")}, "differ in artifact_digest"),
        ({"precision": "int8"}, "differ in precision"),
        ({"preprocess_digest": digest("e")}, "different preprocessing"),
        ({"resize": "80"}, "different preprocessing"),
        ({"preprocess_version": "2"}, "preprocessing version 2"),
        ({"format": "2"}, "format 2"),
        ({"image_size": "128"}, "resize must be at least"),
        ({"embed_dim": "9"}, "has outputs"),
        ({"embedding_dim": None}, "has outputs"),
        ({"embed_dim": "many"}, "is no number"),
        ({"encoder_digest": "sha256:1"}, "is no sha256"),
        ({"default_output": "local9"}, "no output local9"),
        ({"precision": None}, "amdim.precision is missing"),
    ],
)
def test_broken_contract_is_refused(model_dir, write_config, changes, message):
    write_config(**changes)
    with pytest.raises(ContractError, match=message):
        read_model_spec(model_dir)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("TYPE_UINT8", "TYPE_FP32"),
        ("TYPE_FP32 dims: [ 6 ]", "TYPE_FP16 dims: [ 6 ]"),
        ("max_batch_size: 16", "max_batch_size: 0"),
        ("dims: [ 64, 64, 3 ]", "dims: [ 3, 64, 64 ]"),
        ("backend:", "no_such_field:"),
    ],
)
def test_broken_config_is_refused(model_dir, old, new):
    path = model_dir / "config.pbtxt"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ContractError):
        read_model_spec(model_dir)


def test_missing_parts_are_named(model_dir, tmp_path):
    with pytest.raises(ContractError, match="no model config"):
        read_model_spec(tmp_path / "nowhere")
    (model_dir / "1" / "certificate.json").unlink()
    with pytest.raises(ContractError, match="no certificate"):
        read_model_spec(model_dir)
    shutil.rmtree(model_dir / "1")
    with pytest.raises(ContractError, match="no version folder"):
        read_model_spec(model_dir)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(format=2),
        lambda d: d.pop("canaries"),
        lambda d: d["canaries"].update(vectors={}),
        lambda d: d["canaries"]["pixels"].update(shape=[3, 64, 64, 3]),
        lambda d: d["canaries"]["pixels"].update(dtype="object"),
        lambda d: d.update(encoder_digest="abc"),
        lambda d: d.update(tolerance=None),
        lambda d: d.update(precisions={"bf16": {"engine": "openvino", "qualifies": True}}),
        lambda d: d.update(
            precisions={
                "bf16": {"engine": "openvino", "qualifies": "yes", "tolerance": d["tolerance"]}
            }
        ),
    ],
)
def test_broken_certificate_is_refused(model_dir, write_certificate, damage):
    write_certificate("1", damage)
    with pytest.raises(ContractError):
        read_model_spec(model_dir)


def test_file_digest_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_digest(tmp_path / "x").startswith("sha256:ba7816bf8f01cfea")


def test_contract_imports_no_torch_and_no_server():
    program = (
        "import sys, amdim_clients.contract, amdim_clients.images; "
        "print(sorted({'torch', 'onnx', 'fastapi', 'amdim_training', 'amdim_serving'}"
        " & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
