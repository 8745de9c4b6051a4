from __future__ import annotations

import pytest
import torch

from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import ConfigError, ShapeError
from amdim_training.loss import infomax_loss

SMALL = {
    32: EncoderConfig(image_size=32, width=4, embed_dim=24, depth=2),
    64: EncoderConfig(image_size=64, width=4, embed_dim=40, depth=2),
    128: EncoderConfig(image_size=128, width=4, embed_dim=40, depth=2),
}


@pytest.mark.parametrize("size", SMALL)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_features_have_the_promised_shapes(size: int, batch_norm: bool) -> None:
    config = EncoderConfig(size, 4, 40, 2, batch_norm)
    encoder = AmdimEncoder(config).eval()

    features = encoder(torch.randn(2, 3, size, size))

    assert features.f1.shape == (2, 40)
    assert features.f5.shape == (2, 40, 5, 5)
    assert features.f7.shape == (2, 40, 7, 7)
    taps = encoder.activations(torch.randn(1, 3, size, size))
    assert taps[5].shape[1] == taps[7].shape[1] == config.trunk_width


@pytest.mark.parametrize("size", [32, 64])
def test_each_local_feature_sees_its_receptive_field_only(size: int) -> None:
    torch.manual_seed(0)
    encoder = AmdimEncoder(SMALL[size]).eval()
    stride = size // 8
    images = torch.randn(1, 3, size, size)
    changed = images.clone()
    changed[:, :, :stride, :] += 5  # cells of the second row start below

    with torch.no_grad():
        before, after = encoder(images).f7, encoder(changed).f7

    moved = (before - after).abs().amax(dim=(0, 1, 3)) > 1e-6
    assert moved.tolist() == [True] + [False] * 6


def test_fresh_encoder_is_average_pooling_of_its_stem() -> None:
    encoder = AmdimEncoder(SMALL[64]).eval()
    images = torch.randn(1, 3, 64, 64)

    with torch.no_grad():
        stem = encoder.layers[0](images)
        trunk = encoder.activations(images)[7]

    pooled = torch.nn.functional.avg_pool2d(stem, 4, 2)
    pooled = torch.nn.functional.avg_pool2d(pooled, 4, 2)
    pooled = torch.nn.functional.avg_pool2d(pooled, 2, 2)
    assert torch.allclose(trunk[:, :4], pooled, atol=1e-6)
    assert trunk[:, 4:].eq(0).all()


def test_fresh_head_shortcut_is_nearly_the_identity() -> None:
    weight = AmdimEncoder(SMALL[64]).head5.shortcut.weight[:, :, 0, 0].detach()

    diagonal = torch.eye(40, 32, dtype=torch.bool)
    assert weight[diagonal].eq(1).all()
    assert weight[~diagonal].abs().max() <= 0.01


def test_wrong_size_is_named() -> None:
    with pytest.raises(ShapeError, match=r"\(N, 3, 64, 64\), got \(1, 3, 32, 32\)"):
        AmdimEncoder(SMALL[64])(torch.zeros(1, 3, 32, 32))


def test_too_narrow_embedding_is_refused() -> None:
    with pytest.raises(ConfigError, match="embed_dim 16 is below 32"):
        EncoderConfig(image_size=64, width=4, embed_dim=16)


def test_parameter_count_is_the_published_one() -> None:
    with torch.device("meta"):
        encoder = AmdimEncoder(EncoderConfig(64, 128, 1024, 3))
    counted = sum(parameter.numel() for parameter in encoder.parameters())

    # 57.78 M in SPEC.md 1.5, which counts the hidden batch norms that do not exist here
    with torch.device("meta"):
        with_norms = AmdimEncoder(EncoderConfig(64, 128, 1024, 3, batch_norm=True))
    all_counted = sum(parameter.numel() for parameter in with_norms.parameters())
    assert round(all_counted / 1e6, 2) == 57.78
    assert counted < all_counted


def test_one_batch_overfits() -> None:
    torch.manual_seed(0)
    encoder = AmdimEncoder(EncoderConfig(32, 4, 16, 1))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=5e-3, betas=(0.8, 0.999))
    images = torch.randn(6, 3, 32, 32)
    views = images + 0.1 * torch.randn_like(images), images + 0.1 * torch.randn_like(images)

    history = []
    for _ in range(40):
        optimizer.zero_grad()
        terms = infomax_loss(encoder(views[0]), encoder(views[1]))
        terms.total.backward()
        optimizer.step()
        history.append(terms.total.item())

    assert history[-1] < 0.5 * history[0]
