"""Trains an encoder: configuration in, a run folder of checkpoints and a log out.

Reads top to bottom: `train` prepares, `_loop` repeats `train_step`, `_Run` keeps the books. The
step itself neither logs nor saves.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amdim_clients.images import Preprocess
from amdim_training.allocator import keep_freed_memory
from amdim_training.checkpoint import (
    load_checkpoint,
    load_state,
    load_weights,
    resolve,
    run_checkpoints,
    save_checkpoint,
    step_folder,
)
from amdim_training.config import LossConfig, Precision, TrainConfig
from amdim_training.data import load_images
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import ConfigError, DataError
from amdim_training.loss import Batch, LossTerms, Sources, draw_sources, infomax_loss
from amdim_training.online import online_knn
from amdim_training.precision import autocast, choose_precision
from amdim_training.schedule import learning_rate
from amdim_training.views import VIEWS, draw_pair, views_config

LOG_FILE = "log.jsonl"
KEPT_CHECKPOINTS = 2
_EVALUATION_SPLITS = ("val", "test")

_log = logging.getLogger(__name__)

Report = Callable[[Mapping[str, Any]], None]


def train_step(
    encoder: Callable[[Tensor], Any],
    loss: LossConfig,
    views: tuple[Tensor, Tensor],
    *,
    precision: Precision = "fp32",
    sources: Sources | None = None,
    batch: Batch | None = None,
) -> LossTerms:
    """Returns the objective of one pair of batches, ready for `total.backward()`.

    Args:
        encoder: Maps (N, 3, S, S) to EncoderFeatures; each view is a forward pass of its own.
        loss: The objective's constants.
        views: Two (N, 3, S, S) float32 batches, the same images in the same order.
        precision: Of the forward passes; scores are float32 always.
        sources: 5->5 source locations; drawn when not given.
        batch: Where the images are spread over processes (`infomax_loss`).
    """
    with autocast(views[0].device, precision):
        first, second = encoder(views[0]), encoder(views[1])
    return infomax_loss(
        first,
        second,
        clip=loss.score_clip or None,
        penalty_weight=loss.penalty_weight,
        sources=sources,
        tasks=loss.tasks,
        batch=batch,
    )


def train(config: TrainConfig, *, report: Report | None = None) -> Path:
    """Trains until the last update, the time limit or a signal; returns the last checkpoint.

    Called again with the same configuration it goes on where it stopped.

    Args:
        config: The run.
        report: Called with each log record: step, losses, rates.

    Raises:
        ConfigError: The configuration contradicts itself or the run being continued.
        CheckpointError: A checkpoint to go on from is broken.
        DataError: The data is missing or unreadable.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keep_freed_memory()
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    side = config.data.source_size or config.encoder.image_size
    images = load_images(config.data.train, Preprocess(image_size=side, resize=side))
    if len(images) < config.optim.batch_size:
        raise DataError(f"{len(images)} images cannot fill a batch of {config.optim.batch_size}")
    _log.info("%d images to train on, %d skipped", len(images), len(images.skipped))
    run = _Run(config, device, len(images), report)
    scorer = _make_scorer(config)
    with _stop_signals() as stop:
        return _loop(run, torch.from_numpy(images.pixels).to(device), scorer, stop)


def _loop(
    run: _Run,
    pixels: Tensor,
    scorer: Callable[[AmdimEncoder], dict[str, float]] | None,
    stop: threading.Event,
) -> Path:
    config = run.config
    precision = choose_precision(config.run.precision, lambda p: run.trial_step(pixels, p))
    run.note({"event": "start", "step": run.step, "precision": precision, **run.facts()})
    limit = config.run.stop_after_minutes * 60 or float("inf")
    started = time.monotonic()
    while run.step < run.steps and not stop.is_set() and time.monotonic() - started < limit:
        terms = run.update(pixels, precision)
        run.count(terms)
        if run.step % config.run.log_every == 0:
            run.log()
        if scorer and config.run.evaluate_every and run.step % config.run.evaluate_every == 0:
            run.note({"event": "knn", "step": run.step, **scorer(run.encoder)})
        if run.step % config.run.save_every == 0:
            run.save()
    folder = run.save()
    if scorer and run.step >= run.steps:
        run.note({"event": "knn", "step": run.step, **scorer(run.encoder)})
    return folder


class _Run:
    """One run's encoder, optimiser, place in the schedule and log."""

    def __init__(
        self, config: TrainConfig, device: torch.device, images: int, report: Report | None
    ) -> None:
        self.config = config
        self.device = device
        self.folder = Path(config.run.out)
        self.views = views_config(config.data.views, config.data.without)
        self.images = images
        self.steps_per_epoch = images // config.optim.batch_size
        self.steps = config.optim.steps or config.optim.epochs * self.steps_per_epoch
        self.step = 0
        self._report = report
        self._order: tuple[int, Tensor] | None = None
        self._window: list[Tensor] = []
        self._window_started = time.monotonic()
        torch.manual_seed(config.run.seed)
        self.encoder = AmdimEncoder(config.encoder).to(device)
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(
            self.encoder.parameters(),
            lr=config.optim.learning_rate,
            betas=config.optim.betas,
            eps=config.optim.eps,
            weight_decay=config.optim.weight_decay,
            fused=True,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._restore()
        self._forward: Callable[[Tensor], Any] = (
            torch.compile(self.encoder) if config.run.compile else self.encoder
        )
        self.encoder.train()

    def facts(self) -> dict[str, Any]:
        """What decides a run's speed and numbers, for the log."""
        return {
            "images": self.images,
            "steps": self.steps,
            "torch": torch.__version__,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "config": self.config.to_dict(),
        }

    def update(self, pixels: Tensor, precision: Precision) -> LossTerms:
        """Makes one update; everything random in it follows from the seed and its number."""
        optim = self.config.optim
        generator = torch.Generator().manual_seed(self.config.run.seed * 1_000_003 + self.step)
        batch = pixels[self._batch_indices().to(self.device)]
        size = self.config.encoder.image_size
        first, second = (
            view.contiguous(memory_format=torch.channels_last)
            for view in draw_pair(batch, size, self.views, generator)
        )
        sources = draw_sources(optim.batch_size, device=self.device, generator=generator)
        terms = train_step(
            self._forward, self.config.loss, (first, second), precision=precision, sources=sources
        )
        rate = learning_rate(optim, self.step, self.steps, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        self.optimizer.step()
        self.step += 1
        return terms

    def trial_step(self, pixels: Tensor, precision: Precision) -> None:
        """Runs a step's forward and backward pass and leaves no trace of it."""
        buffers = {key: value.clone() for key, value in self.encoder.named_buffers()}
        generator = torch.Generator().manual_seed(0)
        batch = pixels[: self.config.optim.batch_size]
        views = draw_pair(batch, self.config.encoder.image_size, self.views, generator)
        first, second = (v.contiguous(memory_format=torch.channels_last) for v in views)
        random_state = torch.get_rng_state()
        terms = train_step(self._forward, self.config.loss, (first, second), precision=precision)
        terms.total.backward()
        terms.total.item()  # waits for the device
        self.optimizer.zero_grad(set_to_none=True)
        torch.set_rng_state(random_state)
        with torch.no_grad():
            for key, value in self.encoder.named_buffers():
                value.copy_(buffers[key])

    def count(self, terms: LossTerms) -> None:
        """Remembers an update's losses without waiting for the device."""
        self._window.append(torch.stack(terms).detach())

    def log(self) -> None:
        """Writes the mean losses and the speed since the last record."""
        seconds = time.monotonic() - self._window_started
        losses = torch.stack(self._window).mean(dim=0).tolist()
        pairs = len(self._window) * self.config.optim.batch_size
        self.note(
            {
                "event": "step",
                "step": self.step,
                "of": self.steps,
                "pairs": self.step * self.config.optim.batch_size,
                "lr": self.optimizer.param_groups[0]["lr"],
                **{name: round(v, 5) for name, v in zip(LossTerms._fields, losses, strict=True)},
                "pairs_per_s": round(pairs / seconds, 1),
            }
        )
        if not all(map(math.isfinite, losses)):
            raise ConfigError(f"the loss is no longer finite at update {self.step}")
        self._window.clear()
        self._window_started = time.monotonic()

    def note(self, record: Mapping[str, Any]) -> None:
        """Appends one record to the log file and hands it to whoever listens."""
        with (self.folder / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 1), **record}) + "\n")
        if self._report is not None:
            self._report(record)

    def save(self) -> Path:
        """Writes a checkpoint to go on from and drops all but the newest few."""
        folder = step_folder(self.folder, self.step)
        if not folder.exists():
            save_checkpoint(
                folder,
                self.encoder,
                self.views.normalization,
                meta={"step": self.step, "train": self.config.to_dict()},
                state=self._optimizer_tensors(),
            )
        for old in run_checkpoints(self.folder)[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old, ignore_errors=True)
        return folder

    def _batch_indices(self) -> Tensor:
        """Returns (N,) int64 places of this update's images; an epoch's last part is dropped."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.config.run.seed * 7_919 + epoch)
            self._order = epoch, torch.randperm(self.images, generator=generator)
        size = self.config.optim.batch_size
        return self._order[1][place * size : (place + 1) * size]

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.encoder.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value.detach().cpu().contiguous()
        return tensors

    def _restore(self) -> None:
        saved = run_checkpoints(self.folder)
        if saved:
            checkpoint = load_checkpoint(saved[-1])
            self._check_same_run(checkpoint.meta)
            self.step = int(checkpoint.meta["step"])
        elif self.config.run.init_from:
            checkpoint = load_checkpoint(self.config.run.init_from)
            if checkpoint.encoder.config != self.config.encoder:
                raise ConfigError("init_from holds an encoder of another shape")
        else:
            return
        load_weights(self.encoder, checkpoint.encoder.state_dict(), checkpoint.path)
        self._restore_optimizer(load_state(resolve(checkpoint.path)))

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.encoder.named_parameters():
            state = {
                key: tensors[f"{key}/{name}"].clone()
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}/{name}" in tensors
            }
            for key in ("exp_avg", "exp_avg_sq"):
                if key in state:
                    state[key] = state[key].to(self.device, memory_format=torch.preserve_format)
            if state:
                self.optimizer.state[parameter] = {
                    key: torch.empty_like(parameter).copy_(value) if key != "step" else value
                    for key, value in state.items()
                }

    def _check_same_run(self, meta: Mapping[str, Any]) -> None:
        # read back rather than compared as JSON: a key that is newer than the run has its default
        was = TrainConfig.from_dict(meta.get("train", {}))
        for section in ("encoder", "loss", "data", "optim"):
            if getattr(was, section) != getattr(self.config, section):
                raise ConfigError(
                    f"{self.folder} holds a run with another [{section}]; "
                    "choose another run.out, or begin from it with run.init_from"
                )


def _make_scorer(config: TrainConfig) -> Callable[[AmdimEncoder], dict[str, float]] | None:
    data = config.data
    if not data.gallery or not data.queries:
        return None
    preprocess = Preprocess.for_image_size(config.encoder.image_size)
    gallery = load_images(data.gallery, preprocess).subset(data.gallery_limit)
    queries = load_images([data.queries], preprocess, splits=_EVALUATION_SPLITS)
    queries = queries.subset(data.query_limit)
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
