from __future__ import annotations

import pytest

from amdim_clients.cli import main


def _run(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    code = left.value.code
    return (code if isinstance(code, int) else 0), said.out, said.err


def test_export_models_check_and_retire(capsys, make_checkpoint, pictures, tmp_path):
    checkpoint = make_checkpoint().path
    repository = tmp_path / "repository"
    command = ["export", checkpoint, "--to", repository, "--fit-on", pictures, "--weights", "fp16"]
    code, out, _ = _run(capsys, *command, "--embedding-dim", "8", "--max-batch-size", "4")
    assert code == 0
    for word in ("Certificate of amdim 1", "embedding", "min cosine", "sha256:", "published"):
        assert word in out

    code, out, _ = _run(capsys, "models", repository)
    assert code == 0
    assert "amdim 1" in out

    code, out, _ = _run(capsys, "check", repository)
    assert (code, "FAILS" in out) == (0, False)

    code, out, _ = _run(capsys, "check", repository, "--checkpoint", checkpoint)
    assert (code, "canaries against the" in out) == (0, True)
    code, _, err = _run(capsys, "check", repository, "--checkpoint", make_checkpoint(width=8).path)
    assert code == 1
    assert "encoder_digest of the checkpoint" in err

    code, _, err = _run(capsys, "retire", repository, "amdim", 1)
    assert (code, "only one" in err) == (1, True)

    model = repository / "amdim/1/model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\x00")
    code, _, err = _run(capsys, "check", repository)
    assert code == 1
    assert "amdim 1: model.onnx artifact_digest" in err


def test_errors_are_one_sentence(capsys, tmp_path, make_checkpoint):
    code, _, err = _run(capsys, "check", tmp_path / "nothing")
    assert (code, err.startswith("amdim: no model repository")) == (1, True)
    code, _, err = _run(capsys, "export", make_checkpoint().path, "--weights", "int3")
    assert code == 2
    assert "fp32 or fp16" in err
