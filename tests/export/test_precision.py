from __future__ import annotations

import dataclasses

import pytest

from amdim_export.certificate import read_certificate
from amdim_export.errors import ParityError
from amdim_export.openvino_precision import bf16_runs_here
from amdim_export.parity import Agreement, Parity, Tolerance
from amdim_export.precision import (
    TARGETS,
    CertifiedPrecision,
    canary_tolerance,
    parse_precision,
)


def _found(**changes) -> CertifiedPrecision:
    good = {"mean_cosine": 0.9996, "p1_cosine": 0.998, "min_cosine": 0.99}
    agreements = Agreement(0.1, 10.0, **{**good, **changes})
    parity = Parity({"embedding": agreements}, 0.98, 100, (1, 2))
    return CertifiedPrecision("bf16", "openvino", Tolerance(0.1, 0.9), parity, 2.0, "pictures")


def test_a_precision_that_reaches_its_targets_qualifies():
    found = _found()
    assert found.qualifies is True
    assert found.missed() == []
    found.require()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean_cosine": 0.9994}, "mean cosine of 0.9994, below 0.9995"),
        ({"p1_cosine": 0.9969}, "1st percentile of 0.9969, below 0.997"),
        ({"mean_cosine": float("nan")}, "mean cosine of nan"),
    ],
)
def test_a_missed_target_is_named(changes, words):
    found = _found(**changes)
    assert found.qualifies is False
    with pytest.raises(ParityError, match=words):
        found.require()


def test_neighbours_count_too():
    found = _found()
    assert found.parity is not None
    fewer = dataclasses.replace(found.parity, neighbor_agreement=0.9)
    found = dataclasses.replace(found, parity=fewer)
    assert found.qualifies is False
    assert "0.9000 of the nearest 10" in found.missed()[0]


def test_speed_is_asked_for_but_does_not_qualify():
    slow = dataclasses.replace(_found(), precision="int8", speedup=1.2)
    assert TARGETS["int8"].speedup == 3.0
    assert slow.qualifies is True
    with pytest.raises(ParityError, match=r"1\.20 times as fast as fp32, not 3"):
        slow.require()


def test_what_was_not_measured_neither_qualifies_nor_fails():
    unknown = CertifiedPrecision("bf16", "openvino", Tolerance(0.1, 0.9))
    assert unknown.qualifies is None
    unknown.require()
    assert parse_precision("bf16", unknown.to_json()) == unknown


def test_a_certificate_keeps_what_was_measured():
    assert parse_precision("bf16", _found().to_json()) == _found()
    with pytest.raises(ValueError, match="int3"):
        parse_precision("int3", _found().to_json())


def test_canaries_may_be_twice_as_far_off_elsewhere():
    tolerance = canary_tolerance({"a": Agreement(0.1, 10.0, 1.0, 1.0, 0.995)})
    assert tolerance.max_relative_error == pytest.approx(0.02)
    assert tolerance.min_cosine == pytest.approx(0.99)


def test_an_exported_encoder_says_what_bf16_costs_it(published):
    bf16 = read_certificate(published / "amdim/1/certificate.json").precisions["bf16"]
    assert bf16.engine == "openvino"
    assert bf16.tolerance.min_cosine <= 0.997
    if not bf16_runs_here():
        assert bf16.qualifies is None
        return
    assert bf16.parity is not None
    assert bf16.speedup is not None
    assert bf16.parity.images == 60
    assert 0.9 < bf16.parity.outputs["embedding"].mean_cosine < 1.0
    assert bf16.speedup > 0.0
