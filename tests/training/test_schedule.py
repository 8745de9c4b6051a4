import pytest

from amdim_training.config import OptimConfig
from amdim_training.schedule import learning_rate


def test_warm_up_is_linear_and_reaches_the_base_rate() -> None:
    config = OptimConfig(learning_rate=2e-4, warmup_steps=500)
    rates = [learning_rate(config, step, 10**6, 10**6) for step in (0, 249, 499, 500)]
    assert rates == pytest.approx([2e-4 / 500, 1e-4, 2e-4, 2e-4])


def test_a_milestone_takes_effect_from_the_next_epoch_on() -> None:
    config = OptimConfig(warmup_steps=0, milestones=(2, 4), learning_rate=1.0)
    rates = [learning_rate(config, epoch * 10, 60, 10) for epoch in range(6)]
    assert rates == pytest.approx([1.0, 1.0, 1.0, 0.2, 0.2, 0.04])


def test_linear_stays_flat_and_then_falls_towards_zero() -> None:
    config = OptimConfig(warmup_steps=0, schedule="linear", decay_fraction=0.25, learning_rate=1.0)
    rates = [learning_rate(config, step, 100, 10) for step in (0, 74, 75, 87, 99)]
    assert rates == pytest.approx([1.0, 1.0, 1.0, 13 / 25, 1 / 25])


def test_constant_never_falls() -> None:
    config = OptimConfig(warmup_steps=0, schedule="constant", learning_rate=1.0)
    assert learning_rate(config, 99, 100, 1) == 1.0


def test_cosine_falls_from_the_end_of_the_warm_up_to_zero() -> None:
    config = OptimConfig(warmup_steps=20, schedule="cosine", learning_rate=1.0)
    rates = [learning_rate(config, step, 100, 10) for step in (0, 9, 19, 20, 60, 99)]
    assert rates == pytest.approx([0.05, 0.5, 1.0, 1.0, 0.5, 0.00038547], rel=1e-4)
    assert learning_rate(config, 100, 100, 10) == 0.0
