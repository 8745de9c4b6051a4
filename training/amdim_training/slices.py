"""A slice of training on one device: minutes long, at full speed, begun from weights alone.

The host only launches: views, passes and the update follow each other on the device in fixed
shapes, losses are read every hundred updates. Knows no files; `training/gpu_slice.py` has them.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from amdim_training.averaging import WeightAverage
from amdim_training.config import LossConfig, OptimConfig, OptimizerName, Precision
from amdim_training.device_views import DeviceViews
from amdim_training.encoder import AmdimEncoder
from amdim_training.errors import DataError, DivergedError
from amdim_training.loss import LossTerms
from amdim_training.optimizer import make_optimizer
from amdim_training.step import train_step
from amdim_training.views import ViewsConfig

NORM_BATCHES = 32

Note = Callable[[dict[str, float]], None]


@dataclasses.dataclass(frozen=True, slots=True)
class SliceConfig:
    """How a slice trains.

    Attributes:
        batch_size: Pairs an update; each is the others' negative.
        optimizer: muon learned more of the same pairs wherever both were tried (README.md).
        learning_rate: Reached after the warm-up, kept until the rate falls.
        warmup_steps: Updates in which the rate rises from zero: the optimiser's moments are new.
        ema_decay: Share of the averaged weights kept at an update.
        log_every: Updates between two looks at the losses.
    """

    batch_size: int = 1024
    optimizer: OptimizerName = "muon"
    learning_rate: float = 2e-3
    warmup_steps: int = 200
    ema_decay: float = 0.999
    precision: Precision = "bf16"
    compiled: bool = True
    log_every: int = 100
    seed: int = 0


class Slice:
    """One encoder being trained on one device.

    Args:
        encoder: Trained in place; moved to the device.
        views: The augmentation.
        config: Batch, rate and speed.
        device: Where all of it happens.
    """

    def __init__(
        self, encoder: AmdimEncoder, views: ViewsConfig, config: SliceConfig, device: torch.device
    ) -> None:
        if device.type == "cuda":
            # scores come of bf16 features, 8 bits; TF32 keeps 10 and is several times faster
            torch.set_float32_matmul_precision("high")
        self.config, self.device, self.step = config, device, 0
        self.encoder = encoder.to(device).train()
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = WeightAverage(self.encoder, config.ema_decay)
        self._optimizer = make_optimizer(
            self.encoder.parameters(),
            OptimConfig(optimizer=config.optimizer, learning_rate=config.learning_rate),
        )
        self._drawing = DeviceViews(encoder.config.image_size, views, device)
        self._generator = torch.Generator(device).manual_seed(config.seed)
        self._losses = torch.zeros(len(LossTerms._fields), device=device)
        self._encode = torch.compile(self.encoder) if config.compiled else self.encoder
        if config.compiled:
            self._drawing.compile()
        self._pixels = torch.empty(0, dtype=torch.uint8, device=device)
        self._order: Iterator[Tensor] = iter(())

    def take(self, pixels: Tensor) -> None:
        """Adds (N, P, P, 3) uint8 pictures; the next epoch begins with them among the others."""
        there = pixels.to(self.device)
        self._pixels = torch.cat([self._pixels, there]) if len(self._pixels) else there
        self._order = iter(())

    @property
    def pictures(self) -> int:
        """How many pictures it has."""
        return len(self._pixels)

    def run(
        self,
        seconds: float,
        *,
        decay: float = 0.0,
        note: Note | None = None,
        more: Callable[[], list[Tensor]] | None = None,
    ) -> None:
        """Updates for so long.

        Args:
            seconds: From now on; the first updates' compilation counts.
            decay: Last share of the time over which the rate falls to zero, in 0..1.
            note: Told losses, rate and pairs/s every `log_every` updates.
            more: Asked for pictures that came in the meantime, as often.

        Raises:
            DataError: There are not pictures enough for a batch.
            DivergedError: The loss is no longer finite.
        """
        if len(self._pixels) < self.config.batch_size:
            raise DataError(f"{len(self._pixels)} pictures do not fill a batch")
        begun = time.monotonic()
        last, since = begun, self.step
        while (now := time.monotonic()) < begun + seconds:
            left = (begun + seconds - now) / seconds
            self.update(min(1.0, left / decay) if decay else 1.0)
            if self.step % self.config.log_every:
                continue
            losses = self._read_losses()  # the one place where the host waits
            now = time.monotonic()
            if note is not None:
                rate = (self.step - since) * self.config.batch_size / (now - last)
                note({**losses, "step": self.step, "lr": self._lr, "pairs_per_s": rate})
            last, since = now, self.step
            for pixels in more() if more is not None else ():
                self.take(pixels)

    def update(self, share: float = 1.0) -> None:
        """Makes one update at a share of the learning rate, in 0..1; waits for nothing."""
        config = self.config
        self._lr = config.learning_rate * share
        self._lr *= min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr
        batch = self._pixels[self._next_indices()]
        views = self._drawing.draw_pair(batch, self._generator)
        self._optimizer.zero_grad(set_to_none=True)
        terms = train_step(self._encode, LossConfig(), views, precision=config.precision)
        terms.total.backward()
        self._optimizer.step()
        self.average.update(self.encoder)
        self._losses += torch.stack(terms).detach()
        self.step += 1

    def averaged(self) -> AmdimEncoder:
        """Returns the averaged encoder with batch norms recomputed on training views."""
        size = min(256, len(self._pixels))

        def batches() -> Iterator[Tensor]:
            for _ in range(NORM_BATCHES):
                rows = torch.randperm(
                    len(self._pixels), generator=self._generator, device=self.device
                )[:size]
                yield self._drawing.draw_pair(self._pixels[rows], self._generator)[0]

        return self.average.refresh_norms(batches())

    def _next_indices(self) -> Tensor:
        batch = next(self._order, None)
        if batch is None or len(batch) < self.config.batch_size:
            order = torch.randperm(len(self._pixels), generator=self._generator, device=self.device)
            self._order = iter(order.split(self.config.batch_size))
            batch = next(self._order)
        return batch

    def _read_losses(self) -> dict[str, float]:
        means = (self._losses / self.config.log_every).tolist()
        self._losses.zero_()
        if not math.isfinite(means[-1]):
            raise DivergedError(f"the loss is not finite at update {self.step}")
        return dict(zip(LossTerms._fields, means, strict=True))
