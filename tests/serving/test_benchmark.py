from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
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


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--hollow"], ["--precision", "fp32", "--reload"]])
def test_a_soak_answers_everything_and_states_its_slope(
    repo_root: Path, repository: Path, tmp_path: Path, flags: list[str]
) -> None:
    out = tmp_path / "soak.json"
    command = [sys.executable, str(repo_root / "benchmarks" / "soak.py"), *flags]
    command += ["--repository", str(repository), "--photos", str(tmp_path / "none")]
    command += ["--seconds", "20", "--clients", "4", "--out", str(out)]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    report = json.loads(out.read_text())
    assert set(report["codes"]) <= {"200", "400", "422"} and report["images"] > 0
    assert report["readings"] >= 3 and np.isfinite(report["slope_mb_per_10000_images"])


@pytest.mark.slow
def test_workers_are_measured_with_all_their_memory(
    repo_root: Path, repository: Path, tmp_path: Path
) -> None:
    out = tmp_path / "workers.json"
    command = [sys.executable, str(repo_root / "benchmarks" / "workers.py")]
    command += ["--repository", str(repository), "--photos", str(tmp_path / "none")]
    command += ["--engine", "onnxruntime", "--precision", "fp32", "--clients", "4"]
    command += ["--seconds", "2", "--rounds", "1", "--out", str(out)]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    one, two = json.loads(out.read_text())["rows"]
    assert (one["workers"], two["workers"]) == (1, 2)
    assert two["processes"] >= one["processes"] + 2  # the workers, beside their parent
    for row in (one, two):
        assert row["errors"] == 0 and row["images_per_s"] > 0 and row["p99_ms"] >= row["p50_ms"]
        assert row["memory_mb"] > 20


def test_a_soak_finds_the_slope_past_the_warm_up(
    repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    import soak

    images = np.arange(0, 40_000, 400)
    noise = np.random.default_rng(0).normal(0, 0.5, len(images))
    rss = 200 + 40 * (1 - np.exp(-images / 2_000)) + 3 * images / 10_000 + noise
    rest = {"threads": 9.0, "files": 9.0}
    found = soak.judge(
        [{"images": float(at), "rss_mb": mb, **rest} for at, mb in zip(images, rss, strict=True)]
    )
    assert abs(found["slope_mb_per_10000_images"] - 3) < 3 * found["slope_standard_error"] < 1.5
    assert found["readings"] == 50
