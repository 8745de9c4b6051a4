"""Trains an encoder: configuration in, a run folder of checkpoints and a log out.

Reads top to bottom: `train` prepares, `_loop` updates, logs, scores and saves.
"""

from __future__ import annotations

import dataclasses
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from amdim_clients.images import Preprocess
from amdim_training.allocator import keep_freed_memory
from amdim_training.choices import settle
from amdim_training.config import TrainConfig
from amdim_training.data import load_images
from amdim_training.distributed import GlobalBatch, joined
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import DataError
from amdim_training.journal import Journal, Report
from amdim_training.online import online_knn
from amdim_training.run import Run
from amdim_training.tensorboard import Board
from amdim_training.views import VIEWS

_EVALUATION_SPLITS = ("val", "test")
_STOP_EVERY = 10
"""Updates between two looks at a stop signal where several processes must agree on it."""

_log = logging.getLogger(__name__)

Scorer = Callable[[AmdimEncoder], dict[str, float]]


def train(config: TrainConfig, *, report: Report | None = None) -> Path:
    """Trains until the last update, the time limit or a signal; returns the last checkpoint.

    Called again with the same configuration it goes on where it stopped. Under torchrun every
    process calls it, and the batch is divided between them.

    Args:
        config: The run.
        report: Called with each log record: step, losses, rates.

    Raises:
        ConfigError: The configuration contradicts itself or the run being continued.
        CheckpointError: A checkpoint to go on from is broken, or the disk refused one.
        DataError: The data is missing or unreadable.
        DivergedError: The loss is no longer finite.
    """
    keep_freed_memory()
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    torch.use_deterministic_algorithms(config.run.deterministic)
    with joined() as batch, _stop_signals() as stop:
        return _train(config, batch, stop, report)


def _train(
    config: TrainConfig, batch: GlobalBatch | None, stop: threading.Event, report: Report | None
) -> Path:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    side = config.data.source_size or config.encoder.image_size
    cache = Path(config.run.cache) if config.run.cache else None
    images = load_images(
        config.data.train,
        Preprocess(image_size=side, resize=side),
        cache=cache,
        wait=batch is not None and not batch.is_first_here,
    )
    if len(images) < config.optim.batch_size:
        raise DataError(f"{len(images)} images cannot fill a batch of {config.optim.batch_size}")
    _log.info("%d images to train on, %d skipped", len(images), len(images.skipped))
    pixels, labels = torch.from_numpy(images.pixels), torch.from_numpy(images.labels)
    if cache is None:
        pixels = pixels.to(device)  # a cache is for more than a device holds
    run = Run(config, pixels, labels, batch, device)
    scorer = _make_scorer(config) if run.is_first else None
    return _loop(run, scorer, stop, report, skipped=len(images.skipped))


def _loop(
    run: Run,
    scorer: Scorer | None,
    stop: threading.Event,
    report: Report | None,
    *,
    skipped: int,
) -> Path:
    config = run.config.run
    run.folder.mkdir(parents=True, exist_ok=True)
    board = Board(run.folder, run.step) if config.tensorboard and run.is_first else None
    journal = Journal(run.folder, _heard_by(report, board)) if run.is_first else Journal(None)
    choices = settle(run)
    settled = dataclasses.asdict(choices)
    journal.note({"event": "start", **settled, "skipped": skipped, **_facts(run)})
    ends = time.monotonic() + (config.stop_after_minutes * 60 or float("inf"))

    scored = -1

    def score() -> None:
        nonlocal scored
        if scorer is not None and run.step != scored:
            journal.note({"event": "knn", "step": run.step, **scorer(run.encoder)})
            scored = run.step

    while run.step < run.steps and not _must_stop(run, stop.is_set() or time.monotonic() > ends):
        journal.count(run.update(choices.precision))
        if run.step % config.log_every == 0:
            journal.summarize(_progress(run), pairs_per_update=run.config.optim.batch_size)
        if config.evaluate_every and run.step % config.evaluate_every == 0:
            score()
        if run.step % config.save_every == 0:
            run.save()
            if board is not None:
                board.inspect(run)
    folder = run.save()
    if run.step >= run.steps:
        score()
    if board is not None:
        board.close()
    return folder


def _heard_by(report: Report | None, board: Board | None) -> Report | None:
    """Returns what hears each log record: the caller, TensorBoard, both or nobody."""
    if board is None:
        return report

    def hear(record: Mapping[str, Any]) -> None:
        board.note(record)
        if report is not None:
            report(record)

    return hear


def _must_stop(run: Run, wanted: bool) -> bool:
    """Returns whether to stop now; several processes stop at the same update or none does."""
    if run.batch is None:
        return wanted
    return run.step % _STOP_EVERY == 0 and run.batch.any(wanted)


def _progress(run: Run) -> dict[str, object]:
    return {
        "event": "step",
        "step": run.step,
        "of": run.steps,
        "pairs": run.step * run.config.optim.batch_size,
        "lr": run.optimizer.param_groups[0]["lr"],
    }


def _facts(run: Run) -> dict[str, object]:
    """Returns what decides a run's speed and numbers, for the log."""
    return {
        "step": run.step,
        "images": len(run.pixels),
        "steps": run.steps,
        "torch": torch.__version__,
        "device": str(run.device),
        "threads": torch.get_num_threads(),
        "processes": run.batch.world_size if run.batch else 1,
        "config": run.config.to_dict(),
    }


def _make_scorer(config: TrainConfig) -> Callable[[AmdimEncoder], dict[str, float]] | None:
    data = config.data
    if not data.gallery or not data.queries:
        return None
    preprocess = Preprocess.for_image_size(config.encoder.image_size)
    cache = Path(config.run.cache) if config.run.cache else None
    gallery = load_images(data.gallery, preprocess, cache=cache).labelled(data.gallery_limit)
    queries = load_images([data.queries], preprocess, splits=_EVALUATION_SPLITS, cache=cache)
    queries = queries.labelled(data.query_limit)
    if not len(gallery) or not len(queries):
        raise DataError("data.gallery and data.queries need labels: kNN compares classes")
    normalization = VIEWS[data.views].normalization
    return lambda encoder: online_knn(encoder, gallery, queries, normalization)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Turns SIGTERM and Ctrl-C into a request to save and stop after the update in hand."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
