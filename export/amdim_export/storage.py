"""Weights stored at half width: rounded in torch first, so that the graph can be certified.

Only the large convolutions are rounded. The stem holds pixel statistics (its weights are too
small for float16's range) and stays float32, as do all biases. The search vector's projection was
rounded when it was fitted; one that was not stays float32. Knows no checkpoint and no repository.
"""

from __future__ import annotations

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from amdim_export.errors import GraphError
from amdim_export.fusion import FusedStem

_SEARCH = "search"
"""What the modules of a graph that are the search vector's projection begin with."""


def round_weights(graph: nn.Module) -> frozenset[str]:
    """Rounds a graph's large weights to float16 in place and returns their names.

    Raises:
        GraphError: A weight is beyond float16's range.
    """
    kept = {id(stem.conv) for stem in graph.modules() if isinstance(stem, FusedStem)}
    names = set(float16_projections(graph))
    for name, module in graph.named_modules():
        if not isinstance(module, nn.Conv2d) or id(module) in kept or name.startswith(_SEARCH):
            continue
        rounded = module.weight.data.half()
        if not torch.isfinite(rounded).all():
            raise GraphError(f"{name}.weight is beyond the range of float16: use --weights fp32")
        module.weight.data = rounded.float()
        names.add(f"{name}.weight")
    return frozenset(names)


def float16_projections(graph: nn.Module) -> frozenset[str]:
    """Returns the names of a search vector's weights where all are float16 values already."""
    return frozenset(
        f"{name}.weight"
        for name, module in graph.named_modules()
        if name.startswith(_SEARCH)
        and isinstance(module, nn.Conv2d | nn.Linear)
        and torch.equal(module.weight.data.half().float(), module.weight.data)
    )


def store_as_float16(model: onnx.ModelProto, names: frozenset[str]) -> onnx.ModelProto:
    """Replaces initialisers by float16 ones and a Cast each, which runtimes fold at load.

    Args:
        model: Changed in place, and returned.
        names: Initialisers whose values are float16 values already.

    Raises:
        GraphError: A value would change, or a name is not an initialiser.
    """
    found = set()
    casts = []
    for tensor in model.graph.initializer:
        if tensor.name not in names:
            continue
        found.add(tensor.name)
        values = numpy_helper.to_array(tensor)
        halves = values.astype("float16")
        if (halves.astype("float32") != values).any():
            raise GraphError(f"{tensor.name} is not a float16 value and would change")
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(halves, f"{name}.fp16"))
        casts.append(
            helper.make_node("Cast", [f"{name}.fp16"], [name], f"{name}.cast", to=TensorProto.FLOAT)
        )
    missing = sorted(names - found)
    if missing:
        raise GraphError(f"the graph has no initialiser named {missing[0]}")
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
