"""What made and measured an artifact: tools and machine, for its certificate."""

from __future__ import annotations

import datetime
import platform
from importlib import metadata
from pathlib import Path

from amdim_export.to_onnx import OPSET

_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")


def tool_versions() -> dict[str, str]:
    """Returns the versions that decide a file's bytes and its measured vectors."""
    return {"opset": str(OPSET), **{name: metadata.version(name) for name in _TOOLS}}


def machine() -> dict[str, str]:
    """Returns the processor and system, nothing that names the machine itself."""
    return {"cpu": _cpu_name(), "system": platform.system(), "arch": platform.machine()}


def now() -> str:
    """Returns the hour in UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
