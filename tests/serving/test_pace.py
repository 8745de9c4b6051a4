from __future__ import annotations

import pytest

from amdim_serving.pace import Pace


def test_nothing_is_known_at_first_and_after_too_little_work() -> None:
    pace = Pace()
    assert pace.seconds_for(100) == 0
    pace.begin(0.0)
    pace.done(50, 0.5)
    assert pace.seconds_for(100) == 0


def test_the_pace_is_that_of_the_last_seconds_of_work() -> None:
    pace = Pace()
    pace.begin(0.0)
    for second in range(1, 21):
        pace.done(100 if second <= 10 else 10, float(second))
    assert pace.seconds_for(12) == pytest.approx(1, rel=0.01)  # six marks of 10 within 5 s


def test_the_pace_is_forgotten_when_the_load_ends() -> None:
    pace = Pace()
    pace.begin(0.0)
    pace.done(200, 2.0)
    assert pace.seconds_for(100) == pytest.approx(1)
    pace.pause()
    assert pace.seconds_for(100) == 0
    pace.begin(1000.0)
    pace.done(10, 1000.1)
    assert pace.seconds_for(100) == 0
