"""What decides an encoder and a training run, as frozen dataclasses read from TOML.

Knows no torch: a configuration can be read, checked and compared where nothing can train.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

from amdim_training.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
MemoryFormat = Literal["auto", "channels_last", "contiguous"]
ViewsName = Literal["cifar", "stl10", "imagenet", "strong"]
OptimizerName = Literal["adam", "muon"]

Augmentation = Literal["jitter", "gray", "crop", "flip"]
Task = Literal["1to5", "1to7", "5to5"]

IMAGE_SIZES = (32, 64, 128)


@dataclasses.dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The shape of an AMDIM encoder.

    Raises:
        ConfigError: A value is out of range, or `embed_dim` is below the trunk's width.

    Source: amdim/SPEC.md 1; the reference's names stand beside each field.
    """

    image_size: int = 64
    """Side S of the square input, pixels: 32, 64 or 128 (`encoder_size`)."""
    width: int = 32
    """Channels of the first layer (`ndf`)."""
    embed_dim: int = 256
    """D, channels of f1, f5 and f7 (`n_rkhs`); at least the trunk's last width."""
    depth: int = 1
    """Residual units in each block (`n_depth`, once `res_block_depth`)."""
    batch_norm: bool = False
    """Whether hidden batch norms are applied; the three output norms always are (`use_bn`)."""

    def __post_init__(self) -> None:
        if self.image_size not in IMAGE_SIZES:
            raise ConfigError(f"image_size must be 32, 64 or 128, not {self.image_size}")
        if self.width < 1 or self.depth < 1:
            raise ConfigError("width and depth must be at least 1")
        if self.embed_dim < self.trunk_width:
            raise ConfigError(
                f"embed_dim {self.embed_dim} is below {self.trunk_width}, "
                f"the trunk's width at image_size {self.image_size} and width {self.width}"
            )

    @property
    def trunk_width(self) -> int:
        """Channels of the 5x5 and 7x7 activations: 4 widths at 32 px, 8 above."""
        return self.width * (4 if self.image_size == 32 else 8)


@dataclasses.dataclass(frozen=True, slots=True)
class LossConfig:
    """The infomax objective's constants (SPEC.md 2.1)."""

    score_clip: float = 20.0
    """Bound c of c * tanh(score / c) (`tclip`); 0 leaves scores unbounded."""
    penalty_weight: float = 0.05
    """Weight of the mean squared raw score (the reference's since 2019-07-12; the paper: 0.04)."""
    tasks: tuple[Task, ...] = ("1to5", "1to7", "5to5")
    """Predictions that count: all three are AMDIM; one global-to-local pair is local DIM."""
    mixtures: int = 0
    """Global vectors an image, of which the fitting one predicts (SPEC.md 8); 0 takes f1."""
    mixture_temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.tasks or not set(self.tasks) <= {"1to5", "1to7", "5to5"}:
            raise ConfigError(f"loss.tasks are some of 1to5, 1to7, 5to5, not {self.tasks}")


@dataclasses.dataclass(frozen=True, slots=True)
class DataConfig:
    """Where training images come from and how a pair of views is drawn."""

    train: tuple[str, ...] = ()
    """Parquet packs, image folders, data sets by name (`sources.open_source`): their train rows."""
    gallery: tuple[str, ...] = ()
    """Labelled images the online kNN searches; empty switches it off."""
    queries: str = ""
    """Labelled images the online kNN classifies; of a pack, its val or test rows."""
    gallery_limit: int = 10_000
    """At most so many gallery images are used while training, the first of a fixed shuffle."""
    query_limit: int = 2_000
    source_size: int = 0
    """Side P that training images are kept at, pixels; 0 means the encoder's own."""
    views: ViewsName = "stl10"
    """The augmentation pipeline (SPEC.md 5)."""
    classifiers: bool = False
    """Whether linear and MLP classifiers learn beside the encoder, which they cannot change."""
    without: tuple[Augmentation, ...] = ()
    """Steps of the pipeline to leave out, as the paper's ablation does."""
    crop_scale: tuple[float, ...] = ()
    """Least and most share of the area that a crop covers; empty is the pipeline's own."""
    color_strength: float = 1.0
    """Factor on the jitter of brightness, contrast, saturation and hue; 0 to 2.5."""

    def __post_init__(self) -> None:
        if self.views not in get_args(ViewsName):
            known = ", ".join(get_args(ViewsName))
            raise ConfigError(f"data.views is one of {known}, not {self.views!r}")
        if not set(self.without) <= {"jitter", "gray", "crop", "flip"}:
            raise ConfigError(f"data.without are some of jitter, gray, crop, flip: {self.without}")
        if self.crop_scale and self.views == "cifar":
            raise ConfigError("data.crop_scale: the views of cifar are translated, never cropped")
        if self.crop_scale and not (
            len(self.crop_scale) == 2 and 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1
        ):
            raise ConfigError(f"data.crop_scale is two shares of an area, not {self.crop_scale}")
        if not 0 <= self.color_strength <= 2.5:
            raise ConfigError(f"data.color_strength is 0 to 2.5, not {self.color_strength}")


@dataclasses.dataclass(frozen=True, slots=True)
class OptimConfig:
    """The optimiser and its schedule (SPEC.md 4)."""

    batch_size: int = 200
    optimizer: OptimizerName = "adam"
    """`muon`: orthogonal steps for convolutions (`muon.py`), Adam for the rest; it wants about
    half of Adam's rate."""
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.8, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-5
    """L2, coupled, on every trained parameter; decoupled where `muon` takes orthogonal steps."""
    part_size: int = 0
    """Images encoded at a time; 0 is the whole batch, less fits one too large for memory."""
    ema_decay: float = 0.0
    """Share of the averaged weights kept at each update; 0 keeps no average."""
    batch_norm: Literal["local", "global"] = "local"
    """Over several processes: whether each normalises by its own part or by the whole batch."""
    warmup_steps: int = 500
    steps: int = 0
    """Updates in all; 0 says that `epochs` decides."""
    epochs: int = 300
    schedule: Literal["milestones", "linear", "cosine", "constant"] = "milestones"
    """After warm-up: x`milestone_factor` at `milestones`, linear to zero over the end of the run,
    half a cosine to zero over all of it, or flat."""
    milestones: tuple[int, ...] = (250, 280)
    """Epochs; a milestone m takes effect from epoch m + 1 on, as the reference's does."""
    milestone_factor: float = 0.2
    decay_fraction: float = 0.3
    """`linear`: the last share of the updates over which the rate falls to zero."""

    def __post_init__(self) -> None:
        if self.optimizer not in get_args(OptimizerName):
            raise ConfigError(f"optim.optimizer is adam or muon, not {self.optimizer!r}")


@dataclasses.dataclass(frozen=True, slots=True)
class RunConfig:
    """How a run uses its machine and what it leaves behind."""

    out: str = "runs/amdim"
    """The run's folder; a run that stopped goes on from its newest checkpoint there."""
    init_from: str = ""
    """A checkpoint whose weights and optimiser state a new run begins with; where `encoder.depth`
    is more than its own, the units that it lacks start as the identity (`growth.py`)."""
    seed: int = 0
    precision: Precision = "auto"
    """`auto` times fp32 and bf16 on the machine at hand first; fp16 comes with a scaled loss."""
    memory_format: MemoryFormat = "auto"
    """`auto` times a step in either order of channels; several processes take channels_last."""
    compile: bool | Literal["auto"] = False
    """Whether torch.compile builds the encoder; `auto` times a step both ways before the first."""
    deterministic: bool = False
    """Whether only algorithms that repeat to the last bit may run."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    log_every: int = 50
    save_every: int = 500
    evaluate_every: int = 0
    """Updates between online kNN scores; 0 only at the end."""
    stop_after_minutes: float = 0.0
    """Save and stop cleanly after so long; 0 runs to the last update."""
    tensorboard: bool = False
    """Whether curves, score histograms and view pairs are written for TensorBoard."""
    cache: str = ""
    """A folder for decoded training images, mapped rather than read; empty keeps them in memory."""

    def __post_init__(self) -> None:
        for key, known in (("precision", Precision), ("memory_format", MemoryFormat)):
            if getattr(self, key) not in get_args(known):
                choices = ", ".join(get_args(known))
                raise ConfigError(f"run.{key} is one of {choices}, not {getattr(self, key)!r}")


@dataclasses.dataclass(frozen=True, slots=True)
class TrainConfig:
    """One training run."""

    encoder: EncoderConfig = EncoderConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds a run's configuration from nested tables, as TOML gives them.

        Raises:
            ConfigError: An unknown table or key, or a value of the wrong type.
        """
        sections = {field.name: field for field in dataclasses.fields(cls)}
        unknown = set(values) - set(sections)
        if unknown:
            raise ConfigError(f"unknown section {sorted(unknown)[0]!r}; known: {sorted(sections)}")
        built: dict[str, Any] = {}
        for name, table in values.items():
            default = sections[name].default
            built[name] = _section(type(default), name, table)
        return cls(**built)

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """Reads a TOML file and applies `section.key=value` overrides, values in TOML syntax.

        Raises:
            ConfigError: The file or an override cannot be read, or names an unknown key.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"no configuration at {path}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}") from error
        for override in overrides:
            _apply_override(values, override)
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Returns nested plain tables; `from_dict` reads them back."""
        return dataclasses.asdict(self)


def _section(kind: type[Any], name: str, table: object) -> Any:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{name} must be a table")
    defaults = {field.name: getattr(kind(), field.name) for field in dataclasses.fields(kind)}
    built: dict[str, Any] = {}
    for key, value in table.items():
        if key not in defaults:
            raise ConfigError(f"unknown key {name}.{key}; known: {sorted(defaults)}")
        built[key] = _coerce(f"{name}.{key}", value, defaults[key])
    return kind(**built)


def _coerce(where: str, value: object, default: object) -> object:
    """Returns `value` as the default's type: lists become tuples, integers may stand for floats."""
    if isinstance(default, tuple):
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list | tuple):
            return tuple(value)
    elif isinstance(default, bool):
        if isinstance(value, bool) or (where == "run.compile" and value == "auto"):
            return value
    elif isinstance(default, float):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, type(default)) and not isinstance(value, bool):
        return value
    raise ConfigError(f"{where} must be like {default!r}, not {value!r}")


def _apply_override(values: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    section, dot, key = path.strip().partition(".")
    if not separator or not dot or not key:
        raise ConfigError(f"an override reads section.key=value, not {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    table = values.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{section} must be a table")
    table[key] = value
