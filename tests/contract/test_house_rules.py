"""Rules of CONTRIBUTING.md that no linter knows, read from the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FORBIDDEN_STEMS = {"utils", "util", "helpers", "helper", "common", "base", "manager", "handler"}
LONGEST_FILE = 350  # lines; 200 is the aim and 300 the alarm


@pytest.fixture(scope="module")
def sources(repo_root: Path) -> dict[str, str]:
    """The text of every packaged module, by its path below the checkout."""
    packages = (
        "training/amdim_training",
        "export/amdim_export",
        "serving/amdim_serving",
        "clients/amdim_clients",
    )
    paths = [path for package in packages for path in (repo_root / package).rglob("*.py")]
    assert len(paths) > 20
    return {str(path.relative_to(repo_root)): path.read_text("utf-8") for path in sorted(paths)}


def nodes(text: str) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(text))


def called(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def test_no_module_has_an_empty_name(sources: dict[str, str]) -> None:
    assert [path for path in sources if Path(path).stem in FORBIDDEN_STEMS] == []


def test_no_file_outgrows_a_reader(sources: dict[str, str]) -> None:
    long = {path: n for path, text in sources.items() if (n := text.count("\n")) > LONGEST_FILE}
    assert long == {}


def test_annotations_are_never_evaluated(sources: dict[str, str]) -> None:
    without = [
        path
        for path, text in sources.items()
        if "from __future__ import annotations" not in text and len(ast.parse(text).body) > 1
    ]
    assert without == []


def test_only_commands_print(sources: dict[str, str]) -> None:
    printing = {
        path for path, text in sources.items() if any(called(n) == "print" for n in nodes(text))
    }
    assert [
        path
        for path in printing
        if not (path.endswith(("/cli.py", "_command.py")) or "/commands/" in path)
    ] == []


def test_only_settings_read_the_environment(sources: dict[str, str]) -> None:
    silencing = 'os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")'  # see test_reporters.py
    reading = [
        path
        for path, text in sources.items()
        if any(
            isinstance(n, ast.Attribute) and ast.unparse(n) in ("os.environ", "os.getenv")
            for n in nodes(text.replace(silencing, "pass"))
        )
        and not path.endswith("/settings.py")
    ]
    assert reading == []


def test_torch_loads_weights_only(sources: dict[str, str]) -> None:
    for path, text in sources.items():
        for node in nodes(text):
            if isinstance(node, ast.Call) and called(node) == "torch.load":
                arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert arguments.get("weights_only") == "True", f"{path}:{node.lineno}"


def test_nothing_is_pickled(sources: dict[str, str]) -> None:
    found = [
        f"{path}: {name}"
        for path, text in sources.items()
        if path.startswith(("serving/", "clients/", "export/"))
        for node in nodes(text)
        for name in imported(node)
        if name.partition(".")[0] in ("pickle", "dill", "joblib", "marshal", "shelve")
    ]
    assert found == []


def test_tests_mock_nothing(repo_root: Path) -> None:
    found = [
        str(path.relative_to(repo_root))
        for path in (repo_root / "tests").rglob("*.py")
        for node in nodes(path.read_text("utf-8"))
        for name in imported(node)
        if name.startswith(("unittest.mock", "mock", "pytest_mock"))
    ]
    assert found == []


def test_test_folders_are_no_packages(repo_root: Path) -> None:
    assert list((repo_root / "tests").rglob("__init__.py")) == []
