from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_benchmark_runs_and_keeps_its_numbers(
    repo_root: Path, repository: Path, tmp_path: Path
) -> None:
    out = tmp_path / "gateway.json"
    command = [sys.executable, str(repo_root / "benchmarks" / "gateway.py")]
    command += ["--repository", str(repository), "--photos", str(tmp_path / "none")]
    command += ["--seconds", "1", "--clients", "1", "4", "--out", str(out)]
    command += ["--only", "onnxruntime/fp32"]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    report = json.loads(out.read_text())
    (engine,) = report["engines"]
    assert [run["clients"] for run in engine["runs"]] == [1, 4]
    assert all(run["errors"] == 0 and run["requests"] > 0 for run in engine["runs"])
    assert report["gateway_own_cpu_ms"] > 0
    if "arrivals" not in report:  # without a C compiler the report says so
        twice = report["overload_at_twice"]
        assert twice["failed"] == twice["unanswered"] == twice["refused_without_retry_after"] == 0
        assert twice["good"] + twice["refused"] == twice["sent"]
