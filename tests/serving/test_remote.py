from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from amdim_clients.contract import read_model_spec
from amdim_serving.choosing import open_engine
from amdim_serving.errors import StartError
from amdim_serving.remote import find_certificate
from amdim_serving.settings import Settings, load_settings


def test_a_certificate_is_found_by_its_digests_under_any_name(
    repository: Path, tmp_path: Path
) -> None:
    spec = read_model_spec(repository / "amdim")
    assert find_certificate(repository, spec).artifact_digest == spec.artifact_digest
    shutil.copytree(repository / "amdim", tmp_path / "elsewhere")
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "certificate.json").write_text("{")
    assert find_certificate(tmp_path, spec).encoder_digest == spec.encoder_digest


@pytest.mark.parametrize("digest", ["artifact_digest", "encoder_digest", "preprocess_digest"])
def test_an_artifact_that_nothing_certifies_is_refused(repository: Path, digest: str) -> None:
    other: dict[str, Any] = {digest: "sha256:" + "0" * 64}
    spec = replace(read_model_spec(repository / "amdim"), **other)
    with pytest.raises(StartError, match="holds no certificate of it: name the repository"):
        find_certificate(repository, spec)


def test_a_precision_without_a_certificate_is_refused(repository: Path) -> None:
    spec = replace(read_model_spec(repository / "amdim"), precision="int8")
    with pytest.raises(StartError, match="certified for fp32"):
        find_certificate(repository, spec)


def test_how_triton_is_reached_comes_from_the_settings(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(b"pem")
    target = Settings(
        engine="triton",
        triton_url="gpu:8001",
        triton_ca_file=ca,
        triton_headers=SecretStr("Authorization=Bearer a=b, x-tenant=7"),
    ).triton("amdim")
    assert (target.address, target.tls, target.ca) == ("gpu:8001", True, b"pem")
    assert target.headers == (("authorization", "Bearer a=b"), ("x-tenant", "7"))
    assert "Bearer" not in repr(target)
    assert Settings(engine="triton").triton("amdim").address == "127.0.0.1:8101"
    with pytest.raises(StartError, match="name=value"):
        Settings(triton_headers=SecretStr("oops")).triton("amdim")
    with pytest.raises(StartError, match="--triton-ca-file"):
        Settings(triton_ca_file=tmp_path / "nothing").triton("amdim")
    with pytest.raises(StartError, match="for engine triton only"):
        load_settings(engine="openvino", triton_url="gpu:8001")


def test_a_triton_that_is_not_there_is_one_sentence(repository: Path) -> None:
    settings = Settings(
        model_repository=repository,
        engine="triton",
        triton_url="127.0.0.1:9",
        triton_connect_seconds=0.0,
    )
    with pytest.raises(StartError, match="Triton is unavailable"):
        open_engine(settings)
