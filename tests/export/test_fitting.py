from __future__ import annotations

import shutil

import pytest
import torch

from amdim_export.digests import encoder_digest
from amdim_export.errors import ExportError
from amdim_export.fitting import fitted_recipe
from amdim_export.pictures import digest_of_sources
from amdim_export.whitening import EMBEDDING_FILE


@pytest.fixture
def notes() -> list[str]:
    return []


def test_the_same_pictures_keep_the_fit_wherever_they_lie(
    make_checkpoint, pictures, tmp_path, notes
):
    checkpoint = make_checkpoint()
    assert fitted_recipe(checkpoint, [], components=8, note=notes.append) is None
    first = fitted_recipe(checkpoint, [pictures], components=8, note=notes.append)
    place = checkpoint.path / EMBEDDING_FILE
    written = place.read_bytes()
    moved = shutil.copytree(pictures, tmp_path / "moved")
    again = fitted_recipe(checkpoint, [moved], components=8, note=notes.append)
    assert encoder_digest(checkpoint, again) == encoder_digest(checkpoint, first)
    assert place.read_bytes() == written
    assert encoder_digest(checkpoint, fitted_recipe(checkpoint, [], components=8)) == (
        encoder_digest(checkpoint, first)
    )
    assert "was fitted on 60 pictures" in notes[0]
    assert "fitted on these pictures before" in notes[1]


def test_other_pictures_another_size_and_refit_fit_anew_and_say_so(
    make_checkpoint, pictures, tmp_path, notes
):
    checkpoint = make_checkpoint()
    fitted_recipe(checkpoint, [pictures], components=8)
    before = (checkpoint.path / EMBEDDING_FILE).stat().st_mtime_ns
    fewer = shutil.copytree(pictures, tmp_path / "fewer")
    next(fewer.glob("*.png")).unlink()
    for sources, components, refit in (
        ([fewer], 8, False),
        ([pictures], 6, False),
        (
            [pictures],
            6,
            True,
        ),
    ):
        found = fitted_recipe(
            checkpoint, sources, components=components, refit=refit, note=notes.append
        )
        assert found is not None
        assert len(found.whitening.projection) == components
        after = (checkpoint.path / EMBEDDING_FILE).stat().st_mtime_ns
        assert after > before
        before = after
        assert "fitted anew" in notes[-1] and "indexes must be made again" in notes[-1]
    assert len(notes) == 3


def test_a_fit_of_other_weights_is_not_taken(make_checkpoint, pictures, notes):
    checkpoint = make_checkpoint()
    fitted_recipe(checkpoint, [pictures], components=8)
    with torch.no_grad():
        next(checkpoint.encoder.parameters()).mul_(1.5)
    with pytest.raises(ExportError, match="other weights: give --fit-on"):
        fitted_recipe(checkpoint, [], components=8)
    fitted_recipe(checkpoint, [pictures], components=8, note=notes.append)
    assert "fitted anew" in notes[0]


def test_sources_are_told_apart_by_what_they_hold(tmp_path):
    for name, content in ("a.png", b"1"), ("b.png", b"2"):
        (tmp_path / name).write_bytes(content)
    whole = digest_of_sources([tmp_path])
    (tmp_path / "notes.txt").write_text("no picture")
    assert digest_of_sources([tmp_path]) == whole
    (tmp_path / "b.png").write_bytes(b"3")
    assert digest_of_sources([tmp_path]) != whole
    with pytest.raises(ExportError):
        digest_of_sources([tmp_path / "none.parquet"])
