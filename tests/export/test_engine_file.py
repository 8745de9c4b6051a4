from __future__ import annotations

import dataclasses
import json

import pytest

from amdim_clients.cli import main
from amdim_export.certificate import Certificate
from amdim_export.check import check_repository
from amdim_export.engine_file import (
    ENGINE_FILE,
    EngineFacts,
    engine_file_name,
    read_engine_facts,
)
from amdim_export.errors import EngineError
from amdim_export.fingerprint import artifact_digest
from amdim_export.listing import list_artifacts
from amdim_export.pipeline import ExportOptions
from amdim_export.repository import publish_version
from amdim_export.tensorrt_export import export_tensorrt
from amdim_export.tensorrt_runtime import missing_for_tensorrt

PLAN = b"not an engine, but bytes that have a digest"


def _facts() -> EngineFacts:
    return EngineFacts(
        artifact_digest=artifact_digest(PLAN),
        onnx_digest="sha256:" + "0" * 64,
        tensorrt="10.5.0",
        sm="9.0",
        gpu="NVIDIA H100",
        precision="fp16",
        batches=((1, 1, 1), (1, 64, 64)),
    )


def test_facts_survive_their_file(tmp_path):
    (tmp_path / ENGINE_FILE).write_text(_facts().to_json())
    assert read_engine_facts(tmp_path) == _facts()


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1, "sm": "9.0"}'])
def test_broken_facts_are_refused(tmp_path, text):
    (tmp_path / ENGINE_FILE).write_text(text)
    with pytest.raises(EngineError):
        read_engine_facts(tmp_path)
    with pytest.raises(EngineError):
        read_engine_facts(tmp_path / "none")


def test_an_engine_is_refused_where_it_was_not_built(tmp_path):
    facts = _facts()
    facts.require_machine(tensorrt="10.5.0", sm="9.0")
    with pytest.raises(EngineError, match=r"TensorRT 10\.5\.0 and here is 10\.6\.0: build one"):
        facts.require_machine(tensorrt="10.6.0", sm="9.0")
    with pytest.raises(EngineError, match=r"capability 9\.0 \(NVIDIA H100\) and here is 8\.9"):
        facts.require_machine(tensorrt="10.5.0", sm="8.9")
    engine = tmp_path / engine_file_name(facts.sm)
    with pytest.raises(EngineError, match="no engine"):
        facts.require_unchanged(engine)
    engine.write_bytes(PLAN)
    facts.require_unchanged(engine)
    engine.write_bytes(PLAN[:-1])
    with pytest.raises(EngineError, match="digest"):
        facts.require_unchanged(engine)


@pytest.fixture
def with_engine(repository):
    """A repository with an engine's files, whose bytes no TensorRT would load."""
    text = (repository / "amdim/config.pbtxt").read_text()
    certificate = json.loads((repository / "amdim/1/certificate.json").read_text())
    old = certificate["artifact_digest"]
    certificate["artifact_digest"] = artifact_digest(PLAN)
    del certificate["precisions"]  # an engine runs at its own
    config = (
        text.replace('"onnxruntime"', '"tensorrt"')
        .replace(
            'default_model_filename: "model.onnx"',
            'cc_model_filenames { key: "9.0" value: "model.sm90.plan" }',
        )
        .replace('name: "amdim"', 'name: "amdim_tensorrt"')
        .replace(old, artifact_digest(PLAN))
    )
    files = {
        "model.sm90.plan": PLAN,
        ENGINE_FILE: _facts().to_json().encode(),
        "certificate.json": json.dumps(certificate).encode(),
    }
    publish_version(repository, "amdim_tensorrt", files, config=config)
    return repository


@pytest.mark.skipif(not missing_for_tensorrt(), reason="here an engine can be loaded")
def test_what_cannot_be_measured_here_is_said_and_fails_only_when_strict(with_engine, capsys):
    findings = [f for f in check_repository(with_engine) if f.model == "amdim_tensorrt"]
    assert all(finding.holds for finding in findings)
    (canaries,) = (finding for finding in findings if finding.what == "canaries")
    assert "TensorRT 10" in canaries.unmeasured
    for strict, code in ([], 0), (["--strict"], 1):
        with pytest.raises(SystemExit) as left:
            main(["check", str(with_engine), *strict])
        assert (left.value.code or 0) == code
    assert "not measured: a TensorRT engine needs" in capsys.readouterr().err


def test_an_engine_is_listed_with_its_certificate(with_engine):
    rows = {row[0]: row for row in list_artifacts(with_engine)}
    certificate = rows["amdim_tensorrt"][3]
    assert isinstance(certificate, Certificate)
    assert certificate.artifact_digest == artifact_digest(PLAN)


def test_another_engine_file_is_caught_without_tensorrt(with_engine):
    path = with_engine / "amdim_tensorrt/1/model.sm90.plan"
    path.write_bytes(PLAN + b"!")
    problems = {f.what: f.problem for f in check_repository(with_engine) if not f.holds}
    assert set(problems) == {"model.sm90.plan artifact_digest", "canaries"}
    assert "digest" in problems["canaries"]
    path.unlink()
    problems = {f.what: f.problem for f in check_repository(with_engine) if not f.holds}
    assert problems == {"model.sm90.plan": "the file is missing"}


@pytest.mark.skipif(not missing_for_tensorrt(), reason="here an engine can be built")
def test_building_names_everything_that_is_missing(make_checkpoint, tmp_path, capsys):
    options = ExportOptions(precision="fp16")
    with pytest.raises(EngineError, match=r"missing here: .*GPU"):
        export_tensorrt(make_checkpoint().path, tmp_path, options)
    with pytest.raises(SystemExit) as left:
        main(["export", str(make_checkpoint().path), "--target", "tensorrt", "--to", str(tmp_path)])
    assert left.value.code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for clause in missing_for_tensorrt():
        assert clause in said
    assert not list(tmp_path.iterdir())


def test_an_older_engine_reads_as_another(tmp_path):
    facts = dataclasses.replace(_facts(), tensorrt="10.0.1")
    (tmp_path / ENGINE_FILE).write_text(facts.to_json())
    with pytest.raises(EngineError, match=r"10\.0\.1"):
        read_engine_facts(tmp_path).require_machine(tensorrt="10.5.0", sm="9.0")
