"""What tests of every part share. Knows no part: a part's own fixtures are in its conftest."""

from __future__ import annotations

import os
from pathlib import Path

import grpc.aio
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _grpc_stays() -> None:
    """Keeps asyncio's gRPC from ending with the last of its objects.

    It would be ended, and its thread waited for, by whichever thread collects that object: after a
    test that failed half way, with calls open, for ever.
    """
    grpc.aio.init_grpc_aio()


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
