"""Compares this package with recorded outputs of the original program, quantity by quantity.

The recordings are data (`amdim/golden`); nothing of the original program is here. The tests and
`benchmarks/golden.py` run the same comparisons, so that the printed errors are the tested ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amdim_training.classifiers import classifier_loss
from amdim_training.encoder import AmdimEncoder, EncoderFeatures
from amdim_training.loss import LossTerms, clipped_scores, infomax_loss, nce_scores
from amdim_training.reference import load_reference

ENCODER_CASES = tuple(f"enc{size}_{norm}" for size in (32, 64, 128) for norm in ("nobn", "bn"))
LEGACY_CASE = "enc32_nobn_half_cuda_legacy"
LOSS_CASES = ("nce_0", "nce_1", "nce_2")
CLASSIFIER_CASE = "xent"

Recorded = Mapping[str, npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """One quantity against its recording.

    Attributes:
        case: The recording's file, without suffix.
        quantity: What was compared.
        error: Largest absolute difference.
        share: Largest difference as a share of the tolerance at its place; at most 1 holds.
        largest: Largest absolute recorded value.
        tolerance: The tolerance, as the recordings' README gives it.
    """

    case: str
    quantity: str
    error: float
    share: float
    largest: float
    tolerance: str

    @property
    def holds(self) -> bool:
        """Whether every element is within the tolerance."""
        return self.share <= 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class _Tolerance:
    """|a - b| <= absolute + relative * |b|."""

    absolute: float
    relative: float

    def compare(self, case: str, quantity: str, got: Any, recorded: Any) -> Comparison:
        a, b = (np.asarray(value, dtype=np.float64) for value in (got, recorded))
        if a.shape != b.shape:
            raise ValueError(f"{case} {quantity}: {a.shape} against the recorded {b.shape}")
        error = np.abs(a - b)
        share = error / (self.absolute + self.relative * np.abs(b))
        text = f"{self.absolute:.0e} + {self.relative:.0e}*|b|"
        # nan_to_num: a NaN must fail, and comparisons with NaN do not
        worst = float(np.nan_to_num(share, nan=np.inf).max())
        return Comparison(case, quantity, float(error.max()), worst, float(np.abs(b).max()), text)


# Source: amdim/golden/README.md, "Tolerances"
_FEATURES = _Tolerance(2e-4, 1e-4)
_LOSS = _Tolerance(1e-5, 0.0)
_PENALTY = _Tolerance(0.0, 1e-5)
_GRADIENT = _Tolerance(1e-6, 1e-3)


def read_recording(golden: Path, name: str) -> dict[str, npt.NDArray[Any]]:
    """Returns the arrays of one `.npz` of the recordings."""
    with np.load(golden / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def compare_encoder(golden: Path, case: str) -> Iterator[Comparison]:
    """Compares a checkpoint's features, activations, per-layer statistics and classifier logits.

    Args:
        golden: The folder of the recordings.
        case: One of `ENCODER_CASES`, or `LEGACY_CASE` (features only).
    """
    recorded = read_recording(golden, f"{case}_out")
    encoder, config, extras = load_reference(golden / f"{case}.pth")
    images = torch.from_numpy(read_recording(golden, f"input{config.image_size}")["x"]).float()
    with torch.inference_mode():
        features = encoder(images)
        yield from _compare_features(case, "", features, recorded)
        if case == LEGACY_CASE:
            return
        activations = encoder.activations(images)
        for grid in (1, 5, 7):
            name = f"act{grid}"
            yield _FEATURES.compare(case, name, activations[grid], recorded[name])
        yield from _compare_layers(case, encoder, images, recorded)
        if extras.classifiers is not None:
            logits = extras.classifiers(features.f1)
            yield _FEATURES.compare(case, "logits_mlp", logits.mlp, recorded["logits_mlp"])
            yield _FEATURES.compare(case, "logits_lin", logits.linear, recorded["logits_lin"])
    if "train_f1" in recorded:
        yield from _compare_train_mode(case, encoder, images, recorded)


def compare_loss(golden: Path, case: str) -> Iterator[Comparison]:
    """Compares the infomax terms, their gradients and one direction's intermediate values."""
    recorded = read_recording(golden, case)
    tensors = {
        key: torch.from_numpy(value).requires_grad_()
        for key, value in recorded.items()
        if key.startswith("r") and key[1].isdigit()
    }
    clip = float(recorded["tclip"])
    views = [
        EncoderFeatures(tensors[f"r1_{x}"].flatten(1), tensors[f"r5_{x}"], tensors[f"r7_{x}"])
        for x in ("x1", "x2")
    ]
    index_a, index_b = (torch.from_numpy(recorded[f"idx_r5_{x}"]) for x in ("x1", "x2"))
    terms = infomax_loss(views[0], views[1], clip=clip, sources=(index_a, index_b))
    terms.total.backward()
    yield from _compare_terms(case, terms, recorded)
    for key in ("r1_x1", "r5_x1", "r7_x2"):
        yield _GRADIENT.compare(case, f"grad_{key}", tensors[key].grad, recorded[f"grad_{key}"])
    yield from _compare_direction(case, views[0].f1, views[1].f7.flatten(2), clip, recorded)


def compare_classifier_loss(golden: Path) -> Iterator[Comparison]:
    """Compares the online classifiers' loss and its gradient."""
    recorded = read_recording(golden, CLASSIFIER_CASE)
    logits = torch.from_numpy(recorded["xent_logits"]).requires_grad_()
    loss = classifier_loss(logits, torch.from_numpy(recorded["xent_labels"]))
    loss.backward()
    yield _LOSS.compare(CLASSIFIER_CASE, "loss", loss.detach(), recorded["xent_loss"])
    yield _GRADIENT.compare(CLASSIFIER_CASE, "grad", logits.grad, recorded["xent_grad"])


def compare_all(golden: Path) -> Iterator[Comparison]:
    """Runs every comparison of encoder, loss and classifiers."""
    for case in (*ENCODER_CASES, LEGACY_CASE):
        yield from compare_encoder(golden, case)
    for case in LOSS_CASES:
        yield from compare_loss(golden, case)
    yield from compare_classifier_loss(golden)


def _compare_features(
    case: str, prefix: str, features: EncoderFeatures, recorded: Recorded
) -> Iterator[Comparison]:
    for name, value in zip(("f1", "f5", "f7"), features, strict=True):
        expected = recorded[prefix + name]
        got = value.detach().reshape(expected.shape)  # (N, D) -> (N, D, 1, 1) for f1
        yield _FEATURES.compare(case, prefix + name, got, expected)


def _compare_layers(
    case: str, encoder: AmdimEncoder, images: Tensor, recorded: Recorded
) -> Iterator[Comparison]:
    outputs: list[Tensor] = []
    x = images
    for layer in encoder.layers:
        x = layer(x)
        outputs.append(x)
    shapes = [tuple(output.shape[1:]) for output in outputs]
    means = [float(output.double().mean()) for output in outputs]
    sizes = [float(output.double().abs().mean()) for output in outputs]
    yield _Tolerance(0.5, 0.0).compare(case, "act_shapes", shapes, recorded["act_shapes"])
    yield _FEATURES.compare(case, "act_mean", means, recorded["act_mean"])
    yield _FEATURES.compare(case, "act_absmean", sizes, recorded["act_absmean"])


def _compare_train_mode(
    case: str, encoder: AmdimEncoder, images: Tensor, recorded: Recorded
) -> Iterator[Comparison]:
    """Compares one forward on batch statistics, and the running statistics it leaves behind."""
    encoder.train()
    with torch.no_grad():
        yield from _compare_features(case, "train_", encoder(images), recorded)
    buffers = {
        "encoder.module.layer_list.8.bn": "layers.8",
        "encoder.module.rkhs_block_5.bn_out.bn": "head5.bn_out",
        "encoder.module.rkhs_block_7.bn_out.bn": "head7.bn_out",
        "encoder.module.layer_list.4.bn": "layers.4",
    }
    own = dict(encoder.named_buffers())
    for key, expected in recorded.items():
        name, _, statistic = key.removeprefix("after_train:").rpartition(".")
        if not key.startswith("after_train:"):
            continue
        buffer = own.get(f"{buffers[name]}.{statistic}")
        if buffer is not None:  # a norm that is switched off does not exist here
            yield _FEATURES.compare(
                case, f"after_train {buffers[name]}.{statistic}", buffer, expected
            )


def _compare_terms(case: str, terms: LossTerms, recorded: Recorded) -> Iterator[Comparison]:
    names = {
        "loss_1t5": terms.global_to_5,
        "loss_1t7": terms.global_to_7,
        "loss_5t5": terms.five_to_5,
    }
    for name, value in names.items():
        yield _LOSS.compare(case, name, value.detach(), recorded[name])
    yield _PENALTY.compare(case, "lgt_reg", terms.penalty.detach(), recorded["lgt_reg"])
    # the total holds the penalty, whose tolerance is relative
    allowed = _LOSS.absolute + _PENALTY.relative * abs(float(recorded["lgt_reg"]))
    total = _Tolerance(allowed, 0.0)
    yield total.compare(case, "loss_total", terms.total.detach(), recorded["loss_total"])


def _compare_direction(
    case: str, sources: Tensor, targets: Tensor, clip: float, recorded: Recorded
) -> Iterator[Comparison]:
    prefix = "dir_1t7_x1x2_"
    with torch.inference_mode():
        log_probability, mean_square = nce_scores(sources, targets, clip=clip)
        scores, _ = clipped_scores(sources, targets, clip=clip)
    positives = scores.diagonal(dim1=0, dim2=1).T  # (L, N) -> (N, L)
    expected = recorded[f"{prefix}logsoftmax"]
    yield _LOSS.compare(case, f"{prefix}logsoftmax", log_probability, expected)
    yield _LOSS.compare(case, f"{prefix}pos_clipped", positives, recorded[f"{prefix}pos_clipped"])
    yield _PENALTY.compare(case, f"{prefix}reg", 0.05 * mean_square, recorded[f"{prefix}reg"])
