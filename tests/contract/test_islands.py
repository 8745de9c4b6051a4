from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

Load = Callable[..., frozenset[str]]

TORCH_ISLAND = {"torch", "onnx", "onnxscript", "amdim_training", "amdim_export"}
SERVER = {"amdim_serving", "fastapi", "starlette", "uvicorn"}


def roots(modules: frozenset[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_the_app_leaves_torch_out(modules_after_import: Load) -> None:
    loaded = roots(modules_after_import("amdim_serving.app"))
    assert "amdim_serving" in loaded
    assert loaded & TORCH_ISLAND == set()


@pytest.mark.parametrize("island", ["amdim_serving.*", "amdim_clients.*"])
def test_no_module_of_serving_or_clients_imports_the_torch_island(
    modules_after_import: Load, island: str
) -> None:
    assert roots(modules_after_import(island)) & TORCH_ISLAND == set()


def test_no_module_of_the_clients_imports_the_server(modules_after_import: Load) -> None:
    assert roots(modules_after_import("amdim_clients.*")) & SERVER == set()


@pytest.mark.parametrize("island", ["amdim_training.*", "amdim_export.*"])
def test_training_and_export_take_only_the_image_definition(
    modules_after_import: Load, island: str
) -> None:
    allowed = {name for name in modules_after_import("amdim_clients.images") if _is_clients(name)}
    loaded = {name for name in modules_after_import(island) if _is_clients(name)}
    assert loaded <= allowed


@pytest.mark.parametrize("island", ["amdim_training.*", "amdim_export.*"])
def test_training_and_export_never_import_the_server(
    modules_after_import: Load, island: str
) -> None:
    assert roots(modules_after_import(island)) & SERVER == set()


def test_training_never_imports_export(modules_after_import: Load) -> None:
    assert "amdim_export" not in roots(modules_after_import("amdim_training.*"))


def test_a_package_alone_loads_nothing_heavy(modules_after_import: Load, package: str) -> None:
    heavy = {"numpy", "PIL", "torch", "onnx", "fastapi", "pyarrow", "lancedb", "httpx"}
    assert roots(modules_after_import(package)) & heavy == set()


def test_the_image_definition_needs_only_numpy_and_pillow(modules_after_import: Load) -> None:
    before = roots(modules_after_import("numpy", "PIL.Image", "PIL.ImageCms", "PIL.ImageOps"))
    added = roots(modules_after_import("amdim_clients.images")) - before
    third_party = {name for name in added if not _is_standard(name)}
    assert third_party == {"amdim_clients"}


def _is_clients(name: str) -> bool:
    return name.partition(".")[0] == "amdim_clients"


def _is_standard(name: str) -> bool:
    return name in sys.stdlib_module_names or name.startswith("_")
