from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ASK = """
import sys
import amdim_serving.engines.openvino
print([name for name in sys.modules if name.startswith("openvino_telemetry")])
import openvino_telemetry  # whoever wants it can still have it
"""

_OPEN = {
    "serving": """
from amdim_clients.contract import read_model_spec
from amdim_serving.engines.onnxruntime import OnnxRuntimeEngine
spec = read_model_spec(folder, None)
engine = OnnxRuntimeEngine(folder / spec.version / "model.onnx", spec)
""",
    "export": """
from amdim_export.runtime import OnnxEncoder
engine = OnnxEncoder(folder / "1" / "model.onnx")
""",
    "training": """
from amdim_training.features import OnnxEncoder
engine = OnnxEncoder(folder / "1" / "model.onnx")
""",
}


def test_openvino_reports_to_nobody() -> None:
    ran = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")


@pytest.mark.parametrize("part", _OPEN)
def test_onnx_runtime_reports_to_nobody(part: str, repository: Path, tmp_path: Path) -> None:
    opening = f"import sys\nfrom pathlib import Path\nfolder = Path(sys.argv[1])\n{_OPEN[part]}"
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    ran = subprocess.run(
        [sys.executable, "-c", opening, str(repository / "amdim")],
        env=kept | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    # its reporter keeps a device id and a database of events in the user's cache
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name]


ENGINES_THEN_A_SIGNAL = """
import os, signal, sys
from pathlib import Path
from amdim_clients.contract import read_model_spec
from amdim_serving.engines.openvino import OpenVinoEngine

folder = Path(sys.argv[1]) / "amdim"
spec = read_model_spec(folder, None)
engines = [OpenVinoEngine(folder / spec.version / "model.onnx", spec, threads=1) for _ in range(3)]
while engines:
    engines.pop(0).close()  # the first that came goes first
kept = [os.urandom(12_000) for _ in range(2_000)]  # writes over what was freed
signal.signal(signal.SIGTERM, lambda *_: print("heard"))
os.kill(os.getpid(), signal.SIGTERM)
print("alive")
"""


def test_a_signal_is_heard_after_engines_have_come_and_gone(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENGINES_THEN_A_SIGNAL, str(repository)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "heard\nalive\n"), done.stderr
