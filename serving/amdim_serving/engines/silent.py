"""OpenVINO without its reporter: its Python package tells Google Analytics of each import.

Where the reporter is missing the package does without; so it is hidden while the package loads.
"""

from __future__ import annotations

import sys

_REPORTER = "openvino_telemetry"

_loaded = sys.modules.get(_REPORTER)
sys.modules[_REPORTER] = None  # type: ignore[assignment]  # an import of it fails
try:
    import openvino as openvino
finally:
    if _loaded is None:
        del sys.modules[_REPORTER]
    else:
        sys.modules[_REPORTER] = _loaded
