"""Measures a repository's artifacts again, on the machine at hand, against their certificates.

Needs no torch: canaries carry their own vectors. Knows no printing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from amdim_clients.images import PREPROCESS_VERSION, Preprocess
from amdim_export.artifact_check import Finding, check_artifact
from amdim_export.certificate import Certificate, read_certificate
from amdim_export.errors import ExportError, RepositoryError
from amdim_export.names import CERTIFICATE_FILE, CONFIG_FILE
from amdim_export.repository import list_models, list_versions

DIGESTS = ("encoder_digest", "preprocess_digest", "artifact_digest")


def check_repository(repository: Path) -> list[Finding]:
    """Checks every version of every encoder in a repository.

    Raises:
        RepositoryError: There is no repository, or no encoder in it.
    """
    findings: list[Finding] = []
    for folder in list_models(repository):
        findings += _check_model(folder)
    if not findings:
        raise RepositoryError(f"no exported encoder in {repository}")
    return findings


def read_config(path: Path) -> Any:
    """Returns a config.pbtxt as Triton's own message.

    Raises:
        RepositoryError: It cannot be read.
    """
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise RepositoryError(f"{path} is not a Triton configuration: {error}") from error


def amdim_parameters(config: Any) -> dict[str, str]:
    """Returns a configuration's `amdim.*` parameters without their prefix."""
    return {
        key.removeprefix("amdim."): value.string_value
        for key, value in config.parameters.items()
        if key.startswith("amdim.")
    }


def _check_model(folder: Path) -> Iterator[Finding]:
    versions = list_versions(folder)
    try:
        config = read_config(folder / CONFIG_FILE)
    except RepositoryError as error:
        yield Finding(folder.name, 0, CONFIG_FILE, str(error))
        return
    parameters = amdim_parameters(config)
    if "format" not in parameters:
        return  # not one of this project's models
    if not versions:
        yield Finding(folder.name, 0, CONFIG_FILE, "the model has no version")
        return
    if parameters.get("kind") in ("image", "preprocess"):
        yield _check_follower(folder, versions[-1], parameters)
        return
    if (folder.parent / parameters.get("encoder", "") / CONFIG_FILE).is_file():
        yield _check_follower(folder, versions[-1], parameters)
    for version in versions:
        place = folder / str(version)
        try:
            certificate = read_certificate(place / CERTIFICATE_FILE)
        except ExportError as error:
            yield Finding(folder.name, version, CERTIFICATE_FILE, str(error))
            continue
        # the model's configuration is the newest version's; older ones keep their own
        path = folder / CONFIG_FILE if version == versions[-1] else place / CONFIG_FILE
        yield from _check_config(folder.name, version, path, certificate)
        with contextlib.suppress(RepositoryError):  # told already
            yield from check_artifact(folder.name, place, read_config(path), certificate)


def _check_follower(folder: Path, version: int, parameters: Mapping[str, str]) -> Finding:
    """Checks that a model goes with the newest of the encoder that it names."""
    what = f"{CONFIG_FILE} against its encoder"
    try:
        path = folder.parent / parameters.get("encoder", "") / CONFIG_FILE
        encoder = amdim_parameters(read_config(path))
    except RepositoryError as error:
        return Finding(folder.name, version, what, str(error))
    shared = [*DIGESTS[:2], "image_size", "resize", "preprocess_version"]
    differing = [name for name in shared if parameters.get(name) != encoder.get(name)]
    problem = f"it was published for another {differing[0]}" if differing else ""
    return Finding(folder.name, version, what, problem)


def _check_config(
    model: str, version: int, path: Path, certificate: Certificate
) -> Iterator[Finding]:
    try:
        parameters = amdim_parameters(read_config(path))
    except RepositoryError as error:
        yield Finding(model, version, CONFIG_FILE, str(error))
        return
    for name in DIGESTS:
        said, certified = parameters.get(name, "nothing"), getattr(certificate, name)
        problem = f"the configuration says {said}, the certificate {certified}"
        yield Finding(model, version, f"{CONFIG_FILE} {name}", "" if said == certified else problem)
    yield Finding(model, version, "preprocessing", _preprocess_problem(parameters, certificate))


def _preprocess_problem(parameters: Mapping[str, str], certificate: Certificate) -> str:
    if parameters.get("preprocess_version") != str(PREPROCESS_VERSION):
        return f"preprocess_version is not {PREPROCESS_VERSION}, the only one this program knows"
    try:
        size, resize = int(parameters["image_size"]), int(parameters["resize"])
        digest = Preprocess(size, resize).digest
    except KeyError as error:
        return f"the configuration has no amdim.{error.args[0]}"
    except Exception as error:  # the clients' error tree is not ours to import
        return f"the configuration's sizes are unusable: {error}"
    if digest != certificate.preprocess_digest:
        return f"resize {resize} to {size} pixels is not what the encoder was certified with"
    return ""
