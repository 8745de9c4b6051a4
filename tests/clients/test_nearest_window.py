from __future__ import annotations

import numpy as np
import pytest

from amdim_clients.errors import ContractError
from amdim_clients.matching import nearest_window
from amdim_clients.windows import plan_grid


def test_the_nearest_window_of_all_scales_is_found() -> None:
    rng = np.random.default_rng(0)
    grids = [plan_grid(120, 90, scale, 32) for scale in (1, 2)]
    windows = [(grid, rng.standard_normal((grid.rows, grid.columns, 6))) for grid in grids]
    query = windows[1][1][3, 4] * 7.0
    found = nearest_window(query, windows)
    assert found.cosine == pytest.approx(1.0) and found.scale == 2.0
    assert found.box == grids[1].box(3, 4)
    with pytest.raises(ContractError):
        nearest_window(query, [])
