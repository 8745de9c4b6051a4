"""AMDIM's training step in the plainest way: eager float32, written from the method's description.

What training.py compares with. One module a piece of the description, NCHW tensors, shortcuts
extended by concatenating zeros, each prediction scored and summed by itself, torch's own Adam.
Nothing is slowed down on purpose, and nothing is fused, skipped or laid out for speed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

CLIP = 20.0
PENALTY = 0.05


class Unit(nn.Module):
    """A residual unit: conv, ReLU, conv 1x1; average pooling and zero channels beside them."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(kernel, stride)
        self.conv1 = nn.Conv2d(c_in, c_out, kernel, stride, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 1, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, c_out, h, w)."""
        main: Tensor = self.conv2(self.relu(self.conv1(x)))
        shortcut = self.pool(x)
        n, channels, height, width = shortcut.shape
        if main.shape[1] > channels:
            zeros = torch.zeros(n, main.shape[1] - channels, height, width, device=x.device)
            shortcut = torch.cat([shortcut, zeros], dim=1)
        out: Tensor = main + shortcut
        return out


class Head(nn.Module):
    """Maps local features into the space that is scored."""

    def __init__(self, c_in: int, embed_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, embed_dim, 1, bias=False)
        self.conv2 = nn.Conv2d(embed_dim, embed_dim, 1, bias=False)
        self.shortcut = nn.Conv2d(c_in, embed_dim, 1)
        self.norm = nn.BatchNorm2d(embed_dim)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, D, d, d)."""
        out: Tensor = self.norm(self.conv2(self.relu(self.conv1(x))) + self.shortcut(x))
        return out


class PlainEncoder(nn.Module):
    """The encoder for 32 or 64 px, hidden batch norms left out."""

    def __init__(self, size: int, width: int, embed_dim: int, depth: int) -> None:
        super().__init__()
        w = width

        def block(c_in: int, c_out: int, kernel: int, stride: int) -> nn.Sequential:
            rest = [Unit(c_out, c_out, 1, 1) for _ in range(depth - 1)]
            return nn.Sequential(Unit(c_in, c_out, kernel, stride), *rest)

        stem = nn.Sequential(nn.Conv2d(3, w, 3), nn.ReLU())
        if size == 32:
            top = 4 * w
            to7 = [stem, Unit(w, w, 1, 1), block(w, 2 * w, 4, 2), block(2 * w, top, 2, 2)]
        else:
            top = 8 * w
            to7 = [stem, block(w, 2 * w, 4, 2), block(2 * w, 4 * w, 4, 2), block(4 * w, top, 2, 2)]
        self.to7 = nn.Sequential(*to7)
        self.to5 = block(top, top, 3, 1)
        self.to3 = block(top, top, 3, 1)
        self.to1 = Unit(top, embed_dim, 3, 1)
        self.norm = nn.BatchNorm2d(embed_dim)
        self.head5 = Head(top, embed_dim)
        self.head7 = Head(top, embed_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns f1 (N, D), f5 (N, D, 5, 5) and f7 (N, D, 7, 7)."""
        x7 = self.to7(x)
        x5 = self.to5(x7)
        x1 = self.norm(self.to1(self.to3(x5)))
        return x1.flatten(1), self.head5(x5), self.head7(x7)


def prediction(sources: Tensor, targets: Tensor) -> Tensor:
    """Returns one prediction's loss, one way: (N, D) sources, (N, D, d, d) targets."""
    n, dim = sources.shape
    scores = torch.einsum("id,jdl->ijl", sources, targets.flatten(2)) / math.sqrt(dim)
    penalty = PENALTY * (scores**2).mean()
    scores = CLIP * torch.tanh(scores / CLIP)
    own = torch.eye(n, dtype=torch.bool, device=sources.device)
    positives = scores[own]  # (N, L)
    negatives = scores.masked_fill(own.unsqueeze(2), -math.inf).flatten(1)
    spread = negatives.logsumexp(1, keepdim=True).expand_as(positives)
    both = torch.stack([positives, spread]).logsumexp(0)
    return (both - positives).mean() + penalty


def plain_loss(
    encoder: PlainEncoder, first: Tensor, second: Tensor, places: tuple[Tensor, Tensor]
) -> Tensor:
    """Returns the objective of two views: three predictions, each in both directions."""
    a, b = encoder(first), encoder(second)
    total = torch.zeros((), device=first.device)
    for x, y, place in ((a, b, places[0]), (b, a, places[1])):
        at = torch.arange(len(first), device=first.device)
        within = x[1].flatten(2)[at, :, place]
        total = total + prediction(x[0], y[1]) + prediction(x[0], y[2])
        total = total + prediction(within, y[1])
    return total / 2


class PlainStep:
    """Encoder and optimiser, and one whole update as a call."""

    def __init__(self, size: int, width: int, embed_dim: int, depth: int) -> None:
        self.encoder = PlainEncoder(size, width, embed_dim, depth)
        self.optimizer = torch.optim.Adam(
            self.encoder.parameters(), lr=2e-4, betas=(0.8, 0.999), weight_decay=1e-5
        )

    def __call__(self, first: Tensor, second: Tensor, places: tuple[Tensor, Tensor]) -> float:
        """Makes one update and returns its loss."""
        self.optimizer.zero_grad()
        loss = plain_loss(self.encoder, first, second, places)
        loss.backward()
        self.optimizer.step()
        return loss.item()
