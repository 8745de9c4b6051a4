"""An exported file together with the graph it was made from, and how the two are compared.

Knows no certificate and no repository.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from amdim_export.eager import Vectors
from amdim_export.errors import GraphError, ParityError
from amdim_export.graph import ServingGraph, WindowsGraph
from amdim_export.parity import Tolerance, agreement, require
from amdim_export.runtime import LEVELS, OnnxEncoder
from amdim_export.storage import round_weights
from amdim_export.to_onnx import BF16_OPSET, OPSET, to_onnx
from amdim_export.whitening import SearchRecipe
from amdim_training.checkpoint import Checkpoint

_BATCH = 64
_COMPUTE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True, slots=True)
class Artifact:
    """An exported file and what it claims to compute.

    Attributes:
        model: The file's bytes.
        graph: What was exported, its weights rounded where the file's are.
        halves: Names of the weights stored as float16.
    """

    model: bytes
    graph: ServingGraph | WindowsGraph
    halves: frozenset[str]

    def run_graph(self, pixels: npt.NDArray[np.uint8]) -> Vectors:
        """Returns what PyTorch makes of the exported graph, (N, H, W, 3) -> by output name."""
        parts: dict[str, list[torch.Tensor]] = {}
        with torch.inference_mode():
            for start in range(0, len(pixels), _BATCH):
                outputs = self.graph(torch.from_numpy(pixels[start : start + _BATCH]))
                for name, value in zip(self.graph.output_names, outputs, strict=True):
                    parts.setdefault(name, []).append(value)
        return {name: torch.cat(values).contiguous().numpy() for name, values in parts.items()}


def build_artifact(
    checkpoint: Checkpoint,
    recipe: SearchRecipe | None,
    *,
    half: bool = False,
    precision: str = "fp32",
) -> Artifact:
    """Returns an encoder's ONNX file.

    Args:
        checkpoint: The trained encoder.
        recipe: Its search vector, where it has one.
        half: Store the weights as float16; the graph still computes in float32.
        precision: What all but the first layer and the search vector compute in.

    Raises:
        GraphError: The exported graph is not what it should be.
    """
    whitening = None if recipe is None else recipe.whitening
    compute = _COMPUTE[precision]
    graph = ServingGraph(checkpoint.encoder, checkpoint.normalization, whitening, compute=compute)
    opset = opset_for(precision)
    side = checkpoint.encoder.config.image_size
    return _export(graph, side, {0: "N"}, half=half, opset=opset)


def opset_for(precision: str) -> int:
    """Returns the opset of a graph that computes in `precision`."""
    return BF16_OPSET if precision == "bf16" else OPSET


def build_windows_artifact(
    checkpoint: Checkpoint, recipe: SearchRecipe, *, half: bool = False
) -> Artifact:
    """Returns the same encoder's ONNX file for every window of pictures of any size.

    Raises:
        GraphError: The encoder is for 128 px, whose borders are reflected.
    """
    side = checkpoint.encoder.config.image_size
    if side == 128:
        raise GraphError("the 128 px encoder reflects borders: its windows are not its crops")
    graph = WindowsGraph(checkpoint.encoder, checkpoint.normalization, recipe.whitening)
    return _export(graph, 2 * side, {0: "N", 1: "H", 2: "W"}, half=half)


def require_levels_agree(
    artifact: Artifact,
    pixels: npt.NDArray[np.uint8],
    expected: Mapping[str, npt.NDArray[np.float32]],
) -> None:
    """Runs a file at every optimisation level of ONNX Runtime, since a user may set any.

    Raises:
        ParityError: At some level the vectors are others.
    """
    for level in LEVELS[:-1]:  # the last is the one that is measured in full
        given = OnnxEncoder(artifact.model, level=level)(pixels)
        try:
            require(
                {name: agreement(value, given[name]) for name, value in expected.items()},
                Tolerance(),
            )
        except ParityError as error:
            raise ParityError(f"at optimisation level {level}: {error}") from error


def _export(
    graph: ServingGraph | WindowsGraph,
    side: int,
    dynamic: Mapping[int, str],
    *,
    half: bool,
    opset: int = OPSET,
) -> Artifact:
    halves = round_weights(graph) if half else frozenset[str]()
    # sides that differ, lest the exporter take them for one
    shape = (2, side, side if len(dynamic) == 1 else side + side // 2, 3)
    model = to_onnx(
        graph,
        torch.zeros(shape, dtype=torch.uint8),
        output_names=graph.output_names,
        dynamic=dynamic,
        halves=halves,
        opset=opset,
    )
    return Artifact(model, graph, halves)
