from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ASK = """
import sys
import amdim_serving.engines.openvino
print([name for name in sys.modules if name.startswith("openvino_telemetry")])
import openvino_telemetry  # whoever wants it can still have it
"""


def test_the_engine_reports_to_nobody() -> None:
    ran = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")


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
