"""What a model promises: names, shapes, batch sizes, preprocessing and digests.

Read from the model's Triton config, the only place where these are written, and checked against
its certificate. Knows no engine and no graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from amdim_clients.certificate import (
    CERTIFICATE_FILE,
    Certificate,
    CertifiedPrecision,
    Tolerance,
    is_digest,
    read_certificate,
)
from amdim_clients.errors import ContractError
from amdim_clients.images import PREPROCESS_VERSION, Preprocess

__all__ = [
    "CERTIFICATE_FILE",
    "EMBEDDING",
    "GLOBAL",
    "INPUT",
    "LOCAL5",
    "LOCAL7",
    "WINDOWS",
    "Certificate",
    "CertifiedPrecision",
    "ModelSpec",
    "Tolerance",
    "file_digest",
    "parse_model_config",
    "read_certificate",
    "read_model_config",
    "read_model_spec",
]

INPUT: Final = "images"
EMBEDDING: Final = "embedding"
GLOBAL: Final = "global"
LOCAL5: Final = "local5"
LOCAL7: Final = "local7"
WINDOWS: Final = "windows"

CONFIG_FILE: Final = "config.pbtxt"
CONFIG_FORMAT: Final = "1"


@dataclass(frozen=True)
class ModelSpec:
    """One version of one model, as its config and certificate describe it."""

    name: str
    version: str
    image_size: int  # S, pixels
    embed_dim: int  # D
    embedding_dim: int | None  # E; None where the model has no `embedding`
    outputs: Mapping[str, tuple[int, ...]]  # name -> shape of one image's output, in order
    default_output: str
    max_batch_size: int  # images
    max_queue_delay_us: int  # 0: never wait for a fuller batch
    instance_count: int
    preprocess: Preprocess
    encoder_digest: str
    preprocess_digest: str
    artifact_digest: str
    precision: str
    window_stride: int | None = None  # pixels; only of a model of windows, whose H and W are free

    @property
    def gives_windows(self) -> bool:
        """Whether it takes pictures of any size and gives the vectors of their windows."""
        return self.window_stride is not None


def read_model_spec(model_dir: Path, version: str | None = None) -> ModelSpec:
    """The spec of a model in a repository, its highest version unless one is named.

    Raises:
        ContractError: Config or certificate is missing, breaks the contract, or they disagree.
    """
    config = read_model_config(model_dir)
    versions = _versions(model_dir)
    if not versions:
        raise ContractError(f"{model_dir} has no version folder")
    chosen = version if version is not None else versions[-1]
    if chosen not in versions:
        raise ContractError(f"{model_dir} has no version {chosen}, only {', '.join(versions)}")
    spec = parse_model_config(config, version=chosen)
    certificate = read_certificate(model_dir / chosen)
    if certificate.preprocess_digest != spec.preprocess_digest:
        raise ContractError(f"{model_dir}: certificate and config differ in preprocess_digest")
    if chosen == versions[-1]:
        # The config describes the highest version; older ones are described by their certificate.
        for name in ("encoder_digest", "artifact_digest", "precision"):
            if getattr(certificate, name) != getattr(spec, name):
                raise ContractError(f"{model_dir}: certificate and config differ in {name}")
        return spec
    return replace(
        spec,
        encoder_digest=certificate.encoder_digest,
        artifact_digest=certificate.artifact_digest,
        precision=certificate.precision,
    )


def read_model_config(model_dir: Path) -> Any:
    """The model's config as Triton's own `ModelConfig` message.

    Raises:
        ContractError: It is missing or is no Triton config.
    """
    path = model_dir / CONFIG_FILE
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ContractError(f"no model config at {path}") from error
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise ContractError(f"{path} is no Triton model config: {error}") from error


def parse_model_config(config: Any, *, version: str = "") -> ModelSpec:
    """The spec that a `ModelConfig` message describes, whether from a file or a server.

    Args:
        config: Triton's protobuf message.
        version: What the message itself does not say; taken over into the spec.

    Raises:
        ContractError: The message breaks the contract.
    """
    parameters = _Parameters(config)
    if (found := parameters.text("format")) != CONFIG_FORMAT:
        raise ContractError(f"model {config.name}: amdim.format {found} is not {CONFIG_FORMAT}")
    preprocess = Preprocess(parameters.number("image_size"), parameters.number("resize"))
    _check_preprocess(config, parameters, preprocess)
    embed_dim = parameters.number("embed_dim")
    embedding_dim = parameters.optional_number("embedding_dim")
    stride = parameters.optional_number("window_stride")
    if stride is None:
        _check_input(config, [preprocess.image_size, preprocess.image_size, 3])
        shapes = _output_shapes(embed_dim, embedding_dim)
    else:
        _check_stride(config, stride, preprocess.image_size)
        _check_input(config, [-1, -1, 3])
        shapes = {WINDOWS: (-1, -1, parameters.number("embedding_dim"))}
    outputs = _outputs(config, shapes)
    default_output = parameters.text("default_output")
    if default_output not in outputs:
        raise ContractError(f"model {config.name} has no output {default_output}, its default")
    if config.max_batch_size < 1:
        raise ContractError(f"model {config.name}: max_batch_size must be at least 1")
    return ModelSpec(
        name=config.name,
        version=version,
        image_size=preprocess.image_size,
        embed_dim=embed_dim,
        embedding_dim=embedding_dim,
        outputs=MappingProxyType(outputs),
        default_output=default_output,
        max_batch_size=config.max_batch_size,
        max_queue_delay_us=config.dynamic_batching.max_queue_delay_microseconds,
        instance_count=sum(max(1, group.count) for group in config.instance_group) or 1,
        preprocess=preprocess,
        encoder_digest=parameters.digest("encoder_digest"),
        preprocess_digest=preprocess.digest,
        artifact_digest=parameters.digest("artifact_digest"),
        precision=parameters.text("precision"),
        window_stride=stride,
    )


def file_digest(path: Path) -> str:
    """`sha256:<hex>` of a file's bytes, as `artifact_digest` is made."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


class _Parameters:
    """The config's `amdim.` parameters, each read once and checked."""

    def __init__(self, config: Any) -> None:
        self._model = config.name
        self._values: dict[str, str] = {
            key: value.string_value for key, value in config.parameters.items()
        }

    def text(self, name: str) -> str:
        value = self._values.get(f"amdim.{name}", "")
        if not value:
            raise ContractError(f"model {self._model}: parameter amdim.{name} is missing")
        return value

    def number(self, name: str) -> int:
        value = self.text(name)
        if not value.isascii() or not value.isdigit():
            raise ContractError(f"model {self._model}: amdim.{name} is no number: {value!r}")
        return int(value)

    def optional_number(self, name: str) -> int | None:
        return self.number(name) if f"amdim.{name}" in self._values else None

    def digest(self, name: str) -> str:
        value = self.text(name)
        if not is_digest(value):
            raise ContractError(f"model {self._model}: amdim.{name} is no sha256 digest")
        return value


def _versions(model_dir: Path) -> list[str]:
    names = [path.name for path in model_dir.iterdir() if path.is_dir()]
    return sorted((name for name in names if name.isascii() and name.isdigit()), key=int)


def _check_preprocess(config: Any, parameters: _Parameters, preprocess: Preprocess) -> None:
    version = parameters.number("preprocess_version")
    if version != PREPROCESS_VERSION:
        raise ContractError(
            f"model {config.name} needs preprocessing version {version}, "
            f"this installation has {PREPROCESS_VERSION}"
        )
    if parameters.digest("preprocess_digest") != preprocess.digest:
        raise ContractError(f"model {config.name} was made for a different preprocessing")


def _check_input(config: Any, dims: list[int]) -> None:
    found = [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in config.input]
    if found != [(INPUT, model_config_pb2.TYPE_UINT8, dims)]:
        raise ContractError(f"model {config.name} must have one input, {INPUT} TYPE_UINT8 {dims}")


def _check_stride(config: Any, stride: int, image_size: int) -> None:
    if stride * 8 != image_size:
        raise ContractError(f"model {config.name}: windows lie S/8 pixels apart, not {stride}")


def _output_shapes(embed_dim: int, embedding_dim: int | None) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        GLOBAL: (embed_dim,),
        LOCAL5: (5, 5, embed_dim),
        LOCAL7: (7, 7, embed_dim),
    }
    return shapes if embedding_dim is None else {EMBEDDING: (embedding_dim,), **shapes}


def _outputs(config: Any, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    found = {tensor.name: tuple(tensor.dims) for tensor in config.output}
    if any(tensor.data_type != model_config_pb2.TYPE_FP32 for tensor in config.output):
        raise ContractError(f"model {config.name}: every output must be TYPE_FP32")
    if found != shapes:
        raise ContractError(f"model {config.name} has outputs {found}, the contract says {shapes}")
    return shapes
