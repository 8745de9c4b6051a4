"""Each OpenVINO that is unloaded may leave a freed signal stack behind: none is made in passing."""

from __future__ import annotations

from pathlib import Path

ONES = {
    "export/amdim_export/openvino_runtime.py",
    "export/triton_server/stand_in.py",  # a process of its own
    "serving/amdim_serving/engines/silent_openvino.py",
}


def test_only_the_modules_that_keep_one_make_an_openvino(repo_root: Path) -> None:
    parts = ("benchmarks", "clients", "export", "serving", "training", "tests")
    files = [path for part in parts for path in (repo_root / part).rglob("*.py")]
    assert len(files) > 200
    made = {
        str(path.relative_to(repo_root))
        for path in files
        if path != Path(__file__) and "Core()" in path.read_text(encoding="utf-8")
    }
    assert made == ONES
