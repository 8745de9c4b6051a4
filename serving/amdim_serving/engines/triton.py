"""The engine of production GPUs: a Triton server, sent formed batches over gRPC.

Knows no HTTP and no batching. A connection that broke is not trusted again before the canaries
have reproduced on whatever answers now, since that may be another Triton with another file.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from amdim_clients.contract import Certificate, ModelSpec
from amdim_serving.canaries import run_canaries
from amdim_serving.engines import EngineInfo
from amdim_serving.engines.triton_link import TritonLink
from amdim_serving.errors import (
    CanaryError,
    EngineAnswerError,
    EngineDownError,
    EngineError,
    StartError,
)

_log = logging.getLogger(__name__)

# After a failed try the next one waits so long; what comes meanwhile is refused at once.
_PAUSE_S = 0.25
# Batches in flight: the one in each instance, the next one for each, and two on the wire.
_BATCHES_AN_INSTANCE = 2
_BATCHES_ON_THE_WIRE = 2


class TritonEngine:
    """A model on a Triton server; safe to call from as many threads as `info.calls`.

    Args:
        link: Open; closed by `close`.
        certificate: Of the artifact that Triton says it serves, at the precision it runs.
        calls: Batches in flight at once; 0: enough that no instance waits for the wire.

    Raises:
        StartError: Triton does not answer, or has no such model.
        CanaryError: What it serves does not reproduce the certificate.
    """

    def __init__(self, link: TritonLink, certificate: Certificate, *, calls: int = 0) -> None:
        self._link = link
        self._certificate = certificate
        self._spec = link.read_spec()
        self._lock = threading.Lock()
        self._is_proved = False
        self._closed = False
        self._retry_at = 0.0
        self._info = EngineInfo(
            "triton",
            link.provider,
            self._spec.precision,
            0,
            calls or _BATCHES_AN_INSTANCE * self._spec.instance_count + _BATCHES_ON_THE_WIRE,
        )
        self.canary_cosine = self._run_canaries()
        """The worst one of the last time they were run."""
        self._is_proved = True
        link.watch(self._doubt)

    @property
    def spec(self) -> ModelSpec:
        """The model's contract, as Triton's own configuration says it."""
        return self._spec

    @property
    def info(self) -> EngineInfo:
        """What really runs."""
        return self._info

    @property
    def is_proved(self) -> bool:
        """Whether the canaries were run since the connection last broke."""
        return self._is_proved

    def encode(
        self, images: NDArray[np.uint8], outputs: Sequence[str]
    ) -> Mapping[str, NDArray[np.float32]]:
        """Encodes a batch; see `Engine.encode`.

        Raises:
            EngineDownError: Triton does not answer, or not as what was opened.
            EngineAnswerError: It refused the batch, or its answer is not what its config says.
            EngineTimeoutError: It took too long.
        """
        if self._closed:
            raise EngineError("the engine is closed")
        if not self._is_proved:
            self._prove()
        try:
            return self._link.infer(self._spec, images, outputs)
        except EngineError as error:
            self._doubt(str(error))
            raise

    def close(self) -> None:
        """Ends running calls and the connection."""
        self._closed = True
        self._link.close()

    def _doubt(self, reason: str) -> None:
        """Asks for the canaries before the next batch."""
        if self._is_proved and not self._closed:
            self._is_proved = False
            _log.warning("Triton at %s is in doubt: %s", self._link.address, reason)

    def _prove(self) -> None:
        """Runs the canaries on what answers now; one thread does, the others wait for it.

        Raises:
            EngineDownError, EngineAnswerError, EngineTimeoutError: It cannot be trusted yet.
        """
        with self._lock:
            if self._is_proved:
                return
            if time.monotonic() < self._retry_at:
                raise EngineDownError("Triton did not answer a moment ago")
            try:
                self._check_identity()
                self.canary_cosine = self._run_canaries()
            except EngineError:
                self._retry_at = time.monotonic() + _PAUSE_S
                raise
            except CanaryError as error:
                self._retry_at = time.monotonic() + _PAUSE_S
                _log.error("Triton at %s came back wrong: %s", self._link.address, error)
                raise EngineAnswerError("Triton came back with other vectors") from error
            self._is_proved = True
            _log.info(
                "Triton at %s reproduces its canaries (worst cosine %.7f)",
                self._link.address,
                self.canary_cosine,
            )

    def _check_identity(self) -> None:
        try:
            spec = self._link.read_spec()
        except StartError as error:
            raise EngineDownError(str(error)) from error
        if spec != self._spec:
            _log.error(
                "Triton at %s serves version %s now, with another artifact or configuration than "
                "version %s: a reload is needed",
                self._link.address,
                spec.version,
                self._spec.version,
            )
            raise EngineDownError("Triton serves something else than what was opened")

    def _run_canaries(self) -> float:
        def encode(
            images: NDArray[np.uint8], outputs: Sequence[str]
        ) -> Mapping[str, NDArray[np.float32]]:
            return self._link.infer(self._spec, images, outputs)

        return run_canaries(encode, self._certificate, batch_size=self._spec.max_batch_size)


def open_triton_engine(
    link: TritonLink, find_certificate: Callable[[ModelSpec], Certificate], *, calls: int = 0
) -> TritonEngine:
    """Connects, finds the certificate of what Triton serves, and proves it.

    Args:
        link: Closed when this fails.
        find_certificate: Returns a model's certificate, or raises `StartError`.
        calls: Batches in flight at once; 0: enough that no instance waits for the wire.

    Raises:
        StartError: Triton does not answer, has no such model, or nothing certifies it.
        CanaryError: What it serves does not reproduce its certificate.
    """
    try:
        return TritonEngine(link, find_certificate(link.read_spec()), calls=calls)
    except EngineError as error:
        link.close()
        raise StartError(f"the model at {link.address} does not answer: {error}") from error
    except BaseException:
        link.close()
        raise
