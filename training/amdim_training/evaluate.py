"""Scores of a frozen encoder: kNN, retrieval, linear and MLP on vectors encoded once; the paper's.

No test image decides anything, unless the reference's scoring is asked for: classifiers,
standardisation and whitening are fitted on training images only. Knows no command line.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amdim_clients.images import Preprocess
from amdim_training.data import ImageSet, load_images
from amdim_training.errors import ConfigError
from amdim_training.evaluation_data import Dataset, Task
from amdim_training.features import FEATURES, FrozenEncoder, Vectors
from amdim_training.frozen import FrozenOptions, frozen_scores, open_backbone
from amdim_training.knn import Neighbors, knn_predict, nearest_neighbors
from amdim_training.probes import fit_linear, fit_mlp, probe_accuracy
from amdim_training.retrieval import retrieval_scores
from amdim_training.views import VIEWS

FROZEN = "frozen"
"""The paper's protocol: both classifiers, on a fresh view of each image an epoch (`frozen.py`)."""
PROTOCOLS = ("knn", "retrieval", "linear", "mlp", FROZEN)
KNN_KS = (20, 5)
TEMPERATURE = 0.07
RECALL_KS = (1, 5)
AVERAGE_PRECISION_GALLERY = 20_000
"""Larger galleries get no mAP: it sorts the whole gallery for every query."""
EMBEDDING_COMPONENTS = 256
FIT_LIMIT = 20_000
"""Images a missing `embedding` is fitted on at most, as `amdim export` does."""

Report = Callable[[str], None]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """One protocol's numbers for one kind of vector on one task.

    Attributes:
        data: The data set.
        task: `queries->gallery`.
        features: Which vectors, of `FEATURES`.
        protocol: Of `PROTOCOLS`.
        metrics: Name to value; shares are 0..1.
        gallery: Images searched or trained on.
        queries: Images that counted.
        seconds: Wall time of scoring, encoding aside.
    """

    data: str
    task: str
    features: str
    protocol: str
    metrics: Mapping[str, float]
    gallery: int
    queries: int
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class LabelledVectors:
    """One split, encoded: kinds of vectors by name, each (N, F) float32, and (N,) labels."""

    vectors: Mapping[str, Tensor]
    labels: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Evaluation:
    """All scores of one encoder.

    Attributes:
        encoder: What was scored.
        embedding: Where the search vector's whitening came from.
        scores: In the order they were made.
        images_per_s: Of encoding, by split.
    """

    encoder: Mapping[str, Any]
    embedding: str
    scores: tuple[Score, ...]
    images_per_s: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        return dataclasses.asdict(self)


def evaluate(
    encoder: FrozenEncoder,
    datasets: Sequence[Dataset],
    *,
    protocols: Sequence[str] = ("knn", "retrieval"),
    features: Sequence[str] = FEATURES,
    fit_on: Sequence[Path] = (),
    gallery_limit: int | None = None,
    query_limit: int | None = None,
    frozen: FrozenOptions | None = None,
    report: Report | None = None,
) -> Evaluation:
    """Encodes every data set once and scores the vectors.

    An encoder without a search vector gets one fitted here: on `fit_on`, else on the training
    images of the first data set that has some.

    Args:
        encoder: What is scored.
        datasets: What it is scored on, in this order.
        protocols: Of `PROTOCOLS`; linear, mlp and frozen need classification data and pass over
            others.
        features: Of `FEATURES`.
        fit_on: Unlabelled training images for a missing search vector.
        gallery_limit: At most so many gallery images, the first of a fixed shuffle.
        query_limit: At most so many queries, likewise.
        frozen: How the paper's protocol is run; its own way where this says nothing.
        report: Called with a line on each thing done.

    Raises:
        ConfigError: An unknown protocol or kind of features.
        DataError: A data set cannot be read.
    """
    _check_names("protocol", protocols, PROTOCOLS)
    _check_names("features", features, FEATURES)
    report = report or _log.info
    on_vectors = [protocol for protocol in protocols if protocol != FROZEN]
    embedder = _Embedder(encoder, fit_on, needed=bool(on_vectors) and "embedding" in features)
    scores: list[Score] = []
    rates: dict[str, float] = {}
    for dataset in datasets:
        splits: dict[str, LabelledVectors] = {}
        for split in dataset.splits if on_vectors else ():
            is_query = all(split != task.gallery for task in dataset.tasks)
            images = dataset.load(split, embedder.preprocess)
            images = images.subset((query_limit if is_query else gallery_limit) or len(images))
            if split == "train":
                embedder.fit(images, dataset.name)
            started = time.perf_counter()
            vectors = encoder.encode(images.pixels)
            rate = len(images) / (time.perf_counter() - started)
            rates[f"{dataset.name} {split}"] = round(rate, 1)
            report(f"{dataset.name} {split}: {len(images)} images encoded, {rate:.0f} a second")
            kinds = embedder.kinds(vectors, features)
            splits[split] = LabelledVectors(kinds, torch.from_numpy(images.labels))
        for task in dataset.tasks:
            found = []
            if on_vectors:
                gallery, queries = splits[task.gallery], splits[task.queries]
                found = score_task(dataset.name, task, gallery, queries, protocols=on_vectors)
            if FROZEN in protocols and task.is_classification:
                limits = gallery_limit, query_limit
                options = frozen or FrozenOptions()
                found.append(_score_frozen(encoder, dataset, task, options, limits, report))
            for score in found:
                scores.append(score)
                report(describe(score))
    return Evaluation(encoder.facts, embedder.origin, tuple(scores), rates)


def _score_frozen(
    encoder: FrozenEncoder,
    dataset: Dataset,
    task: Task,
    options: FrozenOptions,
    limits: tuple[int | None, int | None],
    report: Report,
) -> Score:
    """Returns both classifiers' scores by the paper's protocol."""
    started = time.perf_counter()
    side = options.source_size or encoder.source_size
    train = dataset.load(task.gallery, Preprocess(image_size=side, resize=side))
    train = train.subset(limits[0] or len(train))
    test = dataset.load(task.queries, Preprocess.for_image_size(encoder.image_size))
    test = test.subset(limits[1] or len(test))
    views = VIEWS[options.views or encoder.pipeline]
    metrics, scored = frozen_scores(
        open_backbone(encoder, views),
        train,
        test,
        size=encoder.image_size,
        views=views,
        schedule=options.schedule(dataset.name),
        report=report,
    )
    metrics = {f"{FROZEN} {name}": value for name, value in metrics.items()}
    seconds = round(time.perf_counter() - started, 2)
    return Score(dataset.name, task.name, "global", FROZEN, metrics, len(train), scored, seconds)


def score_task(
    data: str,
    task: Task,
    gallery: LabelledVectors,
    queries: LabelledVectors,
    *,
    protocols: Sequence[str],
) -> list[Score]:
    """Returns every protocol's scores of every kind of vector that both splits have."""
    fitting = [p for p in protocols if task.is_classification or p == "retrieval"]
    scores = []
    for kind in gallery.vectors:
        question = _Question(
            task, gallery.vectors[kind], gallery.labels, queries.vectors[kind], queries.labels
        )
        for protocol in fitting:
            started = time.perf_counter()
            metrics, counted = _SCORERS[protocol](question)
            seconds = round(time.perf_counter() - started, 2)
            size = len(gallery.labels)
            scores.append(Score(data, task.name, kind, protocol, metrics, size, counted, seconds))
    return scores


def describe(score: Score) -> str:
    """Returns a score as one line."""
    numbers = ", ".join(f"{name} {value:.4f}" for name, value in score.metrics.items())
    return f"{score.data} {score.task} {score.features} {score.protocol}: {numbers}"


@dataclasses.dataclass(frozen=True)
class _Question:
    """One kind of vector on one task; its neighbours are found once, when first needed."""

    task: Task
    gallery: Tensor
    gallery_labels: Tensor
    queries: Tensor
    query_labels: Tensor

    @functools.cached_property
    def neighbors(self) -> Neighbors:
        itself = torch.arange(len(self.queries)) if self.task.leaves_self_out else None
        k = max(*KNN_KS, *RECALL_KS)
        return nearest_neighbors(self.gallery, self.queries, k=k, exclude=itself)


_Scored = tuple[dict[str, float], int]


def _knn(question: _Question) -> _Scored:
    metrics = {}
    for k in KNN_KS:
        predicted = knn_predict(
            question.neighbors, question.gallery_labels, k=k, temperature=TEMPERATURE
        )
        metrics[f"knn{k}"] = float((predicted == question.query_labels).float().mean())
    return metrics, len(question.queries)


def _retrieval(question: _Question) -> _Scored:
    found = retrieval_scores(
        question.gallery,
        question.gallery_labels,
        question.queries,
        question.query_labels,
        ks=RECALL_KS,
        leave_self_out=question.task.leaves_self_out,
        average_precision=len(question.gallery) <= AVERAGE_PRECISION_GALLERY,
        neighbors=question.neighbors,
    )
    metrics = {f"recall@{k}": value for k, value in found.recall_at.items()}
    if found.mean_average_precision is not None:
        metrics["mAP"] = found.mean_average_precision
    return metrics, found.queries


def _linear(question: _Question) -> _Scored:
    predict = fit_linear(question.gallery, question.gallery_labels)
    accuracy = probe_accuracy(predict, question.queries, question.query_labels)
    return {"linear": accuracy}, len(question.queries)


def _mlp(question: _Question) -> _Scored:
    predict = fit_mlp(question.gallery, question.gallery_labels)
    accuracy = probe_accuracy(predict, question.queries, question.query_labels)
    return {"mlp": accuracy}, len(question.queries)


_SCORERS: dict[str, Callable[[_Question], _Scored]] = {
    "knn": _knn,
    "retrieval": _retrieval,
    "linear": _linear,
    "mlp": _mlp,
}


class _Embedder:
    """Gives every split the vectors that are asked for, and an encoder a search vector first."""

    def __init__(self, encoder: FrozenEncoder, fit_on: Sequence[Path], *, needed: bool) -> None:
        self._encoder = encoder
        self._needed = needed
        self.preprocess = Preprocess.for_image_size(encoder.image_size)
        self.origin = "the model's own"
        if fit_on and needed:
            images = load_images(fit_on, self.preprocess).subset(FIT_LIMIT)
            if not self._fit(images, ", ".join(path.name for path in fit_on)):
                raise ConfigError(
                    "an exported model takes no other search vector: score its checkpoint"
                )

    def fit(self, images: ImageSet, name: str) -> None:
        """Fits a search vector on training images, unless there is one."""
        if self._needed and not self._encoder.has_embedding:
            self._fit(images.subset(FIT_LIMIT), name)

    def kinds(self, vectors: Vectors, features: Sequence[str]) -> dict[str, Tensor]:
        """Returns the vectors of each kind, without `embedding` where none could be fitted."""
        f1, mean5, mean7 = vectors.pooled.chunk(3, dim=1)
        named = {"global": f1, "mean5": mean5, "mean7": mean7}
        if vectors.embedding is not None:
            named["embedding"] = vectors.embedding
        elif self._needed:
            _log.warning("no embedding is scored: the model has none, and nothing to fit it on")
            self.origin = "none"
        return {kind: named[kind].contiguous() for kind in features if kind in named}

    def _fit(self, images: ImageSet, name: str) -> bool:
        fitted = self._encoder.fit(images.pixels, EMBEDDING_COMPONENTS)
        if fitted:
            self.origin = f"fitted on {len(images)} training images of {name}"
        return fitted


def _check_names(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"unknown {what} {name!r}; known: {', '.join(known)}")
