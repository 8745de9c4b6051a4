"""Checks a repository against the checkpoint that it should be of: needs torch, unlike `check`.

Knows no printing.
"""

from __future__ import annotations

from pathlib import Path

from amdim_export.artifact_check import Finding
from amdim_export.certificate import Certificate, read_certificate
from amdim_export.check import amdim_parameters, read_config
from amdim_export.digests import encoder_digest
from amdim_export.eager import Vectors, reference_vectors
from amdim_export.errors import ParityError
from amdim_export.names import CERTIFICATE_FILE, CONFIG_FILE
from amdim_export.parity import Tolerance, agreement, require
from amdim_export.repository import list_models, list_versions
from amdim_export.whitening import SearchRecipe, load_recipe
from amdim_export.windows import trained_windows
from amdim_training.checkpoint import Checkpoint, load_checkpoint

ROUNDED = Tolerance(max_relative_error=2e-2, min_cosine=0.999)
"""Where weights are stored rounded, the canaries' vectors are the rounded encoder's."""


def check_against_checkpoint(repository: Path, checkpoint_path: Path) -> list[Finding]:
    """Runs the trained encoder on every newest artifact's canaries and compares digests.

    Raises:
        RepositoryError: There is no repository.
        CertificateError: A certificate cannot be read.
        TrainingError: The checkpoint cannot be read.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    recipe = load_recipe(checkpoint.path)
    digest = encoder_digest(checkpoint, recipe)
    findings = []
    for folder in list_models(repository):
        kind = amdim_parameters(read_config(folder / CONFIG_FILE)).get("kind", "encoder")
        versions = list_versions(folder)
        if kind in ("image", "preprocess") or not versions:
            continue
        certificate = read_certificate(folder / str(versions[-1]) / CERTIFICATE_FILE)
        problem = "" if certificate.encoder_digest == digest else f"the checkpoint's is {digest}"
        findings += [
            Finding(folder.name, versions[-1], "encoder_digest of the checkpoint", problem),
            _compare(folder.name, versions[-1], certificate, checkpoint, recipe),
        ]
    return findings


def _compare(
    model: str,
    version: int,
    certificate: Certificate,
    checkpoint: Checkpoint,
    recipe: SearchRecipe | None,
) -> Finding:
    what = "canaries against the checkpoint"
    certified = certificate.canaries.vectors
    try:
        trained = _vectors(certificate, checkpoint, recipe)
        missing = sorted(set(certified) - set(trained))
        if missing:
            return Finding(model, version, what, f"the checkpoint has no {missing[0]}")
        found = {name: agreement(trained[name], certified[name]) for name in certified}
        require(found, Tolerance() if certificate.weights_stored == "fp32" else ROUNDED)
    except ParityError as error:
        return Finding(model, version, what, str(error))
    return Finding(model, version, what, outputs=found)


def _vectors(
    certificate: Certificate, checkpoint: Checkpoint, recipe: SearchRecipe | None
) -> Vectors:
    pixels = certificate.canaries.pixels.copy()
    side = checkpoint.encoder.config.image_size
    if pixels.shape[1:3] == (side, side):
        return reference_vectors(checkpoint, None if recipe is None else recipe.whitening, pixels)
    if recipe is None or min(pixels.shape[1:3]) < side:
        return {}
    return trained_windows(checkpoint, recipe, pixels)
