"""What the routes share: the service, the settings and the server's state.

Knows no framework. Lives as long as a loaded version: `deployment.py` replaces it whole.
"""

from __future__ import annotations

import hmac
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Any

from amdim_clients.contract import Certificate, ModelSpec
from amdim_serving.bodies import BodyReader
from amdim_serving.choosing import open_engine, open_windows
from amdim_serving.engines import EngineInfo
from amdim_serving.health import Health
from amdim_serving.metrics import Metrics
from amdim_serving.opening import ModelConfig, Tried
from amdim_serving.service import EmbedService
from amdim_serving.settings import Settings

# Readiness waits for the windows' canary no longer: a probe that timed out would take out all.
_PATIENCE_S = 0.5


@dataclass(slots=True)
class Gateway:
    """One loaded version's parts and state."""

    settings: Settings
    service: EmbedService
    certificate: Certificate
    config: ModelConfig
    """Triton's message of the model's config."""
    keys: tuple[bytes, ...] = ()
    admin_keys: tuple[bytes, ...] = ()
    """They open everything, and only they what changes the server."""
    canary_cosine: float = 1.0
    """The worst one at load."""
    tried: tuple[Tried, ...] = ()
    """What the engine was chosen among."""
    draining: bool = False
    requests: int = 0
    """Requests that began here and have not ended."""
    digests: dict[str, str] = field(init=False)
    """The model's name, version and digests, as every answer says them."""
    files_config: ModelConfig = field(init=False)
    """The same of the model that takes files."""
    bodies: BodyReader = field(init=False)
    health: Health = field(init=False)
    """Of the encoder; the windows have their own."""

    def __post_init__(self) -> None:
        spec = self.service.spec
        self.bodies = BodyReader(self.service.limits)
        self.health = Health(
            spec.name,
            self.service.batcher.stats,
            is_proved=lambda: self.service.engine.is_proved,
            run_canary=lambda: self.service.encode_canary(self.certificate),
            metrics=self.metrics,
        )
        self.service.health = self.health
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

    @property
    def metrics(self) -> Metrics:
        """The server's metrics; a successor reports to the same ones."""
        return self.service.metrics

    @property
    def version(self) -> str:
        """Of the model that serves."""
        return self.service.spec.version

    @property
    def identity(self) -> tuple[object, ...]:
        """Two gateways of one identity would answer alike."""
        windows = self.service.windows
        spec = None if windows is None else windows.model.engine.spec
        return (*self.digests.values(), self.service.engine.info, spec)

    def announce(self) -> None:
        """States in the metrics that this is what serves."""
        self.metrics.describe(self.service.engine, package_version())
        cosines = {self.service.spec.name: self.canary_cosine}
        if self.service.windows is not None:
            opened = self.service.windows.model
            cosines[opened.engine.spec.name] = opened.canary_cosine
        self.metrics.serve_models(cosines)
        self.metrics.queue_limit.set(self.service.limits.queue_images)
        self.metrics.ready.set(1)

    async def close(self) -> None:
        """Finishes accepted work, then frees threads and engine."""
        await self.service.close(self.settings.drain_timeout)

    def is_authorized(self, key: bytes | None) -> bool:
        """Whether a key opens the server."""
        return not self.keys or _is_among(key, self.keys + self.admin_keys)

    def is_admin(self, key: bytes | None) -> bool:
        """Whether a key may change what is served; without admin keys none may."""
        return _is_among(key, self.admin_keys)

    async def why_unready(self) -> str | None:
        """Returns why the server should get no work, or None when it is ready.

        A recent good batch proves it; when idle or after a failure, a canary has to. What fails is
        refused; windows alone, told by `unavailable`: the encoder's work goes on.
        """
        reason = await self._find_unready()
        self.metrics.ready.set(reason is None)
        return reason

    async def _find_unready(self) -> str | None:
        if self.draining or self.service.batcher.closing:
            return "draining"
        if not await self.health.check():
            return "engine"
        if self.service.windows is not None:
            await self.service.windows.health.check(_PATIENCE_S)
        return None

    @property
    def unavailable(self) -> list[str]:
        """Names of the models that failed their last check, whose requests are refused."""
        windows = self.service.windows
        return [] if windows is None or windows.health.is_good else [windows.spec.name]

    async def is_model_ready(self, name: str) -> bool:
        """Whether one of the served models may get work; checked as readiness is."""
        return await self.why_unready() is None and name not in self.unavailable

    def describe(self) -> dict[str, Any]:
        """Returns what /model shows."""
        spec = self.service.spec
        own = {
            "available": self.health.is_good,
            **_described(spec, self.service.engine.info, self.certificate),
            "chosen_among": [asdict(one) for one in self.tried],
        }
        models = {spec.name: own}
        if self.service.windows is not None:
            opened = self.service.windows.model
            models[opened.engine.spec.name] = {
                "available": self.service.windows.health.is_good,
                **_described(opened.engine.spec, opened.engine.info, opened.certificate),
            }
        limits = self.settings.limits.published()
        return {"default": spec.name, "models": models, "limits": limits}


def build_gateway(
    settings: Settings, metrics: Metrics | None = None, *, before: EngineInfo | None = None
) -> Gateway:
    """Opens the model that the settings name and puts a service around it.

    Args:
        settings: Say which model, which engine and which limits.
        metrics: Reported to; new ones when not given.
        before: What served until now; kept where the settings leave a choice.

    Raises:
        StartError: The model cannot be served; the text says why.
    """
    keys, admin_keys = settings.keys(), settings.keys_of_admins()
    opened = open_engine(settings, before=before)
    service = EmbedService(
        opened.engine,
        beside=opened.beside,
        windows=open_windows(settings, opened.engine.spec),
        limits=settings.limits,
        decode_threads=settings.decode_threads,
        metrics=metrics or Metrics(),
    )
    return Gateway(
        settings,
        service,
        opened.certificate,
        opened.config,
        keys,
        admin_keys,
        canary_cosine=opened.canary_cosine,
        tried=opened.tried,
    )


def reopen_gateway(old: Gateway) -> Gateway:
    """Opens what the settings of a gateway name by now.

    Raises:
        StartError: It cannot be served; the text says why.
    """
    return build_gateway(old.settings, old.metrics, before=old.service.engine.info)


def package_version() -> str:
    """Returns the installed version of the distribution; `0` in a bare checkout."""
    try:
        return installed_version("amdim-embed")
    except PackageNotFoundError:
        return "0"


def _described(spec: ModelSpec, info: EngineInfo, certificate: Certificate) -> dict[str, Any]:
    """Returns one model as /model shows it."""
    return {
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
            "window_stride": spec.window_stride,
        },
        "certificate": {k: v for k, v in certificate.raw.items() if k != "canaries"},
    }


def _is_among(key: bytes | None, known: tuple[bytes, ...]) -> bool:
    """Compares with every key, in constant time."""
    if key is None:
        return False
    matches = [hmac.compare_digest(key, one) for one in known]
    return any(matches)
