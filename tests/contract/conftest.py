from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable

import pytest

PACKAGES = ("amdim_clients", "amdim_serving", "amdim_training", "amdim_export")

_IMPORT_AND_LIST = """
import importlib, json, pkgutil, sys

for name in sys.argv[1:]:
    package, _, everything = name.partition(".*")
    module = importlib.import_module(package)
    if name.endswith(".*"):
        for found in pkgutil.walk_packages(module.__path__, package + "."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)
print(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture(scope="session")
def modules_after_import() -> Callable[..., frozenset[str]]:
    """Imports modules in a fresh interpreter; `package.*` is the package and all it holds.

    Returns the names of every module that is loaded then.
    """

    @functools.cache
    def load(*names: str) -> frozenset[str]:
        command = [sys.executable, "-W", "error", "-c", _IMPORT_AND_LIST, *names]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return frozenset(json.loads(done.stdout))

    return load


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest) -> str:
    name = request.param
    assert isinstance(name, str)
    return name
