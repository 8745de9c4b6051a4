from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

SERVING_EXTRAS = ("serve", "cpu", "gpu", "client", "search")


@pytest.fixture(scope="module")
def wheel_names(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The paths inside a wheel built from the checkout."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=repo_root, check=True, capture_output=True, timeout=120)
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_the_wheel_holds_the_four_packages_and_nothing_else(wheel_names: list[str]) -> None:
    tops = {name.partition("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "amdim_training",
        "amdim_export",
        "amdim_serving",
        "amdim_clients",
    }
    assert any(name.endswith("licenses/LICENSE") for name in wheel_names)


def test_the_wheel_holds_the_whole_page(wheel_names: list[str], repo_root: Path) -> None:
    page = {path.name for path in (repo_root / "serving" / "amdim_serving" / "web").iterdir()}
    folder = "amdim_serving/web/"
    packed = {name.removeprefix(folder) for name in wheel_names if name.startswith(folder)}
    assert packed == page
    assert {"index.html", "main.js", "theme.css"} <= packed


def test_a_serving_install_asks_for_no_torch(repo_root: Path) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    serving = [*project["dependencies"], *(r for e in SERVING_EXTRAS for r in extras[e])]
    assert not [r for r in serving if re.match(r"(torch|onnx|onnxscript|safetensors)\b(?!-)", r)]


def test_pins_are_exact_and_come_from_no_machine(repo_root: Path) -> None:
    lines = (repo_root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) > 50
    for pin in pins:
        assert re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.]+", pin), pin
    names = [pin.partition("==")[0] for pin in pins]
    assert names == sorted(set(names))


def test_every_declared_requirement_is_pinned(repo_root: Path) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *(r for e in extras if e != "gpu" for r in extras[e])]
    text = (repo_root / "constraints.txt").read_text(encoding="utf-8")
    pinned = {line.partition("==")[0] for line in text.splitlines()}
    names = {re.split(r"[\[><=!~; ]", r)[0].replace("_", "-").lower() for r in declared}
    assert names - pinned == set()
