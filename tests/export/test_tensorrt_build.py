from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from amdim_export.artifact import build_artifact, build_windows_artifact
from amdim_export.tensorrt_build import Profile, batch_profiles
from amdim_export.whitening import fit_recipe

ONE, FULL = "1x64x64x3", "16x64x64x3"


@pytest.fixture(scope="module")
def encoder(make_checkpoint, pictures):
    checkpoint = make_checkpoint(batch_norm=True)
    return checkpoint, fit_recipe(checkpoint, [pictures], components=12)


@pytest.fixture(scope="module")
def graphs(encoder) -> dict[str, bytes]:
    return {
        "stored-as-fp16.onnx": build_artifact(*encoder, half=True).model,
        "fp16.onnx": build_artifact(*encoder, precision="fp16").model,
        "bf16.onnx": build_artifact(*encoder, precision="bf16").model,
    }


def _graph(nodes, initializers, *, data_type=TensorProto.FLOAT) -> bytes:
    shape: list[str | int | None] = ["N", 64, 64, 3]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", data_type, shape)],
        [helper.make_tensor_value_info("out", data_type, None)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def _quantized(zero_point: int, kind: type) -> bytes:
    """A picture through one pair of Quantize and Dequantize."""
    numbers = [
        numpy_helper.from_array(np.array(0.5, np.float32), "scale"),
        numpy_helper.from_array(np.array(zero_point, kind), "zero"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("Relu", ["d"], ["out"]),
    ]
    return _graph(nodes, numbers)


def test_every_exported_graph_parses_without_a_warning_and_compiles(compile_for_tensorrt, graphs):
    said = compile_for_tensorrt(graphs, (ONE, ONE, ONE), (ONE, FULL, FULL))
    assert set(said) == set(graphs)
    for one in said.values():
        assert "refused" not in one, one
        assert one["notes"] == []
        assert one["inputs"] == {"images": [-1, 64, 64, 3]}
        assert one["outputs"] == {
            "embedding": [-1, 12],
            "global": [-1, 40],
            "local5": [-1, 5, 5, 40],
            "local7": [-1, 7, 7, 40],
        }
        assert one["engine_bytes"] > 10_000


def test_the_windows_graph_compiles_for_a_range_of_sizes(compile_for_tensorrt, encoder):
    files = {"windows.onnx": build_windows_artifact(*encoder).model}
    (one,) = compile_for_tensorrt(files, (ONE, "1x128x176x3", "4x192x256x3")).values()
    assert list(one["outputs"]) == ["windows"], one


def test_the_shipped_encoder_compiles(compile_for_tensorrt, repo_root):
    versions = [path for path in (repo_root / "model_repository/amdim").iterdir() if path.is_dir()]
    newest = max(versions, key=lambda path: int(path.name))
    files = {"shipped.onnx": (newest / "model.onnx").read_bytes()}
    (one,) = compile_for_tensorrt(files, (ONE, FULL, FULL)).values()
    assert list(one["outputs"]) == ["embedding", "global", "local5", "local7"], one


def test_a_parser_warning_is_a_failure(compile_for_tensorrt):
    said = compile_for_tensorrt(
        {
            "symmetric.onnx": _quantized(0, np.int8),
            "unsigned.onnx": _quantized(0, np.uint8),
            "asymmetric.onnx": _quantized(3, np.int8),
        },
        (ONE, ONE, FULL),
    )
    assert "refused" not in said["symmetric.onnx"]
    assert "warns" in said["unsigned.onnx"]["refused"]
    assert "asymmetric.onnx" in said and "refused" in said["asymmetric.onnx"]


def test_what_tensorrt_does_not_take_is_refused_with_its_words(compile_for_tensorrt):
    nodes = [helper.make_node("Transpose", ["images"], ["out"], perm=[0, 3, 1, 2])]
    said = compile_for_tensorrt(
        {
            "uint8.onnx": _graph(nodes, [], data_type=TensorProto.UINT8),
            "none.onnx": b"no graph at all",
        },
        (ONE, ONE, FULL),
    )
    assert "uint8" in said["uint8.onnx"]["refused"].lower()
    assert "cannot parse" in said["none.onnx"]["refused"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_narrow_graph_keeps_pixels_and_search_vector_wide(graphs, precision):
    model = onnx.load_from_string(graphs[f"{precision}.onnx"])
    narrow = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    stem = [kind for name, kind in kinds.items() if name.startswith("trunk.layers.0.")]
    assert set(stem) == {TensorProto.FLOAT}
    assert kinds["search.weight"] == TensorProto.FLOAT
    assert kinds["trunk.layers.1.conv1.weight"] == narrow
    assert kinds["trunk.head5.conv1.weight"] == narrow
    outputs = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    assert set(outputs.values()) == {TensorProto.FLOAT}


def test_profiles_cover_single_images_and_full_batches():
    one, full = (1, 64, 64, 3), (64, 64, 64, 3)
    assert batch_profiles(64, 64) == [Profile(one, one, one), Profile(one, full, full)]
    assert batch_profiles(64, 1) == [Profile(one, one, one)]
