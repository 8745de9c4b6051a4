"""Batches larger than memory, with every negative they claim to have.

Summing the losses of small batches would score each image against its small batch only. Here the
whole batch is encoded first without gradients, the loss is made once over all of it, and each
part is then encoded again to carry its share of the gradient back. Batch norms see the parts:
their statistics are a part's, and are recorded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from amdim_training.encoder import EncoderFeatures
from amdim_training.loss import LossTerms

Encode = Callable[[Tensor], EncoderFeatures]
Loss = Callable[[EncoderFeatures, EncoderFeatures], LossTerms]


def backward_in_parts(
    encoder: nn.Module,
    encode: Encode,
    loss: Loss,
    views: tuple[Tensor, Tensor],
    *,
    part: int,
    scaled: Callable[[Tensor], Tensor] = lambda total: total,
) -> tuple[LossTerms, EncoderFeatures, EncoderFeatures]:
    """Adds the whole batch's gradient to the encoder's, a part of the batch in memory at a time.

    Args:
        encoder: Whose parameters get the gradient.
        encode: The encoder's forward pass, in whatever precision.
        loss: Of both views' features of the whole batch.
        views: Two (N, 3, S, S) batches.
        part: Images encoded at a time.
        scaled: What is differentiated in the loss's place (fp16's scaling).

    Returns:
        The whole batch's losses and both views' features, without gradients.
    """
    with torch.no_grad():
        features = [_encode_parts(encode, view, part) for view in views]
    leaves = [
        EncoderFeatures(*(tensor.float().requires_grad_() for tensor in view)) for view in features
    ]
    terms = loss(leaves[0], leaves[1])
    scaled(terms.total).backward()
    with _frozen_norms(encoder):
        for view, wanted in zip(views, leaves, strict=True):
            for start in range(0, len(view), part):
                rows = slice(start, start + part)
                got = encode(view[rows])
                gradients = [
                    torch.zeros_like(leaf[rows]) if leaf.grad is None else leaf.grad[rows]
                    for leaf in wanted
                ]
                torch.autograd.backward([tensor.float() for tensor in got], gradients)
    return LossTerms(*(term.detach() for term in terms)), features[0], features[1]


def _encode_parts(encode: Encode, view: Tensor, part: int) -> EncoderFeatures:
    parts = [encode(rows) for rows in view.split(part)]
    return EncoderFeatures(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


@contextmanager
def _frozen_norms(encoder: nn.Module) -> Iterator[None]:
    """Keeps running statistics as they are while batch statistics still normalise."""
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    counts = [
        buffer for name, buffer in encoder.named_buffers() if name.endswith("batches_tracked")
    ]
    counted = [count.clone() for count in counts]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for count, before in zip(counts, counted, strict=True):
            count.copy_(before)
