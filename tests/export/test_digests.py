from __future__ import annotations

import dataclasses

import torch

from amdim_export.digests import encoder_digest
from amdim_export.fingerprint import artifact_digest
from amdim_export.whitening import fit_recipe


def test_digest_is_of_all_that_decides_a_vector(make_checkpoint, pictures):
    checkpoint = make_checkpoint(batch_norm=True)
    plain = encoder_digest(checkpoint, None)
    assert plain == encoder_digest(checkpoint, None)
    assert plain.startswith("sha256:") and len(plain) == 71

    recipe = fit_recipe(checkpoint, [pictures], components=8)
    with_search = encoder_digest(checkpoint, recipe)
    assert with_search != plain
    recipe.whitening.mean[0] += 1e-3
    assert encoder_digest(checkpoint, recipe) != with_search

    darker = dataclasses.replace(checkpoint.normalization, mean=(0.4, 0.42, 0.39))
    assert encoder_digest(dataclasses.replace(checkpoint, normalization=darker), None) != plain

    with torch.no_grad():
        next(checkpoint.encoder.parameters()).flatten()[0] += 1e-6
    assert encoder_digest(checkpoint, None) != plain


def test_update_counters_do_not_count(make_checkpoint):
    checkpoint = make_checkpoint(batch_norm=True)
    before = encoder_digest(checkpoint, None)
    for name, buffer in checkpoint.encoder.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer += 5
    assert encoder_digest(checkpoint, None) == before


def test_artifact_digest_is_sha256_of_the_bytes(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    known = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert artifact_digest(path) == artifact_digest(b"abc") == known
