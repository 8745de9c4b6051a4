"""What a call to `embed` returns: arrays for the good images, reasons for the others.

Knows no transport; it puts answers back into the caller's order.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amdim_clients.errors import DigestMismatchError, ImageError, ResponseError, SourceError
from amdim_clients.inputs import ImageFailure, RequestBatch
from amdim_clients.window_results import WindowResult
from amdim_clients.wire import BatchAnswer, Item, ServedBy, stack_outputs


@dataclass(frozen=True)
class EmbedResult:
    """Vectors of one call.

    Row r of every array belongs to the image at position `ok[r]` of what was passed; images
    without a vector have no row, and their reason is in `errors` under their position.
    """

    arrays: Mapping[str, npt.NDArray[np.float32]]  # output -> (n, ...), n = len(ok)
    ok: npt.NDArray[np.int64]  # (n,) ascending positions of the images that have vectors
    errors: Mapping[int, ImageFailure]  # position -> why it has none
    served_by: ServedBy | None  # None where not one image reached the server

    def __getitem__(self, output: str) -> npt.NDArray[np.float32]:
        """The (n, ...) array of one output."""
        return self.arrays[output]

    @property
    def normalized(self) -> bool:
        """Whether the vectors have length 1."""
        return self.served_by is not None and self.served_by.normalized

    def raise_for_errors(self) -> EmbedResult:
        """This result, for callers who need every image.

        Raises:
            ImageError: The first image that is not a usable picture.
            SourceError: The first image that failed for another reason.
        """
        for position, failure in sorted(self.errors.items()):
            try:
                error: ImageError | SourceError = ImageError(failure.code)
            except KeyError:
                error = SourceError(f"image {position}: {failure.message}")
            raise error
        return self


class ResultBuilder:
    """Collects answers that arrive in any order, from any thread."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._vectors: dict[int, Item] = {}
        self._errors: dict[int, ImageFailure] = {}
        self._served_by: ServedBy | None = None
        self._lock = threading.Lock()

    @property
    def done(self) -> int:
        """How many images have their vector or their reason."""
        return len(self._vectors) + len(self._errors)

    def fail(self, position: int, failure: ImageFailure) -> None:
        """Record why the image at `position` has no vector."""
        self._errors[position] = failure

    def add(self, batch: RequestBatch, answer: BatchAnswer) -> None:
        """Record the answer to one request.

        Raises:
            DigestMismatchError: Another encoder or preprocessing answered an earlier request.
        """
        with self._lock:
            self._check_same_space(answer.served_by)
        for position, item in zip(batch.indices, answer.items, strict=True):
            if isinstance(item, ImageFailure):
                self._errors[position] = item
            else:
                self._vectors[position] = item

    def build(self) -> EmbedResult:
        """The result in the caller's order."""
        positions = sorted(self._vectors)
        items = [self._vectors[position] for position in positions]
        if any(isinstance(item, tuple) for item in items):
            raise ResponseError("the server gave windows that were not asked for")
        return EmbedResult(
            arrays=stack_outputs([item for item in items if not isinstance(item, tuple)]),
            ok=np.array(positions, dtype=np.int64),
            errors=dict(sorted(self._errors.items())),
            served_by=self._served_by,
        )

    def build_windows(self) -> WindowResult:
        """The windows in the caller's order.

        Raises:
            ResponseError: The server gave something else.
        """
        windows = {
            at: item for at, item in sorted(self._vectors.items()) if isinstance(item, tuple)
        }
        if len(windows) < len(self._vectors):
            raise ResponseError("the server gave no windows")
        return WindowResult(windows, dict(sorted(self._errors.items())), self._served_by)

    def _check_same_space(self, served_by: ServedBy) -> None:
        first = self._served_by
        if first is None:
            self._served_by = served_by
        elif (first.encoder_digest, first.preprocess_digest) != (
            served_by.encoder_digest,
            served_by.preprocess_digest,
        ):
            raise DigestMismatchError(
                "the server changed its encoder during the call; its vectors do not compare"
            )
