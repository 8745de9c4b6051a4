"""A deepened encoder computes what the shallow one did, and can learn more."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import ConfigError
from amdim_training.growth import deepened

SHALLOW = EncoderConfig(image_size=64, width=8, embed_dim=64, depth=1)


@pytest.fixture
def trained() -> AmdimEncoder:
    """An encoder none of whose weights is what it was drawn as."""
    torch.manual_seed(0)
    encoder = AmdimEncoder(SHALLOW)
    with torch.no_grad():
        for value in encoder.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    return encoder


@pytest.mark.parametrize("training", [False, True])
def test_the_features_stay_the_same_to_the_last_bit(trained: AmdimEncoder, training: bool) -> None:
    grown = deepened(trained, dataclasses.replace(SHALLOW, depth=3))
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        before, after = trained.train(training)(images), grown.train(training)(images)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)
    assert len(list(grown.parameters())) > len(list(trained.parameters()))


def test_the_new_units_learn(trained: AmdimEncoder) -> None:
    grown = deepened(trained, dataclasses.replace(SHALLOW, depth=2))
    new = grown.get_parameter("layers.1.1.conv2.weight")
    assert not new.any()
    grown(torch.randn(4, 3, 64, 64)).f1.square().sum().backward()
    assert new.grad is not None
    assert new.grad.any()


@pytest.mark.parametrize(
    "other", [{"depth": 1}, {"depth": 3, "width": 16, "embed_dim": 128}, {"embed_dim": 96}]
)
def test_only_depth_grows(trained: AmdimEncoder, other: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="another shape"):
        deepened(trained, dataclasses.replace(SHALLOW, **other))
