from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from amdim_clients.contract import read_model_spec
from amdim_clients.errors import ContractError
from amdim_export.check import check_repository
from amdim_export.errors import RepositoryError


def _failures(repository: Path) -> dict[str, str]:
    return {f.what: f.problem for f in check_repository(repository) if not f.holds}


def _edit(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text(), count=1)
    assert count == 1
    path.write_text(text)


def test_a_sound_repository_holds(repository):
    findings = check_repository(repository)
    assert all(finding.holds for finding in findings)
    canaries = next(finding for finding in findings if finding.what == "canaries")
    assert min(found.min_cosine for found in canaries.outputs.values()) > 0.999999


def test_a_flipped_weight_is_caught_by_digest(repository):
    path = repository / "amdim/1/model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(bytes(data))
    assert "model.onnx artifact_digest" in _failures(repository)


def test_a_changed_weight_with_a_mended_digest_is_caught_by_canaries(repository):
    import numpy as np
    import onnx

    from amdim_export.fingerprint import artifact_digest

    path = repository / "amdim/1/model.onnx"
    before = artifact_digest(path)
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == "search.bias")
    values = onnx.numpy_helper.to_array(tensor) + np.float32(0.5)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)
    for name in ("config.pbtxt", "1/config.pbtxt", "1/certificate.json"):
        _edit(repository / "amdim" / name, before, artifact_digest(path))
    failures = _failures(repository)
    assert "embedding" in failures.pop("canaries")
    assert set(failures) <= {"canaries at bf16"}  # where the processor has it


@pytest.mark.parametrize("name", ["encoder_digest", "artifact_digest", "preprocess_digest"])
def test_a_changed_digest_in_the_config_is_caught(repository, name):
    path = repository / "amdim/config.pbtxt"
    pattern = rf'(key: "amdim\.{name}"\s+value {{\s+string_value: "sha256:)[0-9a-f]{{8}}'
    _edit(path, pattern, r"\g<1>00000000")
    assert f"config.pbtxt {name}" in _failures(repository)
    with pytest.raises(ContractError):
        read_model_spec(repository / "amdim")


def test_another_resize_is_caught(repository):
    path = repository / "amdim/config.pbtxt"
    _edit(path, r'(key: "amdim\.resize"\s+value {\s+string_value: ")70', r"\g<1>72")
    failures = _failures(repository)
    assert list(failures) == ["preprocessing"]
    assert "72" in failures["preprocessing"]
    with pytest.raises(ContractError):
        read_model_spec(repository / "amdim")


def test_a_changed_canary_is_caught(repository):
    path = repository / "amdim/1/certificate.json"
    values = json.loads(path.read_text())
    data = values["canaries"]["vectors"]["global"]["data"]
    values["canaries"]["vectors"]["global"]["data"] = data[::-1].lstrip("=") + "=" * (
        len(data) - len(data.rstrip("="))
    )
    path.write_text(json.dumps(values))
    assert "canaries" in _failures(repository)


@pytest.mark.parametrize("name", ["model.onnx", "certificate.json"])
def test_a_missing_file_is_named(repository, name):
    (repository / "amdim/1" / name).unlink()
    assert name in _failures(repository)


def test_a_stale_config_is_caught(repository):
    import shutil

    shutil.copytree(repository / "amdim/1", repository / "amdim/2")
    _edit(
        repository / "amdim/2/certificate.json",
        r'"encoder_digest": "sha256:....',
        '"encoder_digest": "sha256:0000',
    )
    assert "config.pbtxt encoder_digest" in _failures(repository)


def test_no_repository_and_no_encoder(tmp_path):
    with pytest.raises(RepositoryError, match="no model repository"):
        check_repository(tmp_path / "none")
    with pytest.raises(RepositoryError, match="no exported encoder"):
        check_repository(tmp_path)


def test_checking_needs_no_torch():
    program = "import sys, amdim_export.check; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
