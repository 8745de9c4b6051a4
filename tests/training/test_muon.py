"""Muon: steps are orthogonal, the rest is Adam, and its state goes on from a file exactly."""

from __future__ import annotations

import pytest
import torch

from amdim_training.config import EncoderConfig, OptimConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import ConfigError
from amdim_training.muon import Muon, is_matrix, orthogonalized
from amdim_training.optimizer import (
    make_adam,
    make_optimizer,
    match_layout,
    optimizer_tensors,
    restore_optimizer,
)

MUON = OptimConfig(optimizer="muon", learning_rate=1e-2)


def _encoder(seed: int = 0) -> AmdimEncoder:
    torch.manual_seed(seed)
    return AmdimEncoder(EncoderConfig(image_size=32, width=32, embed_dim=128, depth=1))


def _give_gradients(encoder: AmdimEncoder, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in encoder.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.grad = torch.empty_like(parameter).copy_(drawn)  # laid out as autograd does


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (48, 200), (200, 48)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_singular_values_come_close_to_one(rows: int, columns: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    matrices = scale * torch.randn(3, rows, columns, generator=generator)

    values = torch.linalg.svdvals(orthogonalized(matrices).float())

    # almost all: the iteration leaves what was smallest behind
    assert values.quantile(0.1) > 0.6
    assert values.max() < 1.3


def test_directions_stay_as_they_are() -> None:
    matrix = torch.randn(1, 40, 90, generator=torch.Generator().manual_seed(2))
    left, _, right = torch.linalg.svd(matrix[0], full_matrices=False)

    got = orthogonalized(matrix)[0].float()

    exact = left @ right
    cosine = (got * exact).sum() / (got.norm() * exact.norm())
    assert cosine > 0.97


def test_no_gradient_and_a_gradient_of_zeros_move_nothing() -> None:
    encoder = _encoder()
    optimizer = make_optimizer(encoder.parameters(), MUON)
    before = {name: value.clone() for name, value in encoder.named_parameters()}
    encoder.head5.conv1.weight.grad = torch.zeros_like(encoder.head5.conv1.weight)

    optimizer.step()

    for name, value in encoder.named_parameters():
        # but for the decay, 1e-7 of a weight
        torch.testing.assert_close(value.data, before[name], rtol=1e-6, atol=0)


def test_a_step_is_as_large_as_the_rate_says() -> None:
    encoder = _encoder()
    optimizer = make_optimizer(encoder.parameters(), MUON)
    before = encoder.head7.conv1.weight.detach().clone()
    _give_gradients(encoder, 3)

    optimizer.step()

    moved = encoder.head7.conv1.weight.detach() - before
    rms = moved.square().mean().sqrt()
    assert 0.1 * MUON.learning_rate < rms < 0.3 * MUON.learning_rate


def test_what_is_no_matrix_takes_the_steps_of_adam() -> None:
    ours, adams = _encoder(), _encoder()
    optimizer = make_optimizer(ours.parameters(), MUON)
    adam = make_adam(adams.parameters(), MUON)
    for seed in range(3):
        _give_gradients(ours, seed)
        _give_gradients(adams, seed)
        optimizer.step()
        adam.step()

    alike = dict(adams.named_parameters())
    kinds = {True: 0, False: 0}
    for name, value in ours.named_parameters():
        kinds[is_matrix(value)] += 1
        assert torch.equal(value, alike[name]) != is_matrix(value), name
    assert kinds[True] > 10
    assert not is_matrix(dict(ours.named_parameters())["layers.0.conv.weight"])
    assert kinds[False] > 5


def test_a_rate_set_on_the_groups_reaches_both_parts() -> None:
    encoder = _encoder()
    optimizer = make_optimizer(encoder.parameters(), MUON)
    before = {name: value.clone() for name, value in encoder.named_parameters()}
    _give_gradients(encoder, 4)
    for group in optimizer.param_groups:
        group["lr"] = 0.0

    optimizer.step()

    assert all(torch.equal(value, before[name]) for name, value in encoder.named_parameters())


@pytest.mark.parametrize("channels_last", [False, True])
def test_it_goes_on_from_named_tensors_to_the_last_bit(channels_last: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    whole, first = _encoder(), _encoder()
    whole.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = make_optimizer(whole.parameters(), MUON)
    part = make_optimizer(first.parameters(), MUON)
    for seed in range(2):
        _give_gradients(whole, seed)
        _give_gradients(first, seed)
        optimizer.step()
        part.step()
    saved = optimizer_tensors(part, first.named_parameters())

    second = _encoder(9)
    second.load_state_dict(first.state_dict())
    rest = make_optimizer(second.parameters(), MUON)
    restore_optimizer(rest, second.named_parameters(), saved)
    second.to(memory_format=layout)  # type: ignore[call-overload]
    match_layout(rest)
    _give_gradients(whole, 5)
    _give_gradients(second, 5)
    optimizer.step()
    rest.step()

    for (name, value), other in zip(whole.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(value, other), name


def test_another_optimizers_moments_are_left_alone() -> None:
    encoder = _encoder()
    adam = make_adam(encoder.parameters(), MUON)
    _give_gradients(encoder, 0)
    adam.step()
    saved = optimizer_tensors(adam, encoder.named_parameters())
    optimizer = make_optimizer(encoder.parameters(), MUON)

    restore_optimizer(optimizer, encoder.named_parameters(), saved)

    assert isinstance(optimizer, Muon)
    matrices = [value for value in encoder.parameters() if is_matrix(value)]
    assert not any(value in optimizer.state for value in matrices)
    assert all(
        "exp_avg_sq" in optimizer.state[value]
        for value in encoder.parameters()
        if not is_matrix(value)
    )
    _give_gradients(encoder, 1)
    optimizer.step()
    back = make_adam(encoder.parameters(), MUON)
    restore_optimizer(
        back, encoder.named_parameters(), optimizer_tensors(optimizer, encoder.named_parameters())
    )
    assert not any(value in back.state for value in matrices)


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="adam or muon"):
        OptimConfig(optimizer="sgd")  # type: ignore[arg-type]
