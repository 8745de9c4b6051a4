from __future__ import annotations

import subprocess
import sys

import pytest

import amdim_clients


def test_every_exported_name_loads():
    for name in amdim_clients.__all__:
        assert getattr(amdim_clients, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = amdim_clients.no_such_name


def test_importing_the_package_imports_nothing_heavy():
    program = (
        "import sys, amdim_clients, amdim_clients.errors; "
        "print(sorted({'numpy', 'PIL', 'httpx', 'tritonclient'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
