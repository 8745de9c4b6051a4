"""The tensors a served encoder takes and gives, by name and shape.

The serving side has its own copy, since neither island imports the other:
tests/contract/test_export_names.py compares the two. Knows no torch.
"""

from __future__ import annotations

IMAGES = "images"
EMBEDDING = "embedding"
GLOBAL = "global"
LOCAL5 = "local5"
LOCAL7 = "local7"
WINDOWS = "windows"

FORMAT = 1
"""Version of the `amdim.*` parameters and of the certificate."""

MODEL_FILE = "model.onnx"
CERTIFICATE_FILE = "certificate.json"
CONFIG_FILE = "config.pbtxt"


def output_shapes(embed_dim: int, embedding_dim: int | None) -> dict[str, tuple[int, ...]]:
    """Returns each output's shape for one image, in the order in which the graph gives them.

    Args:
        embed_dim: D.
        embedding_dim: E, or None where no whitening was fitted.
    """
    search = {} if embedding_dim is None else {EMBEDDING: (embedding_dim,)}
    return {
        **search,
        GLOBAL: (embed_dim,),
        LOCAL5: (5, 5, embed_dim),
        LOCAL7: (7, 7, embed_dim),
    }
