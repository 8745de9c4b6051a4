import torch

from amdim_training.accumulation import backward_in_parts
from amdim_training.averaging import WeightAverage, recompute_norms
from amdim_training.config import EncoderConfig
from amdim_training.encoder import AmdimEncoder
from amdim_training.loss import infomax_loss

N = 12
SOURCES = torch.arange(N) % 25, (torch.arange(N) * 7) % 25


def fresh_encoder() -> AmdimEncoder:
    torch.manual_seed(0)
    encoder = AmdimEncoder(EncoderConfig(image_size=32, width=4, embed_dim=16))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder


def views() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, N, 3, 32, 32, generator=generator)
    return first, second


def loss(a, b):
    return infomax_loss(a, b, sources=SOURCES)


def gradients(encoder: AmdimEncoder) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


def test_parts_give_the_whole_batchs_loss_and_gradient() -> None:
    # evaluation mode: batch norms see single images, so only the accumulation is compared
    encoder = fresh_encoder().eval()
    first, second = views()
    whole = loss(encoder(first), encoder(second))
    whole.total.backward()
    expected = {name: value.clone() for name, value in gradients(encoder).items()}
    encoder.zero_grad()
    terms, _, _ = backward_in_parts(encoder, encoder, loss, (first, second), part=5)
    torch.testing.assert_close(terms.total, whole.total.detach())
    for name, gradient in gradients(encoder).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=name)


def test_small_batches_alone_would_have_fewer_negatives() -> None:
    encoder = fresh_encoder().eval()
    first, second = views()
    part = infomax_loss(
        encoder(first[:6]), encoder(second[:6]), sources=(SOURCES[0][:6], SOURCES[1][:6])
    )
    terms, _, _ = backward_in_parts(encoder, encoder, loss, (first, second), part=6)
    assert terms.total > part.total + 1.0


def test_running_statistics_are_recorded_once() -> None:
    one, two = fresh_encoder().train(), fresh_encoder().train()
    first, second = views()
    one(first), one(second)
    backward_in_parts(two, two, loss, (first, second), part=N)
    for (name, a), (_, b) in zip(one.named_buffers(), two.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_an_average_follows_the_weights_and_gets_statistics_of_its_own() -> None:
    encoder = fresh_encoder()
    average = WeightAverage(encoder, 0.9)
    start = encoder.head5.conv1.weight.detach().clone()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.5)
    for _ in range(200):
        average.update(encoder)
    torch.testing.assert_close(average.encoder.head5.conv1.weight, 1.5 * start)
    batches = [torch.randn(16, 3, 32, 32) for _ in range(3)]
    refreshed = average.refresh_norms(batches)
    assert not refreshed.training
    expected = fresh_encoder()
    expected.load_state_dict(encoder.state_dict())
    recompute_norms(expected, batches)
    for key, value in refreshed.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[key], rtol=1e-3, atol=1e-5)


def test_recomputed_statistics_are_plain_means_over_batches() -> None:
    encoder = fresh_encoder()
    batches = [torch.randn(8, 3, 32, 32) for _ in range(4)]
    recompute_norms(encoder, batches)
    norm = encoder.layers[-1]
    taken: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].detach()))
    encoder.train()
    with torch.no_grad():
        for batch in batches:
            encoder(batch)
    means = torch.stack([x.mean(dim=(0, 2, 3)) for x in taken]).mean(0)
    reference = fresh_encoder()
    recompute_norms(reference, batches)
    torch.testing.assert_close(reference.layers[-1].running_mean, means)
    assert norm.momentum == 0.1
