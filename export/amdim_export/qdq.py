"""How quantizers are written in ONNX: QuantizeLinear and DequantizeLinear, zero points 0.

Knows the two operators that `quantizers` adds to torch, and no encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnx import TensorProto, helper
from onnxscript import opset20

# Registers the operators that are translated here.
from amdim_export import quantizers as quantizers

op: Any = opset20  # its types are those of a script, not of what an exporter passes


def translations() -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """Returns what the exporter is to write for each of the quantizers' operators."""
    return {
        torch.ops.amdim.round_activation.default: _round_activation,
        torch.ops.amdim.restore_weight.default: _restore_weight,
    }


def _round_activation(x: Any, scale: float, unsigned: bool) -> Any:
    kind = TensorProto.UINT8 if unsigned else TensorProto.INT8
    step = op.Constant(value=helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]))
    zero = op.Constant(value=helper.make_tensor("zero", kind, [], [0]))
    return op.DequantizeLinear(op.QuantizeLinear(x, step, zero), step, zero)


def _restore_weight(weight: Any, scale: Any) -> Any:
    return op.DequantizeLinear(weight, scale, axis=0)
