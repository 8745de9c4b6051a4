from __future__ import annotations

import subprocess
import sys

_ASK = """
import sys
import amdim_serving.engines.openvino
print([name for name in sys.modules if name.startswith("openvino_telemetry")])
import openvino_telemetry  # whoever wants it can still have it
"""


def test_the_engine_reports_to_nobody() -> None:
    ran = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")
