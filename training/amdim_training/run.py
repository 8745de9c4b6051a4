"""One training run's state: encoder, optimiser, place in the schedule, checkpoints.

`Run.update` is a whole update; when to log, score and save is for `train` to say.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amdim_training.accumulation import backward_in_parts
from amdim_training.averaging import WeightAverage
from amdim_training.checkpoint import (
    load_averaged,
    load_checkpoint,
    load_state,
    load_state_if_any,
    load_weights,
    run_checkpoints,
    save_checkpoint,
    step_folder,
)
from amdim_training.config import MemoryFormat, Precision, TrainConfig
from amdim_training.distributed import GlobalBatch
from amdim_training.encoder import AmdimEncoder, EncoderFeatures
from amdim_training.errors import ConfigError
from amdim_training.growth import deepened
from amdim_training.loss import LossTerms, Sources, draw_sources
from amdim_training.mixture import MixtureHead
from amdim_training.online_classifiers import ClassifierTrainer
from amdim_training.optimizer import (
    make_optimizer,
    match_layout,
    optimizer_tensors,
    restore_optimizer,
)
from amdim_training.precision import autocast
from amdim_training.scaling import LossScaler
from amdim_training.schedule import learning_rate
from amdim_training.step import objective
from amdim_training.views import draw_pair, views_config

KEPT_CHECKPOINTS = 2
_MIXTURE = "mixture."
NORM_BATCHES = 32
"""Batches of training views that the averaged encoder's batch norms are recomputed on."""


class Run:
    """A run that begins afresh, from another's checkpoint, or where its own folder left it.

    Args:
        config: The run.
        pixels: (N, P, P, 3) uint8 training images, on the device or, too many for it, on the CPU.
        labels: (N,) int64, for the classifiers beside the encoder; -1 is none.
        batch: This process's part of the batch, where there are several.
        device: Where the encoder trains; by default where the pixels are.

    Raises:
        ConfigError: The folder holds a run of another configuration, or the device cannot do
            what is asked.
        CheckpointError: The checkpoint to go on from is broken.
    """

    def __init__(
        self,
        config: TrainConfig,
        pixels: Tensor,
        labels: Tensor | None = None,
        batch: GlobalBatch | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.config, self.pixels, self.batch = config, pixels, batch
        self.device = device or pixels.device
        self.folder = Path(config.run.out)
        self.views = views_config(config.data)
        self.steps_per_epoch = len(pixels) // config.optim.batch_size
        self.steps = config.optim.steps or config.optim.epochs * self.steps_per_epoch
        self.step = 0
        self.settled: Mapping[str, Any] = {}
        """What `choices.settle` measured; a run that goes on has its earlier part's."""
        self._order: tuple[int, Tensor] | None = None
        torch.manual_seed(config.run.seed)
        self.encoder = AmdimEncoder(config.encoder).to(self.device)
        named = config.run.memory_format == "contiguous"
        self._layout = torch.contiguous_format if named else torch.channels_last
        self.encoder.to(memory_format=self._layout)  # type: ignore[call-overload]
        self.mixture = (
            MixtureHead(config.encoder.embed_dim, config.loss.mixtures).to(self.device)
            if config.loss.mixtures
            else None
        )
        self.optimizer = make_optimizer((value for _, value in self._trained()), config.optim)
        self.classifiers = (
            ClassifierTrainer(config.encoder.embed_dim, labels, config.optim, self.device)
            if config.data.classifiers and labels is not None
            else None
        )
        self.average = (
            WeightAverage(self.encoder, config.optim.ema_decay) if config.optim.ema_decay else None
        )
        self.scaler = LossScaler(self.device, enabled=config.run.precision == "fp16")
        self._restore()
        self._forward, self._mixture = self._wrapped()
        self.encoder.train()

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that logs and saves."""
        return self.batch is None or self.batch.rank == 0

    def update(self, precision: Precision) -> dict[str, Tensor]:
        """Makes one update; everything random in it follows from the seed and its number.

        Returns:
            Scalars by name: the objective's terms, and the classifiers' where there are any.
        """
        optim = self.config.optim
        rank, world = (self.batch.rank, self.batch.world_size) if self.batch else (0, 1)
        indices = self._batch_indices()
        n = len(indices) // world
        mine = indices[rank * n : (rank + 1) * n]
        generator = self._generator(rank)
        torch.manual_seed(generator.initial_seed())  # the classifiers' dropout
        views = self.draw_views(self.pictures(mine), generator)
        drawn = draw_sources(n, device=self.device, generator=generator)
        rate = learning_rate(optim, self.step, self.steps, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        terms, first, second = self._backward(views, drawn, precision)
        self.scaler.step(self.optimizer)
        self.step += 1
        if self.average is not None:
            self.average.update(self.encoder)
        losses = {name: term.detach() for name, term in terms._asdict().items()}
        if self.classifiers is not None:
            losses |= self.classifiers.update((first.f1, second.f1), mine.to(self.device), rate)
        return losses

    def _backward(
        self, views: tuple[Tensor, Tensor], sources: Sources, precision: Precision
    ) -> tuple[LossTerms, EncoderFeatures, EncoderFeatures]:
        """Adds the objective's gradient to the encoder's, whole or in parts."""

        def encode(images: Tensor) -> EncoderFeatures:
            with autocast(self.device, precision):
                features: EncoderFeatures = self._forward(images)
            return features

        def score(first: EncoderFeatures, second: EncoderFeatures) -> LossTerms:
            return objective(
                first,
                second,
                self.config.loss,
                sources=sources,
                batch=self.batch,
                mixture=self._mixture,
            )

        if part := self.config.optim.part_size:
            scaled = self.scaler.scale
            return backward_in_parts(self.encoder, encode, score, views, part=part, scaled=scaled)
        first, second = encode(views[0]), encode(views[1])
        terms = score(first, second)
        self.scaler.scale(terms.total).backward()
        return terms, first, second

    def trial_step(self, precision: Precision) -> None:
        """Runs a step's forward and backward pass and leaves no trace of it."""
        buffers = {key: value.clone() for key, value in self.encoder.named_buffers()}
        first = torch.arange(self.config.optim.batch_size)
        views = self.draw_views(self.pictures(first), self._generator(0))
        drawn = draw_sources(len(views[0]), device=self.device, generator=self._generator(1))
        terms, _, _ = self._backward(views, drawn, precision)
        terms.total.item()  # waits for the device
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for key, value in self.encoder.named_buffers():
                value.copy_(buffers[key])

    def save(self) -> Path:
        """Writes a checkpoint to go on from and drops all but the newest few."""
        folder = step_folder(self.folder, self.step)
        if self.is_first and not folder.exists():
            averaged = None
            if self.average is not None:
                averaged = self.average.refresh_norms(self._norm_views())
            save_checkpoint(
                folder,
                self.encoder,
                self.views.normalization,
                meta={
                    "step": self.step,
                    "train": self.config.to_dict(),
                    "settled": dict(self.settled),
                },
                state=self._state(),
                averaged=averaged,
            )
            for old in run_checkpoints(self.folder)[:-KEPT_CHECKPOINTS]:
                shutil.rmtree(old, ignore_errors=True)
        return folder

    def draw_views(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns two random views of (N, P, P, 3) uint8 images, as the encoder takes them."""
        size = self.config.encoder.image_size
        first, second = draw_pair(images, size, self.views, generator)
        return (
            first.contiguous(memory_format=self._layout),
            second.contiguous(memory_format=self._layout),
        )

    def pictures(self, indices: Tensor) -> Tensor:
        """Returns (n, P, P, 3) uint8 training images on the device, by (n,) int64 places."""
        return self.pixels[indices.to(self.pixels.device)].to(self.device)

    def _generator(self, rank: int) -> torch.Generator:
        seed = self.config.run.seed * 1_000_003 + self.step + rank * 1_000_000_007
        return torch.Generator().manual_seed(seed)

    def _norm_views(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.step)
        size = min(self.config.optim.batch_size, 256)
        for _ in range(NORM_BATCHES):
            indices = torch.randint(len(self.pixels), (size,), generator=generator)
            yield self.draw_views(self.pictures(indices), generator)[0]

    def _batch_indices(self) -> Tensor:
        """Returns (N,) int64 places of this update's images; an epoch's last part is dropped."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.config.run.seed * 7_919 + epoch)
            self._order = epoch, torch.randperm(len(self.pixels), generator=generator)
        size = self.config.optim.batch_size
        return self._order[1][place * size : (place + 1) * size]

    def _wrapped(self) -> tuple[Callable[[Tensor], Any], Callable[[Tensor], Tensor] | None]:
        """Returns encoder and mixture head as this run wants them: spread, compiled, or plain."""
        optim, encoder = self.config.optim, self.encoder
        if self.batch is None:
            return self._built(self.config.run.compile is True), self.mixture
        if self.classifiers is not None:
            raise ConfigError("data.classifiers is for one process; amdim evaluate scores later")
        if optim.part_size:
            raise ConfigError("optim.part_size is for one process; give each a smaller batch")
        if optim.batch_size % self.batch.world_size:
            raise ConfigError(f"{self.batch.world_size} processes do not divide the batch evenly")
        if optim.batch_norm == "global":
            if self.device.type != "cuda":
                raise ConfigError("optim.batch_norm = global needs GPUs; local works anywhere")
            encoder = nn.SyncBatchNorm.convert_sync_batchnorm(encoder)
        spread = nn.parallel.DistributedDataParallel(
            encoder,
            broadcast_buffers=False,  # two forward passes precede one backward pass
            find_unused_parameters=len(self.config.loss.tasks) < 3,  # a head may be idle
        )
        mixture = self.mixture and nn.parallel.DistributedDataParallel(self.mixture)
        return spread, mixture

    def use_memory_format(self, wanted: MemoryFormat) -> None:
        """Has the encoder compute in this order of channels from now on; for one process."""
        contiguous = wanted == "contiguous"
        self._layout = torch.contiguous_format if contiguous else torch.channels_last
        self.encoder.to(memory_format=self._layout)  # type: ignore[call-overload]
        match_layout(self.optimizer)

    def use_compiled(self, wanted: bool) -> None:
        """Has torch.compile build the encoder from now on, or not; for one process."""
        self._forward = self._built(wanted)

    def _built(self, compiled: bool) -> Callable[[Tensor], Any]:
        return torch.compile(self.encoder) if compiled else self.encoder

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        """Returns what the optimiser moves, by name."""
        named = list(self.encoder.named_parameters())
        if self.mixture is not None:
            named += [(_MIXTURE + name, value) for name, value in self.mixture.named_parameters()]
        return named

    def _state(self) -> dict[str, Tensor]:
        """Returns what a run needs to go on from, besides the encoder's weights."""
        state = optimizer_tensors(self.optimizer, self._trained())
        if self.mixture is not None:
            weights = self.mixture.state_dict()
            state |= {_MIXTURE + name: value.cpu() for name, value in weights.items()}
        if self.classifiers is not None:
            state |= self.classifiers.state()
        return state | self.scaler.state()

    def _restore(self) -> None:
        saved = run_checkpoints(self.folder)
        if saved:
            checkpoint = load_checkpoint(saved[-1])
            self._check_same_run(checkpoint.meta)
            self.step = int(checkpoint.meta["step"])
            self.settled = dict(checkpoint.meta.get("settled", {}))
        elif self.config.run.init_from:
            checkpoint = load_checkpoint(self.config.run.init_from)
        else:
            return
        grows = checkpoint.encoder.config != self.config.encoder
        start = deepened(checkpoint.encoder, self.config.encoder) if grows else checkpoint.encoder
        load_weights(self.encoder, start.state_dict(), checkpoint.path)
        # a published encoder comes without a run's state, and a deeper one has units that the
        # state knows nothing of: the moments then start afresh
        state = load_state(checkpoint.path) if saved else load_state_if_any(checkpoint.path)
        if grows:
            state = {}
        if self.mixture is not None and f"{_MIXTURE}output.weight" in state:
            names = self.mixture.state_dict()
            self.mixture.load_state_dict({name: state[_MIXTURE + name] for name in names})
        restore_optimizer(self.optimizer, self._trained(), state)
        if self.classifiers is not None:
            self.classifiers.restore(state)
        self.scaler.restore(state)
        if self.average is not None:
            self.average = WeightAverage(self.encoder, self.config.optim.ema_decay)
            averaged = None if grows else load_averaged(checkpoint.path)
            if averaged is not None:
                load_weights(self.average.encoder, averaged, checkpoint.path)
                self.average.updates = self.step

    def _check_same_run(self, meta: Mapping[str, Any]) -> None:
        # read back rather than compared as JSON: a key that is newer than the run has its default
        was = TrainConfig.from_dict(meta.get("train", {}))
        for section in ("encoder", "loss", "data", "optim"):
            if getattr(was, section) != getattr(self.config, section):
                raise ConfigError(
                    f"{self.folder} holds a run with another [{section}]; "
                    "choose another run.out, or begin from it with run.init_from"
                )
