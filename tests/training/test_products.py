import pytest
import torch
from torch import nn

from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.products import convolve

CASES = [(256, 3, 3, 1), (256, 1, 5, 1), (8, 3, 7, 1), (8, 2, 14, 2), (8, 2, 7, 2), (8, 4, 14, 2)]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("channels", "kernel", "side", "stride"), CASES)
def test_a_product_is_its_convolution_and_so_are_its_gradients(
    channels: int, kernel: int, side: int, stride: int, precision: torch.dtype
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 256 if channels == 256 else 12, kernel, stride, bias=kernel == 1)
    conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(4, channels, side, side).to(memory_format=torch.channels_last)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        got = convolve(conv, x)
    # the convolution itself in float32: both precisions are held against it
    wanted = conv(x)
    weight = torch.randn_like(wanted)
    ours = torch.autograd.grad((got.float() * weight).sum(), [x, *conv.parameters()])
    theirs = torch.autograd.grad((wanted * weight).sum(), [x, *conv.parameters()])
    close = 1e-4 if precision == torch.float32 else 2e-2
    for mine, reference in zip((got, *ours), (wanted, *theirs), strict=True):
        assert mine.shape == reference.shape
        error = (mine.float() - reference).abs().max() / reference.abs().max()
        assert error < close


def test_inference_and_other_layouts_convolve_as_usual() -> None:
    conv = nn.Conv2d(3, 4, 3)
    x = torch.randn(2, 3, 3, 3).to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(convolve(conv, x), conv(x))
    contiguous = torch.randn(2, 3, 5, 5)
    assert torch.equal(convolve(conv, contiguous), conv(contiguous))


def test_an_encoder_has_the_same_gradients_in_both_layouts() -> None:
    torch.manual_seed(0)
    encoder = AmdimEncoder(EncoderConfig(image_size=32, width=4, embed_dim=16, depth=2)).double()
    for name, value in encoder.named_parameters():
        if name.endswith("conv2.weight"):  # zero at the start, and then hiding its branch
            nn.init.normal_(value, std=0.1)
    x = torch.randn(4, 3, 32, 32).double()
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        encoder.to(memory_format=layout)  # type: ignore[call-overload]
        encoder.zero_grad()
        features = encoder(x.to(memory_format=layout))
        sum(tensor.square().mean() for tensor in features).backward()
        named = encoder.named_parameters()
        gradients.append(
            {name: value.grad.clone() for name, value in named if value.grad is not None}
        )
    assert len(gradients[0]) == len(list(encoder.parameters()))
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-9), name
