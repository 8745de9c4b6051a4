from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch

from amdim_clients.images import Preprocess
from amdim_export.certifying_int8 import require_batches_agree
from amdim_export.errors import GraphError, ParityError
from amdim_export.finetune import FineTuning, distance, finetune
from amdim_export.graph import ServingGraph
from amdim_export.parity import agreement
from amdim_export.pictures import sample_pictures
from amdim_export.quantize import QuantizeOptions, export_graph, quantized_graph
from amdim_export.quantized_graph import Scheme, calibrate, quantized, shift_sums
from amdim_export.quantizers import ActivationQuantizer, QuantizedPool
from amdim_export.runtime import OnnxEncoder
from amdim_training.search_vector import search_widths
from amdim_training.whitening import Whitening

pytestmark = pytest.mark.slow


def _pixels(pictures, side: int) -> torch.Tensor:
    return torch.from_numpy(sample_pictures([pictures], Preprocess.for_image_size(side), limit=32))


def _graph(checkpoint) -> ServingGraph:
    width = sum(search_widths(checkpoint.encoder.config))
    generator = torch.Generator().manual_seed(5)
    projection = torch.randn(16, width, generator=generator) / width**0.5
    search = Whitening(torch.randn(width, generator=generator), projection.half().float())
    with torch.no_grad():
        return ServingGraph(checkpoint.encoder, checkpoint.normalization, search)


def _run(graph: ServingGraph, pixels: torch.Tensor) -> dict[str, np.ndarray]:
    with torch.no_grad():
        outputs = graph(pixels)
    return {n: value.numpy() for n, value in zip(graph.output_names, outputs, strict=True)}


@pytest.fixture(scope="module")
def pixels(pictures):
    return _pixels(pictures, 64)


@pytest.fixture(scope="module")
def graph(plain) -> ServingGraph:
    return _graph(plain[0])


@pytest.fixture(scope="module")
def exported(graph, pixels) -> dict[str, tuple[ServingGraph, bytes]]:
    """For each target the quantized graph and its file."""
    made = {}
    for target in ("openvino", "tensorrt"):
        options = QuantizeOptions(tuning=FineTuning(steps=0), target=target)
        student = quantized_graph(graph, pixels, options)
        made[target] = student, export_graph(student, 64)
    return made


@pytest.mark.parametrize(
    ("side", "depth", "batch_norm"), [(32, 1, False), (64, 2, True), (128, 1, True)]
)
def test_shifted_sums_are_positive_and_change_nothing(
    make_checkpoint, pictures, side, depth, batch_norm
):
    pixels = _pixels(pictures, side)[:8]
    graph = _graph(make_checkpoint(side, depth=depth, batch_norm=batch_norm))
    shifted = copy.deepcopy(graph)
    shift_sums(shifted, pixels)
    lowest = []
    for layer in list(shifted.trunk.layers)[1:-1]:
        layer.register_forward_hook(lambda _, __, out: lowest.append(float(out.min())))
    for name, value in _run(shifted, pixels).items():
        np.testing.assert_allclose(value, _run(graph, pixels)[name], atol=2e-4)
    assert min(lowest) > -1e-3


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
@pytest.mark.parametrize("level", ["disabled", "all"])
def test_the_file_computes_what_the_graph_does(exported, pixels, target, level):
    student, model = exported[target]
    given = OnnxEncoder(model, level=level)(pixels.numpy())
    for name, value in _run(student, pixels).items():
        found = agreement(value, given[name])
        assert found.mean_cosine > 0.9995, (name, found)


def test_a_part_may_stay_in_float(graph, pixels):
    options = QuantizeOptions(
        tuning=FineTuning(steps=0), keep_float=frozenset({"head7", "0", "1", "6"})
    )
    model = onnx.load_from_string(export_graph(quantized_graph(graph, pixels, options), 64))
    names = {tensor.name for tensor in model.graph.initializer}
    assert "trunk.head5.conv1.weight_int8" in names
    assert "trunk.head7.conv1.weight" in names
    assert "search.weight.fp16" in names  # as it was fitted; it stays in float
    assert {f"trunk.layers.{n}.conv1.weight" for n in (1, 6)} < names
    assert "trunk.layers.0.conv.weight" in names
    unknown = QuantizeOptions(keep_float=frozenset({"head9"}))
    with pytest.raises(GraphError, match="no part is called head9; there are head5, head7, 0, 1"):
        quantized_graph(graph, pixels, unknown)


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_rounding_costs_little_and_something(graph, exported, pixels, target):
    given = _run(exported[target][0], pixels)
    for name, value in _run(graph, pixels).items():
        found = agreement(value, given[name])
        assert 0.99 < found.mean_cosine < 0.999999, (name, found)


def test_the_file_is_symmetric_and_holds_int8_weights(exported):
    model = onnx.load_from_string(exported["openvino"][1])
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = [name for name in arrays if name.endswith("weight_int8")]
    # the stem, all units but the last, their pools (two are alike), what they widen by, the last
    # unit's first, heads, the layouts' pools
    assert len(weights) == 1 + 5 * 2 + 4 + 3 + 1 + 2 * 3 + 2
    assert all(arrays[name].dtype == np.int8 for name in weights)
    zeros = {
        bool(np.any(arrays[node.input[2]]))
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2
    }
    assert zeros == {False}


def test_pools_are_convolutions_for_cpus_and_pools_for_tensorrt(exported):
    pools = {
        target: sum(
            node.op_type == "AveragePool" for node in onnx.load_from_string(file).graph.node
        )
        for target, (_, file) in exported.items()
    }
    assert pools == {"openvino": 0, "tensorrt": 7}


@pytest.mark.parametrize(("side", "stride"), [(4, 2), (3, 1)])
def test_a_pool_in_int8_loses_nothing(side, stride):
    pool = QuantizedPool(5, side, stride)
    levels = torch.randint(0, 256, (2, 5, 14, 14), generator=torch.manual_seed(0)).float()
    expected = torch.nn.functional.avg_pool2d(levels, side, stride)
    assert torch.equal(pool(levels), expected)
    pool.freeze()
    torch.testing.assert_close(pool(levels), expected, rtol=1e-6, atol=0)


def test_for_tensorrt_nothing_is_unsigned(exported):
    model = onnx.load_from_string(exported["tensorrt"][1])
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert onnx.TensorProto.UINT8 not in kinds


def test_signed_int8_parses_without_a_warning_and_compiles(compile_for_tensorrt, exported):
    sizes = ("1x64x64x3", "4x64x64x3", "8x64x64x3")
    (said,) = compile_for_tensorrt({"int8.onnx": exported["tensorrt"][1]}, sizes).values()
    assert "refused" not in said, said
    assert said["notes"] == []


def test_fine_tuning_comes_nearer_and_is_the_same_again(graph, pixels):
    def tuned(steps: int) -> list[torch.Tensor]:
        shifted = copy.deepcopy(graph)
        shift_sums(shifted, pixels)
        student = quantized(shifted, Scheme())
        calibrate(student, pixels)
        for module in student.modules():
            if isinstance(module, ActivationQuantizer):
                module.log_scale.data -= 0.7  # ranges half as wide as they should be
        if steps:
            finetune(student, graph, pixels, FineTuning(steps, 8, 5e-3, seed=1))
        with torch.no_grad():
            return list(student(pixels))

    with torch.no_grad():
        wanted = graph(pixels)
    before, after, again = (tuned(steps) for steps in (0, 30, 30))
    assert distance(after, wanted) < 0.8 * distance(before, wanted)
    assert all(torch.equal(a, b) for a, b in zip(after, again, strict=True))


def test_openvino_computes_what_the_graph_does(exported, pixels):
    pytest.importorskip("openvino")
    from amdim_export.openvino_precision import opened

    student, model = exported["openvino"]
    with opened(model) as encode:
        given = encode(pixels.numpy())
        require_batches_agree(encode, pixels.numpy())
    for name, value in _run(student, pixels).items():
        found = agreement(value, given[name])
        assert found.mean_cosine > 0.9995, (name, found)


def test_an_engine_that_is_wrong_for_single_pictures_is_refused(pixels):
    def wrong(batch):
        flat = batch.reshape(len(batch), -1).astype(np.float32)
        return {"global": -flat if len(batch) == 1 else flat}

    with pytest.raises(ParityError, match=r"batch of 1 has cosine -1\.0000"):
        require_batches_agree(wrong, pixels.numpy())
