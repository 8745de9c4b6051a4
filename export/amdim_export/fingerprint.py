"""The fingerprint of one artifact's bytes, whatever it holds. Knows no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path


def artifact_digest(artifact: bytes | Path) -> str:
    """Returns `sha256:<hex>` of a file's bytes."""
    data = artifact.read_bytes() if isinstance(artifact, Path) else artifact
    return "sha256:" + hashlib.sha256(data).hexdigest()
