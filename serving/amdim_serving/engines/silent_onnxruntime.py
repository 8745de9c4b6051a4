"""ONNX Runtime, loaded without its reporter.

From 1.32 on it keeps a device id and a database of events in the user's cache folder, and sends
them to Microsoft, unless its environment says otherwise before it loads; asking it afterwards
(`disable_telemetry_events`) leaves the database and its thread. Who sets the variable decides.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as onnxruntime  # the variable is read while it loads
