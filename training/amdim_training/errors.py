"""The training package's errors.

TrainingError
|-- ConfigError       a configuration names something unknown or out of range
|-- CheckpointError   a checkpoint is missing, broken or of another shape
|-- DataError         a data source is missing or holds nothing usable
|-- DivergedError     a loss is no longer finite
|-- ShapeError        tensors disagree on a size
`-- StoppedError      a signal ended early what can be gone on with
"""

from __future__ import annotations


class TrainingError(Exception):
    """Base of everything this package raises on purpose; its text is fit to show a user."""

    is_user_error = True
    exit_code = 1


class ConfigError(TrainingError):
    """A configuration names something unknown or out of range."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, broken or of another shape."""


class DataError(TrainingError):
    """A data source is missing or holds nothing usable."""


class DivergedError(TrainingError):
    """A loss is no longer finite."""


class ShapeError(TrainingError):
    """Tensors disagree on a size."""


class StoppedError(TrainingError):
    """A signal ended early what the same command goes on with."""

    exit_code = 130  # 128 + SIGINT, as shells report it
