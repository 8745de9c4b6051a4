from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch

from amdim_export.artifact import build_artifact
from amdim_export.canaries import draw_canaries
from amdim_export.eager import reference_vectors
from amdim_export.graph import ServingGraph
from amdim_export.parity import agreement
from amdim_export.runtime import LEVELS, OnnxEncoder
from amdim_export.to_onnx import OPSET
from amdim_export.whitening import fit_recipe

SHAPES = [(32, 1, False), (32, 2, True), (64, 1, False), (64, 3, True), (128, 2, True)]


@pytest.mark.parametrize(("image_size", "depth", "batch_norm"), SHAPES)
def test_fused_graph_equals_the_encoder(make_checkpoint, image_size, depth, batch_norm):
    checkpoint = make_checkpoint(image_size, depth=depth, batch_norm=batch_norm)
    pixels = draw_canaries(image_size)
    expected = reference_vectors(checkpoint, None, pixels)
    graph = ServingGraph(checkpoint.encoder, checkpoint.normalization)
    with torch.inference_mode():
        given = dict(zip(graph.output_names, graph(torch.from_numpy(pixels)), strict=True))
    assert set(given) == {"global", "local5", "local7"}
    for name, value in expected.items():
        found = agreement(value, given[name].numpy())
        assert found.relative_error < 2e-6, name
        assert found.min_cosine > 0.9999999, name


@pytest.mark.parametrize("image_size", [32, 128])
def test_onnx_equals_the_encoder_at_every_batch_and_level(make_checkpoint, pictures, image_size):
    checkpoint = make_checkpoint(image_size, depth=2, batch_norm=True)
    recipe = fit_recipe(checkpoint, [pictures], components=12)
    artifact = build_artifact(checkpoint, recipe)
    pixels = draw_canaries(image_size)
    expected = reference_vectors(checkpoint, recipe.whitening, pixels)
    for level in LEVELS:
        run = OnnxEncoder(artifact.model, level=level)
        assert run.output_names == ("embedding", "global", "local5", "local7")
        for size in (1, 2, 7, 16):
            given = run(pixels[:size])
            for name, value in expected.items():
                found = agreement(value[:size], given[name])
                assert found.relative_error <= 1e-4, (level, size, name, found)
                assert found.min_cosine >= 0.999999, (level, size, name, found)


def test_graph_is_fused_and_casts_first(plain):
    model = onnx.load_from_string(plain[1].model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    operators = [node.op_type for node in model.graph.node]
    assert operators[:2] == ["Cast", "Transpose"]
    assert not {"BatchNormalization", "Pad", "Dropout", "Div", "Sub"} & set(operators)
    constants = {tensor.name for tensor in model.graph.initializer}
    joined = [name for node in model.graph.node if node.op_type == "Concat" for name in node.input]
    assert joined and not constants & set(joined)  # no zeros joined to a shortcut
    batch, *rest = model.graph.input[0].type.tensor_type.shape.dim
    assert batch.dim_param == "N"
    assert [size.dim_value for size in rest] == [64, 64, 3]


def test_file_tells_nothing_of_the_machine(plain):
    model = onnx.load_from_string(plain[1].model)
    assert model.producer_version.replace(".", "").isdigit()  # not which build of torch
    parts: list[Any] = [model, model.graph, *model.graph.node, *model.graph.initializer]
    for part in parts:
        assert not part.metadata_props
        assert not part.doc_string
    model.graph.ClearField("initializer")
    assert b".py" not in model.SerializeToString()


def test_half_width_storage_changes_the_file_and_not_the_rounded_graph(plain):
    checkpoint, whole = plain
    half = build_artifact(checkpoint, None, half=True)
    assert len(half.model) < 0.7 * len(whole.model)
    pixels = draw_canaries(64)
    with torch.inference_mode():
        expected = half.graph(torch.from_numpy(pixels))
    given = OnnxEncoder(half.model)(pixels)
    unrounded = OnnxEncoder(whole.model)(pixels)
    for name, value in zip(half.graph.output_names, expected, strict=True):
        assert agreement(value.numpy(), given[name]).relative_error <= 1e-5
        loss = agreement(unrounded[name], given[name])
        assert 0.0 < loss.relative_error < 5e-3
    kept = onnx.load_from_string(half.model).graph.initializer
    stem = next(tensor for tensor in kept if tensor.name.startswith("trunk.layers.0."))
    assert stem.data_type == onnx.TensorProto.FLOAT


def test_canaries_are_sixteen_different_pictures():
    pixels = draw_canaries(64)
    assert pixels.shape == (16, 64, 64, 3)
    assert pixels.dtype == np.uint8
    assert len({picture.tobytes() for picture in pixels}) == 16
    assert min(picture.std() for picture in pixels) > 5
    assert np.array_equal(pixels, draw_canaries(64))
