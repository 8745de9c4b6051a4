"""OpenVINO, loaded once and without its reporter.

Its Python package tells Google Analytics of each import. Where the reporter is missing the
package does without; so it is hidden while the package loads.
"""

from __future__ import annotations

import functools
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


@functools.cache
def core() -> openvino.Core:
    """Returns this process's one OpenVINO, which is never unloaded.

    Each that is loaded puts a signal stack of its own in place of the thread's, and puts back what
    it found when it goes: of two that go in the order they came, the second puts back freed
    memory, and the next signal ends the process (seen with OpenVINO 2026.4).
    """
    return openvino.Core()
