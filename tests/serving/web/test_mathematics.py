"""The page's modules against NumPy, run in the browser."""

from __future__ import annotations

import numpy as np
import pytest

from amdim_clients.regions import square_around
from amdim_clients.searching import shrunk_mean

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def call(visitor):
    """Calls a function of one of the page's modules; arrays come back as lists."""
    page = visitor.open()

    def run(module, body, argument=None):
        source = f"async (given) => {{ const m = await import('/web/{module}.js'); {body} }}"
        return page.evaluate(source, argument)

    return run


def test_every_float16_has_numpys_value(call):
    values = call("codec", "return Array.from(m.halfValues, String)")
    expected = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float64)
    np.testing.assert_array_equal(np.array([float(value) for value in values]), expected)


def test_main_axes_are_those_of_the_singular_values(call):
    rng = np.random.default_rng(3)
    points = rng.standard_normal((60, 9)) * [7, 4, 1, 1, 1, 1, 1, 1, 1] + 3
    plane = call(
        "layout_math",
        "return Array.from(m.principalPlane(Float32Array.from(given), 60, 9))",
        points.ravel().tolist(),
    )
    left, sizes, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    for axis in (0, 1):
        expected = left[:, axis] * sizes[axis]
        found = np.array(plane).reshape(-1, 2)[:, axis]
        assert abs(np.corrcoef(found, expected)[0, 1]) > 0.9999


def test_settled_clusters_lie_apart(call):
    rng = np.random.default_rng(5)
    centres = np.repeat(rng.standard_normal((3, 16)), 20, axis=0)
    vectors = centres + 0.15 * rng.standard_normal(centres.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    body = """
      const matrix = Float32Array.from(given);
      const nearest = m.nearestRows(matrix, 60, 16, 6);
      let points;
      m.settle(m.principalPlane(matrix, 60, 16), nearest, 60, 6, (now) => (points = now.slice()));
      return [Array.from(nearest), Array.from(m.spread(points, 60))];
    """
    nearest, plane = call("layout_math", body, vectors.ravel().tolist())
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -2)
    np.testing.assert_array_equal(np.reshape(nearest, (60, 6)), np.argsort(-cosines)[:, :6])
    points = np.reshape(plane, (60, 2))
    assert np.abs(points).max() <= 1 + 1e-6
    gaps = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(gaps, np.inf)
    closest = gaps.argmin(axis=1)
    assert (closest // 20 == np.arange(60) // 20).mean() > 0.9


def test_best_window_and_its_box(call):
    rng = np.random.default_rng(9)
    grids = [rng.standard_normal((h, w, 8)).astype(np.float16) for h, w in ((1, 4), (5, 9))]
    query = rng.standard_normal(8).astype(np.float32)
    firsts = [([0, 0, 0.7, 1.0], [0.1, 0.0]), ([0, 0, 0.3, 0.4], [0.08, 0.15])]
    given = {
        "query": query.tolist(),
        "scales": [
            {"shape": grid.shape, "bits": grid.view(np.uint16).ravel().tolist(),
             "first_box": first, "step": step}
            for grid, (first, step) in zip(grids, firsts, strict=True)
        ],
    }  # fmt: skip
    body = """
      const scales = given.scales.map((s) => ({ ...s, data: Uint16Array.from(s.bits) }));
      return m.bestOf(scales, Float32Array.from(given.query));
    """
    found = call("region", body, given)
    scores = [(grid.astype(np.float32) @ query).max() for grid in grids]
    assert found["score"] == pytest.approx(max(scores), rel=1e-5)
    scale = int(np.argmax(scores))
    row, column = np.unravel_index(
        (grids[scale].astype(np.float32) @ query).argmax(), grids[scale].shape[:2]
    )
    first, (dx, dy) = firsts[scale]
    shift = np.array([dx * column, dy * row] * 2)
    np.testing.assert_allclose(found["box"], np.array(first) + shift, atol=1e-9)


@pytest.mark.parametrize(
    ("box", "size", "context", "square"),
    [
        ([0.25, 0.25, 0.75, 0.75], (100, 100), 1, [0.25, 0.25, 0.75, 0.75]),
        ([0.4, 0.0, 0.6, 1.0], (200, 100), 1, [0.25, 0.0, 0.75, 1.0]),
        ([0.0, 0.0, 0.1, 0.5], (200, 100), 1, [0.0, 0.0, 0.25, 0.5]),  # pushed back inside
        ([0.0, 0.0, 1.0, 0.5], (200, 100), 1, [0.0, 0.0, 1.0, 1.0]),  # as square as there is room
        ([0.4, 0.4, 0.6, 0.6], (100, 100), 1.5, [0.35, 0.35, 0.65, 0.65]),  # with what is around
    ],
)
def test_boxes_are_cut_out_square(call, box, size, context, square):
    body = "return m.squareAround(given.box, ...given.size, given.context)"
    given = {"box": box, "size": size, "context": context}
    assert call("boxes", body, given) == pytest.approx(square)
    width, height = size
    if context > 1:
        assert square_around(tuple(box), width, height, context=context) == pytest.approx(square)


def test_likeness_leaves_out_what_all_have_in_common(call):
    matrix = np.random.default_rng(3).normal(size=(40, 9)).astype(np.float32)
    matrix[:, 0] += 2
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    body = "return [...m.likeness(...given.map((v) => Float32Array.from(v)), 40)]"
    found = call("similarity", body, [matrix.ravel().tolist(), matrix[7].tolist()])
    rest = matrix - shrunk_mean(matrix, len(matrix))
    rest /= np.linalg.norm(rest, axis=1, keepdims=True)
    assert found == pytest.approx((rest @ rest[7]).tolist(), abs=1e-5)
    assert found[7] == pytest.approx(1, abs=1e-5)


def test_the_mean_of_unit_vectors_is_one(call):
    body = "return [...m.meanDirection(given.map((v) => Float32Array.from(v)))]"
    assert call("similarity", body, [[1, 0, 0], [0, 1, 0]]) == pytest.approx(
        [0.5**0.5, 0.5**0.5, 0]
    )
