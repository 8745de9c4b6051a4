from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

# Stands in for an interpreter: notes what it is asked for, and makes environments of itself.
FAKE_PYTHON = """\
#!/usr/bin/env bash
echo "$*" >>"$FAKE_LOG"
case "$*" in
*version_info*) exit "${FAKE_TOO_OLD:-0}" ;;
*ensurepip*) exit "${FAKE_NO_VENV:-0}" ;;
--version) echo "Python 3.9.1" ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip "*editable*)
    [[ -z ${FAKE_KILLED:-} ]] || { kill -KILL "$PPID"; sleep 1; }
    exit "${FAKE_PIP_STATUS:-0}" ;;
esac
"""


class Checkout:
    """A copy of what builds an environment, with a stand-in interpreter."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.folder = folder
        self.log = folder / "calls.log"
        shutil.copytree(source / "scripts", folder / "scripts")
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(source / name, folder / name)
        self.python = folder / "fake-python"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)

    def build(self, name: str = "serve", **environment: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        return subprocess.run(
            ["bash", str(self.folder / "scripts" / "build_env.sh"), name],
            env={
                **os.environ,
                "FAKE_LOG": str(self.log),
                "PYTHON": str(self.python),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def made_an_environment(self) -> bool:
        return "-m venv " in self.log.read_text()

    @property
    def installed(self) -> bool:
        return "--editable" in self.log.read_text()


@pytest.fixture
def checkout(tmp_path: Path, repo_root: Path) -> Checkout:
    return Checkout(tmp_path, repo_root)


def test_builds_once_and_then_does_nothing(checkout: Checkout) -> None:
    first = checkout.build()
    assert first.returncode == 0, first.stderr
    assert checkout.made_an_environment
    assert checkout.installed

    assert checkout.build().returncode == 0
    assert checkout.log.read_text() == ""


def test_changed_pins_are_installed_in_place(checkout: Checkout) -> None:
    checkout.build()
    with (checkout.folder / "constraints.txt").open("a") as file:
        file.write("another-package==1.0\n")

    assert checkout.build().returncode == 0
    assert checkout.installed
    assert not checkout.made_an_environment


def test_moved_checkout_is_installed_again(checkout: Checkout, tmp_path: Path) -> None:
    checkout.build()
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    shutil.copytree(tmp_path, moved)
    checkout.folder = moved

    assert checkout.build().returncode == 0
    assert checkout.installed


def test_killed_build_is_repaired_from_the_start(checkout: Checkout) -> None:
    assert checkout.build(FAKE_KILLED="1").returncode != 0
    leftover = checkout.folder / ".venv" / "serve" / "half-written"
    leftover.write_text("")

    done = checkout.build()
    assert done.returncode == 0, done.stderr
    assert "cut short" in done.stdout
    assert not leftover.exists()
    assert checkout.made_an_environment


def test_failed_first_build_is_repaired_from_the_start(checkout: Checkout) -> None:
    assert checkout.build(FAKE_PIP_STATUS="1").returncode == 1
    assert checkout.build().returncode == 0
    assert checkout.made_an_environment


def test_failed_update_keeps_the_environment_and_is_tried_again(checkout: Checkout) -> None:
    checkout.build()
    (checkout.folder / "pyproject.toml").write_text("changed")
    assert checkout.build(FAKE_PIP_STATUS="1").returncode == 1

    assert checkout.build().returncode == 0
    assert checkout.installed
    assert not checkout.made_an_environment


def test_build_in_progress_is_left_alone(checkout: Checkout) -> None:
    (checkout.folder / ".venv").mkdir()
    (checkout.folder / ".venv" / "serve.building").write_text(str(os.getpid()))
    done = checkout.build()
    assert done.returncode == 1
    assert f"is being built by process {os.getpid()}" in done.stderr
    assert not checkout.made_an_environment


def test_old_python_is_refused_with_a_sentence(checkout: Checkout) -> None:
    done = checkout.build(FAKE_TOO_OLD="1")
    assert done.returncode == 1
    assert "is Python 3.9.1; Python 3.11 or newer is needed" in done.stderr


def test_python_without_venv_is_refused_with_a_sentence(checkout: Checkout) -> None:
    done = checkout.build(FAKE_NO_VENV="1")
    assert done.returncode == 1
    assert "python3-venv" in done.stderr


def test_missing_python_is_refused_with_a_sentence(checkout: Checkout) -> None:
    done = checkout.build(PYTHON="no-such-python")
    assert done.returncode == 1
    assert "PYTHON=no-such-python is not a program" in done.stderr


def test_unknown_environment_is_a_usage_error(checkout: Checkout) -> None:
    assert checkout.build("production").returncode == 2


def test_serving_environment_never_asks_for_torch(checkout: Checkout) -> None:
    checkout.build("serve")
    assert "torch" not in checkout.log.read_text()
    assert "[serve,cpu,openvino,client,search]" in checkout.log.read_text()
