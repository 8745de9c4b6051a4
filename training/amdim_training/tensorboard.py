"""A run's curves, score histograms and view pairs for TensorBoard.

Curves come from the log's own records, so nothing is read from the device between two of them.
Knows nothing of the schedule: `train` says when to look at the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from amdim_training.errors import ConfigError
from amdim_training.loss import clipped_scores

if TYPE_CHECKING:
    from amdim_training.run import Run

BOARD_FOLDER = "tensorboard"
PAIRS = 8
"""View pairs shown as pictures."""
SCORED = 64
"""Images whose scores the histograms hold: 64 times 63 times 49 negatives are plenty."""

_GROUPS = {
    "lr": "schedule/lr",
    "pairs_per_s": "speed/pairs_per_s",
    "knn_global": "knn/global",
    "knn_embedding": "knn/embedding",
    "classifiers": "classifiers/loss",
    "mlp_accuracy": "classifiers/mlp_accuracy",
    "linear_accuracy": "classifiers/linear_accuracy",
}
_NO_CURVES = frozenset({"event", "step", "of", "pairs"})


class Board:
    """Writes event files below a run's folder.

    Args:
        folder: The run's folder.
        step: Updates made so far; later events of a run that died after its last checkpoint
            are dropped from the curves.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "run.tensorboard needs TensorBoard: pip install tensorboard, or leave it false"
            ) from error
        self._writer = SummaryWriter(str(folder / BOARD_FOLDER), purge_step=step + 1)

    def note(self, record: Mapping[str, Any]) -> None:
        """Adds a log record's numbers to the curves; losses without a group of their own."""
        if record["event"] not in ("step", "knn"):
            return
        for name, value in record.items():
            if name not in _NO_CURVES and isinstance(value, int | float):
                tag = _GROUPS.get(name, f"loss/{name}")
                self._writer.add_scalar(tag, value, record["step"])
        self._writer.flush()  # a run that diverges or dies keeps its curves

    def inspect(self, run: Run) -> None:
        """Adds score histograms and view pairs of a few training images, leaving no trace.

        The encoder looks at them in evaluation mode; nothing random of the run is drawn.
        """
        generator = torch.Generator().manual_seed(run.step)
        count = min(SCORED, len(run.pixels))
        chosen = torch.randperm(len(run.pixels), generator=generator)[:count]
        views = run.draw_views(run.pictures(chosen), generator)
        was_training = run.encoder.training
        run.encoder.eval()
        try:
            with torch.inference_mode():
                first, second = run.encoder(views[0]), run.encoder(views[1])
        finally:
            run.encoder.train(was_training)
        clip = run.config.loss.score_clip or None
        for task, targets in (("1to5", second.f5), ("1to7", second.f7)):
            scores, _ = clipped_scores(first.f1, targets.flatten(2), clip=clip)
            positives, negatives = split_scores(scores)
            self._writer.add_histogram(f"scores_{task}/positive", positives.cpu(), run.step)
            self._writer.add_histogram(f"scores_{task}/negative", negatives.cpu(), run.step)
        normalization = run.views.normalization
        pairs = [normalization.undo(view[:PAIRS]).clamp(0.0, 1.0).cpu() for view in views]
        self._writer.add_image("views", side_by_side(*pairs), run.step)
        self._writer.flush()

    def close(self) -> None:
        """Writes what is still held back."""
        self._writer.close()


def split_scores(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the flat scores of pairs of one image's views, and of different images' views.

    Args:
        scores: (N, N, L), source image by target image by location.
    """
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return scores[own].flatten(), scores[~own].flatten()


def side_by_side(first: Tensor, second: Tensor) -> Tensor:
    """Returns (3, 2S, N * S): N pictures in a row, their partners below."""
    rows = torch.cat([first, second], dim=2)  # (N, 3, 2S, S)
    return rows.permute(1, 2, 0, 3).flatten(2)
