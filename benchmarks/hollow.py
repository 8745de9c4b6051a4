"""The gateway with nothing in it: pictures are not decoded and vectors are ready made.

    python benchmarks/hollow.py REPOSITORY MODEL

Everything else is the real server, so the CPU it takes a request is the gateway's own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amdim_clients.images import DecodedImage, ImageLimits, Preprocess
from amdim_serving.engines import Engine
from amdim_serving.gateway import Gateway
from amdim_serving.logs import log_to_stderr
from amdim_serving.opening import open_model
from amdim_serving.server import serve
from amdim_serving.service import EmbedService
from amdim_serving.settings import Settings, load_settings


class HollowEngine:
    """Gives the same vectors whatever the images."""

    is_proved = True

    def __init__(self, engine: Engine) -> None:
        self.spec, self.info = engine.spec, engine.info
        rng = np.random.default_rng(0)
        self._vectors = {
            name: rng.standard_normal((self.spec.max_batch_size, *shape), dtype=np.float32)
            for name, shape in self.spec.outputs.items()
        }

    def encode(
        self, images: NDArray[np.uint8], outputs: Sequence[str]
    ) -> Mapping[str, NDArray[np.float32]]:
        """Returns as many ready-made vectors as there are images."""
        return {name: self._vectors[name][: len(images)] for name in outputs}

    def close(self) -> None:
        """Has nothing to free."""


def open_hollow(settings: Settings) -> Gateway:
    """Returns a gateway around a hollow engine with a real model's spec."""
    opened = open_model(settings.repository(), settings.model, beside=True)
    beside = None if opened.beside is None else HollowEngine(opened.beside)
    side = opened.engine.spec.image_size
    pixels = np.zeros((side, side, 3), np.uint8)

    def decode(
        data: bytes | memoryview, preprocess: Preprocess, limits: ImageLimits
    ) -> DecodedImage:
        return DecodedImage(pixels, 500, 375)

    service = EmbedService(
        HollowEngine(opened.engine), beside=beside, limits=settings.limits, decode=decode
    )
    return Gateway(settings, service, opened.certificate, opened.config)


if __name__ == "__main__":
    log_to_stderr()
    serve(
        load_settings(port=0, drain_delay=0, model_repository=Path(sys.argv[1]), model=sys.argv[2]),
        open_gateway=open_hollow,
    )
