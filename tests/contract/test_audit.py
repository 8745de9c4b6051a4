from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

GOOD = {"name": "numpy", "version": "2.0", "vulns": []}
BAD = {"name": "old", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
UNKNOWN = {"name": "lost", "skip_reason": "not found"}


@pytest.fixture(scope="module")
def judge(repo_root: Path) -> Any:
    spec = importlib.util.spec_from_file_location("audit", repo_root / "scripts/audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.judge


@pytest.mark.parametrize("must_reach", [True, False])
def test_what_is_found_fails_everywhere(judge: Any, must_reach: bool) -> None:
    status, said = judge([GOOD, BAD, UNKNOWN], "", must_reach=must_reach)
    assert status == 1
    assert "old 1: PYSEC-1, fixed in 2" in said
    assert "lost not looked up: not found" in said
    assert "2 of 3" in said


@pytest.mark.parametrize(("entries", "problem"), [([], "no route"), ([UNKNOWN], "")])
def test_a_service_that_cannot_be_asked_is_never_silent(
    judge: Any, entries: list[Any], problem: str
) -> None:
    assert judge(entries, problem, must_reach=True)[0] == 1
    status, said = judge(entries, problem, must_reach=False)
    assert status == 0
    assert said.startswith("audit: NOT DONE")
    assert (problem or "not found") in said


def test_nothing_found_passes(judge: Any) -> None:
    assert judge([GOOD], "", must_reach=True) == (0, "audit: 1 of 1 pinned packages looked up")
