"""What tests of every part share. Knows no part: a part's own fixtures are in its conftest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout's top folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real images and reference outputs beside the checkout.

    Absent, a test that needs it is skipped; in CI it fails, lest a green run prove nothing.
    """
    folder = ROOT.parent / "shared"
    if folder.is_dir():
        return folder
    missing = f"needs the shared data beside the checkout, at {folder}"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)
