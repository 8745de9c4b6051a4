"""Triton's first step of `amdim_image`: encoded pictures in, the encoder's pixels out.

Published as a Python-backend model's `model.py`; needs `amdim_clients`, NumPy and Pillow beside
Triton's own module. All that decides a pixel is in `amdim_clients.images`; here is only Triton.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

from amdim_clients.errors import ImageError
from amdim_clients.images import Preprocess, decode_image


class TritonPythonModel:
    """Decodes every row of a request; one row that is no picture fails its request."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the encoder's sizes and refuses another definition of its pixels.

        Args:
            args: Triton's; `model_config` is the configuration as JSON.
        """
        values = {
            key.removeprefix("amdim."): value["string_value"]
            for key, value in json.loads(args["model_config"])["parameters"].items()
        }
        self._preprocess = Preprocess(int(values["image_size"]), int(values["resize"]))
        if self._preprocess.digest != values["preprocess_digest"]:
            raise pb_utils.TritonModelException(
                "the amdim_clients beside this Triton prepares pictures differently"
            )
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers each request with `pixels`, or with the first bad row's index and code."""
        return list(self._threads.map(self._answer, requests))

    def finalize(self) -> None:
        """Ends the decoding threads."""
        self._threads.shutdown()

    def _answer(self, request: Any) -> Any:
        rows = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
        pixels = []
        for index, data in enumerate(rows):
            try:
                pixels.append(decode_image(bytes(data), self._preprocess).pixels)
            except ImageError as error:
                message = f"{error.code}: image {index}: {error.message}"
                failure = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
                return pb_utils.InferenceResponse(error=failure)
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", np.stack(pixels))])
