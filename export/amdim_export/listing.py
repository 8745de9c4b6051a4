"""What a repository holds: every version, served or retired, with its certificate. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from amdim_export.certificate import Certificate, read_certificate
from amdim_export.errors import CertificateError
from amdim_export.names import CERTIFICATE_FILE, MODEL_FILE
from amdim_export.repository import RETIRED, list_models, list_versions


def list_artifacts(repository: Path) -> Iterator[tuple[str, str, str, Certificate | str]]:
    """Yields model, version, state (`served`, `older`, `retired`) and certificate, or why none.

    Raises:
        RepositoryError: There is no such repository.
    """
    for folder in list_models(repository):
        versions = list_versions(folder)
        for version in versions:
            state = "served" if version == versions[-1] else "older"
            yield folder.name, str(version), state, _certificate(folder / str(version))
        for version in list_versions(folder / RETIRED):
            place = folder / RETIRED / str(version)
            yield folder.name, str(version), "retired", _certificate(place)


def _certificate(place: Path) -> Certificate | str:
    if not any((place / name).exists() for name in (MODEL_FILE, CERTIFICATE_FILE)):
        return "no vectors of its own"
    try:
        return read_certificate(place / CERTIFICATE_FILE)
    except CertificateError as error:
        return str(error)
