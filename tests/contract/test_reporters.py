"""ONNX Runtime tells Microsoft how it is used unless told not to before it loads."""

from __future__ import annotations

import re
from pathlib import Path

VARIABLE = 'os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")'
LOADERS = {
    "benchmarks/peers/encoding.py",
    "export/amdim_export/runtime.py",
    "export/triton_server/stand_in.py",
    "serving/amdim_serving/engines/silent_onnxruntime.py",
    "training/amdim_training/features.py",
}


def test_whatever_loads_onnx_runtime_silences_it_first(repo_root: Path) -> None:
    parts = ("benchmarks", "clients", "export", "serving", "training")
    loaders = {}
    for path in (file for part in parts for file in (repo_root / part).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if loads := re.search(r"^\s*(import|from) onnxruntime", text, re.MULTILINE):
            loaders[str(path.relative_to(repo_root))] = VARIABLE in text[: loads.start()]
    assert loaders == dict.fromkeys(LOADERS, True)
