from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from amdim_export.errors import ParityError
from amdim_export.parity import Tolerance, agreement, measure, neighbor_agreement, require

RNG = np.random.default_rng(0)


def _vectors(*shape: int) -> NDArray[np.float32]:
    return RNG.normal(size=shape).astype(np.float32)


def test_agreement_of_known_vectors():
    a = np.array([[3.0, 4.0], [1.0, 0.0]], np.float32)
    b = np.array([[3.0, 4.0], [0.0, 1.0]], np.float32)
    found = agreement(a, b)
    assert (found.max_abs_error, found.largest_value) == (1.0, 4.0)
    assert found.relative_error == 0.25
    assert found.min_cosine == 0.0
    assert found.mean_cosine == pytest.approx(0.5)


def test_maps_count_a_vector_per_location():
    a = _vectors(3, 5, 5, 8)
    b = a.copy()
    b[1, 2, 3] *= -1
    assert agreement(a, b).min_cosine == pytest.approx(-1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    a = _vectors(4, 8)
    b = a.copy()
    b[0, 0] = bad
    with pytest.raises(ParityError, match="finite"):
        agreement(a, b)


def test_neighbor_agreement():
    a = _vectors(40, 16)
    assert neighbor_agreement(a, a * np.float32(3.0)) == 1.0
    assert neighbor_agreement(a, _vectors(40, 16)) < 0.6
    assert neighbor_agreement(a[:1], a[:1]) == 1.0


def test_every_batch_size_is_run_and_every_picture_measured():
    pixels = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1)
    table = _vectors(20, 4)
    sizes: list[int] = []

    def encode(batch: np.ndarray) -> dict[str, np.ndarray]:
        sizes.append(len(batch))
        return {"global": table[batch[:, 0, 0, 0]]}

    found = measure(
        {"global": table}, encode, pixels, batches=(1, 2, 7, 32), default_output="global"
    )
    assert sizes == [1, 2, 7, 32, 20]
    assert found.outputs["global"].max_abs_error == 0.0
    assert (found.neighbor_agreement, found.images) == (1.0, 20)


def test_a_batch_size_that_goes_wrong_is_caught():
    pixels = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1)
    table = _vectors(20, 4)

    def encode(batch: np.ndarray) -> dict[str, np.ndarray]:
        wrong = 0.1 if len(batch) == 7 else 0.0
        return {"global": table[batch[:, 0, 0, 0]] + wrong}

    found = measure({"global": table}, encode, pixels, batches=(1, 7), default_output="global")
    with pytest.raises(ParityError, match="global differs by"):
        require(found.outputs, Tolerance())


def test_refusal_names_output_and_amount():
    a = np.ones((4, 64), np.float32)
    near = a + np.float32(5e-5)
    require({"local5": agreement(a, near)}, Tolerance())
    with pytest.raises(ParityError, match=r"local5 differs by 2\.0\de-04 of its largest value"):
        require({"local5": agreement(a, a + np.float32(2e-4) * _sign(64))}, Tolerance())
    turned = a + np.float32(9e-3) * _sign(64)
    with pytest.raises(ParityError, match="cosine"):
        require({"local5": agreement(a, turned)}, Tolerance(max_relative_error=1.0))


def test_a_missing_output_is_refused():
    pixels = np.zeros((2, 1, 1, 1), np.uint8)
    with pytest.raises(ParityError, match="no output global"):
        measure(
            {"global": _vectors(2, 4)},
            lambda batch: {},
            pixels,
            batches=(1,),
            default_output="global",
        )


def _sign(count: int) -> NDArray[np.float32]:
    return np.where(np.arange(count) % 2, 1, -1).astype(np.float32)
