"""How good the vectors are while an encoder trains: nearest neighbours, no classifier.

Knows no files and no schedule: an encoder and two labelled sets in, accuracies out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amdim_training.data import ImageSet
from amdim_training.encoder import AmdimEncoder
from amdim_training.knn import knn_accuracy
from amdim_training.views import Normalization
from amdim_training.whitening import fit_search_vector, pooled_features

EMBEDDING_COMPONENTS = 256


@torch.inference_mode()
def encode_pooled(
    encoder: AmdimEncoder, pixels: Tensor, normalization: Normalization, *, batch: int = 256
) -> Tensor:
    """Returns f1 and the means of f5 and f7 of every image, side by side.

    Args:
        encoder: In evaluation mode.
        pixels: (N, S, S, 3) uint8 on any device.
        normalization: The encoder's.
        batch: Images a forward pass.

    Returns:
        (N, 3D) float32 on the CPU.
    """
    device = next(encoder.parameters()).device
    parts = []
    for chunk in pixels.split(batch):
        # (n, S, S, 3) -> (n, 3, S, S)
        planes = chunk.to(device).permute(0, 3, 1, 2).float() / 255.0
        planes = normalization.apply(planes).contiguous(memory_format=torch.channels_last)
        parts.append(pooled_features(encoder(planes)).cpu())
    return torch.cat(parts)


def online_knn(
    encoder: AmdimEncoder, gallery: ImageSet, queries: ImageSet, normalization: Normalization
) -> dict[str, float]:
    """Returns kNN accuracies (k = 20, T = 0.07, in 0..1) of `global` and of `embedding`.

    `embedding` is the whitened concatenation, fitted here on the gallery.
    """
    was_training = encoder.training
    encoder.eval()
    try:
        gallery_features = encode_pooled(encoder, torch.from_numpy(gallery.pixels), normalization)
        query_features = encode_pooled(encoder, torch.from_numpy(queries.pixels), normalization)
    finally:
        encoder.train(was_training)
    gallery_labels = torch.from_numpy(gallery.labels)
    query_labels = torch.from_numpy(queries.labels)
    dim = encoder.config.embed_dim
    components = min(EMBEDDING_COMPONENTS, len(gallery) - 1)
    whitening = fit_search_vector(gallery_features, components)
    return {
        "knn_global": knn_accuracy(
            gallery_features[:, :dim], gallery_labels, query_features[:, :dim], query_labels
        ),
        "knn_embedding": knn_accuracy(
            whitening.apply(gallery_features),
            gallery_labels,
            whitening.apply(query_features),
            query_labels,
        ),
    }
