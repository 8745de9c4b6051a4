"""Opens a model that a Triton server runs, and finds the certificate that speaks for it.

What Triton says of its model is a claim; the certificate is this side's own, out of the local
repository, and its canaries decide. Knows no HTTP and no batching.
"""

from __future__ import annotations

from pathlib import Path

from amdim_clients.contract import CERTIFICATE_FILE, Certificate, ModelSpec, read_certificate
from amdim_clients.errors import ContractError
from amdim_serving.engines.triton import open_triton_engine
from amdim_serving.engines.triton_link import TritonLink
from amdim_serving.engines.triton_target import TritonTarget
from amdim_serving.errors import StartError
from amdim_serving.opening import OpenModel


def open_remote_model(
    repository: Path, target: TritonTarget, *, precision: str | None = None, in_flight: int = 0
) -> OpenModel:
    """Connects to Triton and proves what it serves.

    Args:
        repository: The folder of models whose certificates may speak for what Triton serves.
        target: Which Triton and which model.
        precision: That Triton's artifact must have; any when not given.
        in_flight: Batches on their way at once; 0: enough that no instance waits for the wire.

    Raises:
        StartError: Triton does not answer, has no such model, or nothing here certifies it.
        CanaryError: What it serves does not reproduce its certificate.
    """
    link = TritonLink(target)
    found: list[Certificate] = []

    def find(spec: ModelSpec) -> Certificate:
        if precision not in (None, spec.precision):
            raise StartError(f"Triton serves {spec.name} at {spec.precision}, not at {precision}")
        found.append(find_certificate(repository, spec))
        return found[0]

    link.wait_until_ready()
    engine = open_triton_engine(link, find, calls=in_flight)
    return OpenModel(engine, found[0], engine.canary_cosine, link.config)


def find_certificate(repository: Path, spec: ModelSpec) -> Certificate:
    """Returns the certificate of the very artifact that a spec names, from any of the models here.

    Raises:
        StartError: There is none, or it does not cover the precision.
    """
    own = sorted(repository.glob(f"{spec.name}/*/{CERTIFICATE_FILE}"))
    others = sorted(set(repository.glob(f"*/*/{CERTIFICATE_FILE}")) - set(own))
    for path in (*own, *others):
        try:
            certificate = read_certificate(path)
        except ContractError:
            continue  # of another program, or half copied: it speaks for nothing
        wanted = (spec.artifact_digest, spec.encoder_digest, spec.preprocess_digest)
        digests = (
            certificate.artifact_digest,
            certificate.encoder_digest,
            certificate.preprocess_digest,
        )
        if digests == wanted:
            try:
                return certificate.at(spec.precision)
            except ContractError as error:
                raise StartError(str(error)) from error
    raise StartError(
        f"Triton serves {spec.name} version {spec.version} (artifact {spec.artifact_digest[:19]}…)"
        f" and {repository} holds no certificate of it: name the repository that Triton loads, "
        "or a copy of it, with --repository"
    )
