from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType


def test_every_exported_member_exists(modules: list[ModuleType]) -> None:
    for module in modules:
        for name in getattr(module, "__all__", ()):
            assert getattr(module, name, None) is not None, f"{module.__name__}.{name}"


def test_an_exported_member_says_what_it_is(package: str) -> None:
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ()):
        member = getattr(module, name)
        if isinstance(member, type) or callable(member):
            assert member.__doc__, f"{package}.{name} has no docstring"


def test_a_name_that_is_not_exported_is_an_attribute_error(package: str) -> None:
    assert not hasattr(importlib.import_module(package), "no_such_name")


def test_every_module_says_why_it_exists(modules: list[ModuleType]) -> None:
    for module in modules:
        assert (module.__doc__ or "").strip(), module.__name__


def test_every_package_ships_its_types(package: str) -> None:
    (folder,) = importlib.import_module(package).__path__
    assert (Path(folder) / "py.typed").is_file()


def test_star_import_works(package: str) -> None:
    command = [sys.executable, "-W", "error", "-c", f"from {package} import *"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
