from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Run as sitecustomize: the modules are not found, as where nothing installed them.
HIDE_MODULES = """
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec

def find_all_but_hidden(name, path=None, target=None):
    return None if name.partition(".")[0] in {roots!r} else find_spec(name, path, target)

PathFinder.find_spec = find_all_but_hidden
"""

PART = """
import os
import signal
import sys

class RefusedError(Exception):
    is_user_error = True
    exit_code = 3

def greet(name: str = "you") -> None:
    \"\"\"Greet someone.

    More than one line.
    \"\"\"
    print(f"hello {name}")

def refuse() -> None:
    raise RefusedError("the model is missing; export one first")

def crash() -> None:
    raise RuntimeError("a fault of ours")

def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)

def chatter() -> None:
    for _ in range(100_000):
        print("line after line")

def torchy() -> None:
    import torch

def undeclared() -> None:
    import no_such_module_anywhere
"""


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """An installed part that contributes commands, in a folder to put on PYTHONPATH."""
    (tmp_path / "greeting.py").write_text(PART)
    (tmp_path / "greeting_broken.py").write_text("raise ImportError('cannot load this part')")
    info = tmp_path / "greeting_part-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greeting-part\nVersion: 1.0\n")
    names = re.findall(r"^def (\w+)", PART, re.MULTILINE)
    lines = [f"{name} = greeting:{name}" for name in names] + ["broken = greeting_broken:run"]
    (info / "entry_points.txt").write_text("[amdim.commands]\n" + "\n".join(lines) + "\n")
    return tmp_path


def run(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, "-m", "amdim_clients.cli", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        # a shell's background jobs ignore Ctrl-C and hand that on to their children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def hide(folder: Path, *roots: str) -> None:
    (folder / "sitecustomize.py").write_text(HIDE_MODULES.format(roots=set(roots)))


def test_version_is_the_distributions() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, "amdim-embed 0.1.0\n")


def test_help_lists_every_contributed_command_with_one_line(part: Path) -> None:
    done = run("--help", path=part)
    assert done.returncode == 0
    for name in ("serve", "embed", "index", "search", "train", "evaluate", "export"):
        assert re.search(rf"\b{name} +\w", done.stdout), name
    assert "Greet someone." in done.stdout
    assert "More than one line" not in done.stdout
    assert "Broken: cannot load this part" in done.stdout


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from amdim_clients.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    heavy = ("torch", "numpy", "onnx", "onnxruntime", "fastapi", "lancedb", "pyarrow", "PIL")
    assert [name for name in heavy if f"'{name}'" in done.stderr] == []


def test_no_command_shows_the_help() -> None:
    assert "Usage: amdim" in "".join((done := run()).stdout + done.stderr)


def test_unknown_command_is_a_usage_error() -> None:
    done = run("serv")
    assert done.returncode == 2
    assert "No such command 'serv'" in done.stderr


def test_a_command_takes_its_options(part: Path) -> None:
    assert run("greet", "--name", "world", path=part).stdout == "hello world\n"


def test_only_the_command_asked_for_is_loaded(part: Path) -> None:
    (part / "greeting_broken.py").write_text("print('loaded')\nrun = lambda: None")
    assert run("greet", path=part).stdout == "hello you\n"


def test_user_error_is_one_sentence_with_its_exit_code(part: Path) -> None:
    done = run("refuse", path=part)
    assert done.returncode == 3
    assert done.stderr == "amdim: the model is missing; export one first\n"


def test_fault_of_ours_keeps_its_traceback(part: Path) -> None:
    done = run("crash", path=part)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RuntimeError: a fault of ours" in done.stderr


def test_part_that_cannot_be_loaded_fails_only_when_run(part: Path) -> None:
    done = run("broken", path=part)
    assert done.returncode == 1
    assert "cannot load this part" in done.stderr


def test_interrupt_exits_130(part: Path) -> None:
    done = run("interrupt", path=part)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_closed_pipe_ends_quietly(part: Path) -> None:
    command = f"{sys.executable} -m amdim_clients.cli chatter | head -n 1"
    environment = {**os.environ, "PYTHONPATH": str(part)}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert done.stdout == "line after line\n"
    assert done.stderr == ""


def test_module_of_no_extra_is_a_fault_of_ours(part: Path) -> None:
    done = run("undeclared", path=part)
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named 'no_such_module_anywhere'" in done.stderr


def test_missing_module_of_an_extra_prints_the_install_command(part: Path) -> None:
    hide(part, "torch")
    done = run("torchy", path=part)
    assert done.returncode == 1
    assert done.stderr == (
        "amdim: 'torchy' needs the Python module torch, which is not installed. "
        "Install it with: pip install 'amdim-embed[train]'\n"
    )


@pytest.mark.parametrize(
    ("arguments", "hidden", "extra"),
    [
        (["serve"], ["fastapi"], "serve"),
        (["serve"], ["fastapi", "onnxruntime"], "serve,cpu"),
        (["search", "--db", "no-such-index", "query.png"], ["lancedb", "pyarrow"], "search"),
        (["train", "no-such.toml"], ["torch"], "train"),
        (["evaluate", "no-such-checkpoint", "--data", "nowhere"], ["torch"], "train"),
        (["export", "no-such-checkpoint", "--to", "nowhere"], ["torch"], "export"),
    ],
)
def test_each_command_names_its_own_extra(
    tmp_path: Path, arguments: list[str], hidden: list[str], extra: str
) -> None:
    hide(tmp_path, *hidden)
    done = run(*arguments, path=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.endswith(f"Install it with: pip install 'amdim-embed[{extra}]'\n")
