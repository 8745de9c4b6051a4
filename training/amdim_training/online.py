"""How good the vectors are while an encoder trains: nearest neighbours, no classifier.

Knows no files and no schedule: an encoder and two labelled sets in, accuracies out.
"""

from __future__ import annotations

import torch

from amdim_training.data import ImageSet
from amdim_training.encoder import AmdimEncoder
from amdim_training.knn import knn_accuracy
from amdim_training.search_vector import encode_for_search, fit_search_vector
from amdim_training.views import Normalization

EMBEDDING_COMPONENTS = 256
PAIRS = 4_000
"""Pairs of views that the search vector is fitted to here: a third of an export's, for time."""


def online_knn(
    encoder: AmdimEncoder, gallery: ImageSet, queries: ImageSet, normalization: Normalization
) -> dict[str, float]:
    """Returns kNN accuracies (k = 20, T = 0.07, in 0..1) of `global` and of `embedding`.

    `embedding` is the search vector, fitted here on the gallery.
    """
    was_training = encoder.training
    encoder.eval()
    try:
        gallery_pixels = torch.from_numpy(gallery.pixels)
        found = encode_for_search(encoder, gallery_pixels, normalization)
        asked = encode_for_search(encoder, torch.from_numpy(queries.pixels), normalization)
        whitening = fit_search_vector(
            encoder,
            gallery_pixels,
            normalization,
            min(EMBEDDING_COMPONENTS, len(gallery) - 1),
            features=found.search,
            pairs=PAIRS,
        )
    finally:
        encoder.train(was_training)
    gallery_labels = torch.from_numpy(gallery.labels)
    query_labels = torch.from_numpy(queries.labels)
    dim = encoder.config.embed_dim
    return {
        "knn_global": knn_accuracy(
            found.scales[:, :dim], gallery_labels, asked.scales[:, :dim], query_labels
        ),
        "knn_embedding": knn_accuracy(
            whitening.apply(found.search),
            gallery_labels,
            whitening.apply(asked.search),
            query_labels,
        ),
    }
