"""What the routes share: the service, the settings and the server's state.

Knows no framework; `app.py` puts one of these on the application.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from amdim_clients.contract import Certificate
from amdim_serving.bodies import BodyReader
from amdim_serving.errors import ServingError
from amdim_serving.metrics import Metrics
from amdim_serving.opening import ModelConfig, open_model
from amdim_serving.service import EmbedService
from amdim_serving.settings import Settings

# After so long without a good batch, readiness is proved by a canary.
_IDLE_S = 10.0
_CANARY_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Gateway:
    """One server's parts and state."""

    settings: Settings
    service: EmbedService
    certificate: Certificate
    config: ModelConfig
    """Triton's message of the model's config."""
    keys: tuple[bytes, ...] = ()
    draining: bool = False
    digests: dict[str, str] = field(init=False)
    """The model's name, version and digests, as every answer says them."""
    files_config: ModelConfig = field(init=False)
    """The same of the model that takes files."""
    bodies: BodyReader = field(init=False)
    _check: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        spec = self.service.spec
        self.bodies = BodyReader(self.service.limits)
        self.files_config = type(self.config)()
        self.files_config.CopyFrom(self.config)
        self.files_config.name = f"{spec.name}_image"
        del self.files_config.input[:]
        self.files_config.input.add(name="image", data_type="TYPE_STRING", dims=[1])
        self.digests = {
            "model": spec.name,
            "version": spec.version,
            "encoder_digest": spec.encoder_digest,
            "preprocess_digest": spec.preprocess_digest,
            "artifact_digest": spec.artifact_digest,
        }

    @property
    def digest_headers(self) -> dict[str, str]:
        """The digests as headers, for answers that are files."""
        return {
            "X-Amdim-Encoder-Digest": self.digests["encoder_digest"],
            "X-Amdim-Preprocess-Digest": self.digests["preprocess_digest"],
            "X-Amdim-Artifact-Digest": self.digests["artifact_digest"],
        }

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Starts the service, and drains it at the end."""
        await self.service.start()
        try:
            yield
        finally:
            await self.service.close(self.settings.drain_timeout)

    def is_authorized(self, key: bytes | None) -> bool:
        """Whether a key opens the server; every key is compared, in constant time."""
        if not self.keys:
            return True
        if key is None:
            return False
        matches = [hmac.compare_digest(key, known) for known in self.keys]
        return any(matches)

    async def why_unready(self) -> str | None:
        """Returns why the server should get no work, or None when it is ready.

        A recent good batch proves it; when idle or after a failure, a canary has to.
        """
        if self.draining or self.service.batcher.closing:
            return "draining"
        stats = self.service.batcher.stats
        async with self._check:
            if not stats.last_failed and time.monotonic() - stats.last_good < _IDLE_S:
                return None
            try:
                async with asyncio.timeout(_CANARY_TIMEOUT_S):
                    await self.service.encode_canary(self.certificate)
            except (ServingError, TimeoutError):
                return "engine"
        return None

    def describe(self) -> dict[str, Any]:
        """Returns what /model shows."""
        spec, info = self.service.spec, self.service.engine.info
        certificate = {k: v for k, v in self.certificate.raw.items() if k != "canaries"}
        model: Mapping[str, Any] = {
            "name": spec.name,
            "version": spec.version,
            "engine": info.engine,
            "provider": info.provider,
            "precision": info.precision,
            "threads": info.threads,
            "encoder_digest": spec.encoder_digest,
            "preprocess_digest": spec.preprocess_digest,
            "artifact_digest": spec.artifact_digest,
            "spec": {
                "image_size": spec.image_size,
                "resize": spec.preprocess.resize,
                "embed_dim": spec.embed_dim,
                "embedding_dim": spec.embedding_dim,
                "outputs": {name: list(shape) for name, shape in spec.outputs.items()},
                "default_output": spec.default_output,
                "max_batch_size": spec.max_batch_size,
                "max_queue_delay_us": spec.max_queue_delay_us,
                "instance_count": spec.instance_count,
            },
            "certificate": certificate,
        }
        limits = self.settings.limits.published()
        return {"default": spec.name, "models": {spec.name: model}, "limits": limits}


def build_gateway(settings: Settings) -> Gateway:
    """Opens the model that the settings name and puts a service around it.

    Args:
        settings: Say which model, which engine and which limits.

    Raises:
        StartError: The model cannot be served; the text says why.
    """
    opened = open_model(
        settings.repository(),
        settings.model,
        version=settings.model_version,
        engine_name=settings.engine,
        provider=settings.provider,
        threads=settings.threads,
    )
    metrics = Metrics()
    metrics.describe(opened.engine, package_version())
    metrics.canary_cosine.set(opened.canary_cosine)
    service = EmbedService(
        opened.engine,
        limits=settings.limits,
        decode_threads=settings.decode_threads,
        metrics=metrics,
    )
    return Gateway(settings, service, opened.certificate, opened.config, settings.keys())


def package_version() -> str:
    """Returns the installed version of the distribution; `0` in a bare checkout."""
    try:
        return version("amdim-embed")
    except PackageNotFoundError:
        return "0"
