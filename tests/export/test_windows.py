from __future__ import annotations

import importlib
import json
import sys

import numpy as np
import pytest

from amdim_clients.images import Preprocess
from amdim_export.artifact import build_windows_artifact
from amdim_export.canaries import draw_canaries
from amdim_export.check import check_repository, read_config
from amdim_export.errors import ExportError, GraphError, ParityError
from amdim_export.listing import list_artifacts
from amdim_export.parity import agreement
from amdim_export.pipeline import ExportOptions, export_encoder
from amdim_export.runtime import OnnxEncoder
from amdim_export.whitening import fit_recipe
from amdim_export.windows import certify_windows, trained_windows, window_crops


def test_crops_are_the_windows():
    pixels = draw_canaries(128)[:2, :80, :104]
    crops = window_crops(pixels, 64)
    assert crops.shape == (2, 3, 6, 64, 64, 3)
    assert np.array_equal(crops[1, 2, 4], pixels[1, 16:80, 32:96])


@pytest.mark.parametrize("image_size", [32, 64])
def test_one_pass_gives_every_crops_vector(make_checkpoint, pictures, image_size):
    checkpoint = make_checkpoint(image_size, depth=2, batch_norm=True)
    recipe = fit_recipe(checkpoint, [pictures], components=12)
    run = OnnxEncoder(build_windows_artifact(checkpoint, recipe).model)
    stride = image_size // 8
    for height, width in [(0, 0), (1, 0), (0, 5), (8, 3)]:
        size = image_size + height * stride, image_size + width * stride
        pixels = np.ascontiguousarray(draw_canaries(2 * image_size)[:5, : size[0], : size[1]])
        expected = trained_windows(checkpoint, recipe, pixels)["windows"]
        given = run(pixels)["windows"]
        assert given.shape == (5, height + 1, width + 1, 12)
        found = agreement(expected, given)
        assert found.relative_error <= 1e-4
        assert found.min_cosine >= 0.999999


def test_published_windows_hold_and_are_checked(make_checkpoint, pictures, tmp_path):
    checkpoint = make_checkpoint(width=8)
    options = ExportOptions(
        fit_on=(pictures,), weights="fp16", embedding_dim=8, image=True, windows=True
    )
    encoder, windows = export_encoder(checkpoint.path, tmp_path, options)
    assert windows.folder.parent.name == "amdim_windows"
    certificate = windows.certificate
    assert certificate.encoder_digest == encoder.certificate.encoder_digest
    assert certificate.preprocess_digest == Preprocess.for_image_size(64).digest
    assert certificate.canaries.pixels.shape == (16, 72, 80, 3)
    assert certificate.canaries.vectors["windows"].shape == (16, 2, 3, 8)
    assert certificate.storage_loss is not None
    config = read_config(tmp_path / "amdim_windows" / "config.pbtxt")
    assert list(config.input[0].dims) == [-1, -1, 3]
    assert list(config.output[0].dims) == [-1, -1, 8]
    assert config.max_batch_size == 4
    findings = check_repository(tmp_path)
    assert all(finding.holds for finding in findings), findings
    assert {finding.model for finding in findings} == {
        "amdim",
        "amdim_image",
        "amdim_preprocess",
        "amdim_windows",
    }
    notes = {row[0]: row[3] for row in list_artifacts(tmp_path)}
    assert notes["amdim_image"] == "no vectors of its own"
    text = (tmp_path / "amdim_preprocess/config.pbtxt").read_text()
    (tmp_path / "amdim_preprocess/config.pbtxt").write_text(text.replace('"70"', '"72"'))
    failed = [finding for finding in check_repository(tmp_path) if not finding.holds]
    assert [(finding.model, "resize" in finding.problem) for finding in failed] == [
        ("amdim_preprocess", True)
    ]


def test_windows_of_another_recipe_have_no_certificate(make_checkpoint, pictures):
    checkpoint = make_checkpoint()
    recipe = fit_recipe(checkpoint, [pictures], components=8)
    artifact = build_windows_artifact(checkpoint, recipe)
    recipe.whitening.mean[0] += 0.1
    with pytest.raises(ParityError, match="windows"):
        certify_windows(checkpoint, recipe, artifact)


def test_128_pixels_and_no_search_vector_are_refused(make_checkpoint, pictures, tmp_path):
    checkpoint = make_checkpoint(128)
    recipe = fit_recipe(checkpoint, [pictures], components=4)
    with pytest.raises(GraphError, match="128 px"):
        build_windows_artifact(checkpoint, recipe)
    with pytest.raises(ExportError, match="--fit-on"):
        export_encoder(make_checkpoint().path, tmp_path, ExportOptions(windows=True))
    assert not list(tmp_path.iterdir())


def test_the_benchmark_measures_what_was_published(
    make_checkpoint, pictures, tmp_path, repo_root, monkeypatch
):
    options = ExportOptions(fit_on=(pictures,), embedding_dim=8, windows=True, max_batch_size=2)
    export_encoder(make_checkpoint().path, tmp_path, options)
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    benchmark = importlib.import_module("windows")
    sys.modules.pop("windows")
    words = ["--repository", str(tmp_path), "--scales", "1", "2", "--shapes", "4:3"]
    benchmark.main([*words, "--seconds", "0.02", "--out", str(tmp_path / "found.json")])
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [(row["engine"], row["windows"]) for row in rows] == [
        ("onnxruntime", 4),
        ("onnxruntime", 9 * 14),
        ("openvino", 4),
        ("openvino", 9 * 14),
    ]
    assert all(min(row["dynamic"], row["fixed"], row["crops"]) > 0 for row in rows)
