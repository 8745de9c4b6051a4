from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest


def make(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    outer = ("MAKEFLAGS", "MAKELEVEL", "PORT", "HOST", "ARGS", "PYTHON")
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=root,
        env={name: value for name, value in os.environ.items() if name not in outer},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_bare_make_lists_the_targets(repo_root: Path) -> None:
    shown = make(repo_root).stdout
    for target in ("serve", "test", "check", "fmt", "train", "export", "bench", "clean"):
        assert re.search(rf"make {target} +[A-Z]", shown), target


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        ([], "--host 127.0.0.1 --port 8000"),
        (["PORT=18431"], "--host 127.0.0.1 --port 18431"),
        (["HOST=0.0.0.0", "PORT=9000"], "--host 0.0.0.0 --port 9000"),
    ],
)
def test_serve_builds_its_environment_first(
    repo_root: Path, arguments: list[str], address: str
) -> None:
    build, run = make(repo_root, "--dry-run", "serve", *arguments).stdout.splitlines()
    assert build.endswith("build_env.sh serve")
    assert ".venv/serve/bin/amdim serve" in run
    assert address in run


def test_check_and_test_are_what_ci_runs(repo_root: Path) -> None:
    planned = make(repo_root, "--dry-run", "check", "test").stdout
    for tool in ("ruff format --check", "ruff check", "mypy --strict", "lint-imports", "pytest"):
        assert tool in planned
    assert planned.count("build_env.sh") == 1
    assert "make --no-print-directory check test" in (repo_root / ".ci" / "run").read_text()


@pytest.mark.parametrize(("target", "variable"), [("train", "CONFIG"), ("export", "CKPT")])
def test_what_a_target_needs_is_asked_for(repo_root: Path, target: str, variable: str) -> None:
    done = make(repo_root, target)
    assert done.returncode == 2
    assert f"usage: make {target} {variable}=" in done.stderr
