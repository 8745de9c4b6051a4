"""The server's settings: flags over `AMDIM_` environment variables over defaults.

The only module that reads the environment; it knows nothing of what the settings do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from amdim_serving.engines.triton_target import TritonTarget
from amdim_serving.errors import StartError
from amdim_serving.limits import Limits
from amdim_serving.logs import LogFormat

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]

EngineName = Literal["auto", "onnxruntime", "openvino", "triton"]
PrecisionName = Literal["auto", "fp32", "bf16", "int8"]

_DEFAULTS = Limits()
_TRITON_URL = "127.0.0.1:8101"  # beside a gateway on 8000


class Settings(BaseSettings):
    """Everything `amdim serve` can be told.

    Raises:
        pydantic.ValidationError: A value is out of range or of the wrong type.
    """

    model_config = SettingsConfigDict(
        env_prefix="AMDIM_", extra="ignore", protected_namespaces=(), frozen=True
    )

    host: str = "127.0.0.1"
    port: Port = 8000
    grpc_port: Port | None = None
    """KServe v2 over gRPC; not given: one above `port`, and done without where that is taken."""
    model_repository: Path | None = None
    model: str = "amdim"
    model_version: str | None = None
    engine: EngineName = "auto"
    """Named outright, nothing else runs; auto: the fastest in process on this CPU."""
    precision: PrecisionName = "auto"
    """Named outright, nothing else runs; auto: the fastest that is certified good enough."""
    provider: str = "CPUExecutionProvider"
    """Of ONNX Runtime."""
    triton_url: str | None = None
    """Host and port of Triton's gRPC service, for `engine` triton. [127.0.0.1:8101]"""
    triton_in_flight: Annotated[int, Field(ge=0)] = 0
    """Batches on their way to Triton at once; 0: enough that no instance waits for the wire."""
    triton_seconds: Seconds = 10.0
    """Longest wait for one batch."""
    triton_connect_seconds: Annotated[float, Field(ge=0)] = 30.0
    """Longest wait for a Triton that is still starting."""
    triton_tls: bool = False
    triton_ca_file: Path | None = None
    """PEM of the authorities that may vouch for Triton; not given: the system's."""
    triton_headers: SecretStr = SecretStr("")
    """Sent with every call: `name=value`, comma-separated."""
    workers: Annotated[int, Field(ge=0)] = 1
    """Processes, each on its share of the cores; what the server may hold is split among them.
    0: as many as cores."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of one engine call; 0: as many as cores."""
    decode_threads: Annotated[int, Field(ge=0)] = 0
    """Threads that decode pictures; 0: as many as cores."""
    drain_delay: Annotated[float, Field(ge=0)] = 1.0
    """Seconds between /readyz turning 503 and the listeners closing."""
    drain_timeout: Seconds = 30.0
    """Seconds that accepted work may take to finish while draining."""
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Comma-separated in the environment; none means that no key is asked for."""
    api_keys_file: Path | None = None
    """One key a line."""
    admin_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Keys that may also load a new model version; none means that no request may."""
    admin_keys_file: Path | None = None
    public_metrics: bool = False
    """Whether /metrics is answered without a key."""
    metrics_host: str | None = None
    """Address of the metrics' own port; not given: `host`."""
    metrics_port: Port | None = None
    """/metrics on a port of its own, without a key, and no longer on `port`."""
    log_format: LogFormat = "text"
    access_log: bool = False
    """Whether each request gets a line in the log."""

    max_body_bytes: Count = _DEFAULTS.max_body_bytes
    inflight_bytes: Count = _DEFAULTS.inflight_bytes
    max_images: Count = _DEFAULTS.max_images
    max_pixels: Count = _DEFAULTS.max_pixels
    max_windows: Count = _DEFAULTS.max_windows
    min_side: Count = _DEFAULTS.min_side
    decode_seconds: Seconds = _DEFAULTS.decode_seconds
    queue_images: Count = _DEFAULTS.queue_images
    deadline_seconds: Seconds = _DEFAULTS.deadline_seconds
    body_seconds: Seconds = _DEFAULTS.body_seconds
    header_seconds: Seconds = _DEFAULTS.header_seconds

    @model_validator(mode="before")
    @classmethod
    def _split_keys(cls, values: dict[str, object]) -> dict[str, object]:
        split = {
            name: tuple(key.strip() for key in keys.split(",") if key.strip())
            for name in ("api_keys", "admin_keys")
            if isinstance(keys := values.get(name), str)
        }
        return {**values, **split}

    @field_validator("workers")
    @classmethod
    def _count_cores(cls, workers: int) -> int:
        return workers or len(os.sched_getaffinity(0))

    @model_validator(mode="after")
    def _server_holds_a_request(self) -> Self:
        if self.queue_images < self.max_images:
            raise ValueError("queue_images must be at least max_images")
        if self.inflight_bytes < self.max_body_bytes:
            raise ValueError("inflight_bytes must be at least max_body_bytes")
        if self.triton_url is not None and self.engine != "triton":
            raise ValueError("triton_url is for engine triton only")
        if self.metrics_port and self.metrics_port in (self.port, self.grpc_port):
            raise ValueError("metrics_port must be another port than port and grpc_port")
        return self

    @property
    def limits(self) -> Limits:
        """The limits among the settings."""
        names = [field.name for field in dataclasses.fields(Limits)]
        return Limits(**{name: getattr(self, name) for name in names})

    def triton(self, model: str) -> TritonTarget:
        """Returns where and how a model of Triton's is reached.

        Raises:
            StartError: The certificate file cannot be read, or a header is no `name=value`.
        """
        try:
            ca = self.triton_ca_file.read_bytes() if self.triton_ca_file else None
        except OSError as error:
            raise StartError("the file of --triton-ca-file cannot be read") from error
        pairs = [part for part in self.triton_headers.get_secret_value().split(",") if part.strip()]
        headers = [tuple(map(str.strip, pair.split("=", 1))) for pair in pairs]
        if any(len(header) != 2 or not header[0] for header in headers):
            raise StartError("AMDIM_TRITON_HEADERS is name=value, comma-separated")
        return TritonTarget(
            self.triton_url or _TRITON_URL,
            model,
            timeout_s=self.triton_seconds,
            connect_s=self.triton_connect_seconds,
            tls=self.triton_tls or ca is not None,
            ca=ca,
            headers=tuple((header[0].lower(), header[1]) for header in headers),
        )

    def repository(self) -> Path:
        """Returns the model repository: the one named, else ./model_repository, else the shipped.

        Raises:
            StartError: None of them is a folder.
        """
        return find_repository(self.model_repository)

    def keys(self) -> tuple[bytes, ...]:
        """Returns the accepted API keys, from the settings and the file.

        Raises:
            StartError: The file cannot be read, or holds no key.
        """
        return _all_keys(self.api_keys, self.api_keys_file)

    def keys_of_admins(self) -> tuple[bytes, ...]:
        """Returns the keys that may change what is served, likewise.

        Raises:
            StartError: The file cannot be read, or holds no key.
        """
        return _all_keys(self.admin_keys, self.admin_keys_file)


def _all_keys(named: tuple[SecretStr, ...], file: Path | None) -> tuple[bytes, ...]:
    keys = [key.get_secret_value() for key in named]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise StartError(f"the key file {file} cannot be read") from error
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise StartError(f"the key file {file} holds no key")
        keys += found
    return tuple(key.encode() for key in keys)


def load_settings(**overrides: object) -> Settings:
    """Returns the settings with `overrides` (flags; None means not given) over the environment.

    Raises:
        StartError: A value is out of range; the text names it.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        raise StartError(f"{where}: {first['msg']}") from error


def find_repository(named: Path | None = None) -> Path:
    """Returns the folder of models: the one named, else ./model_repository, else the shipped one.

    Raises:
        StartError: There is no such folder.
    """
    shipped = Path(__file__).resolve().parents[2] / "model_repository"
    candidates = [named] if named is not None else [Path("model_repository"), shipped]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    where = candidates[0] if named is not None else "./model_repository"
    raise StartError(f"no model repository at {where}; name one with --repository")


@contextlib.contextmanager
def metrics_shared_in(folder: str) -> Iterator[None]:
    """Has every process that is started meanwhile keep its metrics in a folder.

    The Prometheus library takes the folder from its variable alone, when it is imported.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    try:
        yield
    finally:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
