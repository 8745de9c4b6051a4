"""Torch to one ONNX file: same graph, same bytes, checked before anyone measures it.

Knows no vectors: whether they are right is parity's question.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from amdim_export.errors import GraphError
from amdim_export.names import IMAGES
from amdim_export.storage import store_as_float16

OPSET = 20
"""The newest that Triton 24.10's ONNX Runtime and TensorRT 10's parser both read."""

BF16_OPSET = 22
"""The first whose convolutions take bfloat16; only TensorRT is given such a graph."""

SERVED_OPS = frozenset(
    {"Add", "AveragePool", "Cast", "Concat", "Conv", "Flatten", "Gemm", "Mul", "Pad"}
    | {"ReduceL2", "ReduceMean", "Relu", "Reshape", "Sqrt", "Sub", "Transpose"}
)
"""Every operator an exported encoder may hold: a batch norm or a dropout was not folded."""

QDQ_OPS = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""What a quantized one holds besides."""


def to_onnx(
    graph: nn.Module,
    example: Tensor,
    *,
    output_names: Sequence[str],
    dynamic: Mapping[int, str],
    halves: frozenset[str] = frozenset(),
    opset: int = OPSET,
    translations: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
) -> bytes:
    """Exports a module of one input, `images`, and returns the file's bytes.

    The same weights give the same bytes: nothing of the machine, its paths or the hour is kept.

    Args:
        graph: In evaluation mode.
        example: An input of at least 2 images.
        output_names: Names of what the module returns, in order.
        dynamic: Axes of `images` that may vary, with their names.
        halves: Weights to store as float16; see `storage.round_weights`.
        opset: The version of ONNX's operators.
        translations: What to write for a quantized graph's operators; see `qdq`.

    Raises:
        GraphError: The exporter left an operator or a shape that does not belong.
    """
    dims = {axis: torch.export.Dim(name, min=1) for axis, name in dynamic.items()}
    with _quiet():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=[IMAGES],
            output_names=list(output_names),
            dynamic_shapes={IMAGES: dims},
            custom_translation_table=dict(translations or {}),
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise GraphError("the exporter gave no graph")
    model = store_as_float16(_without_traces(program.model_proto), halves)
    _check(model, output_names, opset, SERVED_OPS | (QDQ_OPS if translations else frozenset()))
    return model.SerializeToString(deterministic=True)


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Removes source paths, stack traces and other notes that the exporter attaches."""
    graph = model.graph
    graph.name = "amdim"
    model.producer_version = model.producer_version.partition("+")[0]
    for holder in [model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info]:
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")
    for tensor in graph.initializer:
        tensor.ClearField("metadata_props")
        tensor.ClearField("doc_string")
    del graph.value_info[:]  # inferred again by whoever needs it
    ordered = sorted(graph.initializer, key=lambda tensor: tensor.name)
    del graph.initializer[:]
    graph.initializer.extend(ordered)
    return model


def _check(
    model: onnx.ModelProto, output_names: Sequence[str], opset: int, allowed: frozenset[str]
) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"the exported graph is not valid ONNX: {error}") from error
    if [(entry.domain, entry.version) for entry in model.opset_import] != [("", opset)]:
        raise GraphError(f"the exported graph is not of opset {opset} alone")
    unknown = {node.op_type for node in model.graph.node} - allowed
    if unknown:
        raise GraphError(f"unexpected operators in the exported graph: {sorted(unknown)}")
    if [value.name for value in inferred.graph.output] != list(output_names):
        raise GraphError("the exported graph's outputs have other names")
    nodes = [node for node in model.graph.node if not _is_storage(node)]
    first = nodes[0]
    if first.op_type != "Cast" or list(first.input) != [IMAGES]:
        raise GraphError("the exported graph does not begin by casting its images")


def _is_storage(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and node.input[0].endswith(".fp16")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what the exporter says of packages that this project does not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
