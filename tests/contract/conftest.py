from __future__ import annotations

import functools
import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

PACKAGES = ("amdim_clients", "amdim_serving", "amdim_training", "amdim_export")

# Imported only inside Triton, whose Python backend provides a module that no index has.
RUN_BY_TRITON = {"amdim_export.preprocess_model"}

_IMPORT_AND_LIST = """
import importlib, json, sys

for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture(scope="session")
def modules_after_import() -> Callable[..., frozenset[str]]:
    """Imports modules in a fresh interpreter; `package.*` is the package and all it holds.

    Returns the names of every module that is loaded then.
    """

    @functools.cache
    def load(*names: str) -> frozenset[str]:
        wanted = [each for name in names for each in _expand(name)]
        command = [sys.executable, "-W", "error", "-c", _IMPORT_AND_LIST, *wanted]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return frozenset(json.loads(done.stdout))

    return load


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest) -> str:
    name = request.param
    assert isinstance(name, str)
    return name


@pytest.fixture
def modules(package: str) -> list[ModuleType]:
    """Every module of the package, imported; the package itself first."""
    return [importlib.import_module(name) for name in _expand(f"{package}.*")]


def _expand(name: str) -> list[str]:
    package = name.removesuffix(".*")
    if package == name:
        return [name]
    top = importlib.import_module(package)
    found = [each.name for each in pkgutil.walk_packages(top.__path__, package + ".")]
    return [package, *(each for each in found if each not in RUN_BY_TRITON)]
