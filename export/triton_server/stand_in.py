"""Triton's ONNX Runtime and OpenVINO backends, stood in for where the native ones are absent.

A Python-based backend under either name: runs `<version>/<default_model_filename>` with the same
library in process. Knows no encoder: names and shapes come from the configuration.
"""

import json
import os
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of one model."""

    def initialize(self, args):
        """Opens the version's file.

        Args:
            args: Triton's, all strings: the configuration as JSON, where the model lies, ...
        """
        config = json.loads(args["model_config"])
        place = Path(args["model_repository"]) / args["model_version"]
        opener = {"onnxruntime": _onnxruntime, "openvino": _openvino}[config["backend"]]
        self.run = opener(place, config.get("default_model_filename"))
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        self.joins = config["max_batch_size"] > 0

    def execute(self, requests):
        """Runs waiting requests as one batch where their shapes allow it."""
        fed = [
            {
                name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
                for name in self.inputs
            }
            for request in requests
        ]
        shapes = {tuple(one[name].shape[1:] for name in self.inputs) for one in fed}
        if len(requests) == 1 or not self.joins or len(shapes) > 1:
            return [
                self._answer(request, self._run(one))
                for request, one in zip(requests, fed, strict=True)
            ]
        joined = self._run(
            {name: np.concatenate([one[name] for one in fed]) for name in self.inputs}
        )
        answers, start = [], 0
        for request, one in zip(requests, fed, strict=True):
            end = start + len(one[self.inputs[0]])
            answers.append(self._answer(request, {k: v[start:end] for k, v in joined.items()}))
            start = end
        return answers

    def _run(self, feed):
        return dict(zip(self.outputs, self.run(self.outputs, feed), strict=True))

    def _answer(self, request, values):
        asked = request.requested_output_names()
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, values[name]) for name in asked])


def _onnxruntime(place, file_name):
    """Returns names of outputs and a feed -> values."""
    # read while it loads: without it ONNX Runtime (1.32) tells Microsoft how it is used
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort

    options = ort.SessionOptions()
    # spinning threads fight the server's own on few cores
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = str(place / (file_name or "model.onnx"))
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run


_CORES = []


def _openvino(place, file_name):
    """Returns names of outputs and a feed -> values; what is not quantized runs in float32."""
    import openvino

    path = str(place / (file_name or "model.xml"))  # the native backend's own default
    options = {"INFERENCE_PRECISION_HINT": openvino.Type.f32, "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    _CORES.append(core)  # one that is unloaded may take the thread's signal stack with it
    request = core.compile_model(path, "CPU", options).create_infer_request()

    def run(names, feed):
        request.infer(feed)
        return [request.get_tensor(name).data.copy() for name in names]

    return run
