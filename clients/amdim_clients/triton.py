"""Encoders behind a Triton server, or behind the gateway's own KServe v2 port.

They take pixels and give vectors as an engine in this process does, so either serves where an
encoder is asked for. Knows no pictures: decoding is done before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient import grpc as kserve
from tritonclient.grpc import aio as kserve_aio
from tritonclient.utils import InferenceServerException

from amdim_clients.contract import ModelSpec, parse_model_config
from amdim_clients.kserve import (
    as_client_error,
    concatenate,
    infer_arguments,
    newest_version,
    read_result,
    split_batches,
    transient_status,
)
from amdim_clients.retries import RetryPolicy

DEFAULT_ADDRESS = "127.0.0.1:8001"

Arrays = Mapping[str, npt.NDArray[np.float32]]


class TritonEncoder:
    """A model on a server; every method blocks. Safe to share between threads."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        model: str = "amdim",
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        concurrency: int = 4,
        retries: RetryPolicy | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Connect and read the model's config.

        Args:
            address: Host and port of the gRPC service.
            model: Its name in the repository.
            api_key: Sent as a bearer token in the metadata.
            timeout_s: Longest wait for one answer.
            concurrency: Batches on their way at a time.
            retries: When a failed call is made again.
            sleep: How to wait between attempts.

        Raises:
            GatewayError: The server does not answer or has no such model.
            ContractError: The model's config is not one of this project.
        """
        self._client = kserve.InferenceServerClient(address)
        self._headers = _metadata(api_key)
        self._timeout_s = timeout_s
        self._retries = retries or RetryPolicy()
        self._sleep = sleep
        self._pool = ThreadPoolExecutor(concurrency, "amdim-triton")
        try:
            named = {"model_name": model, "headers": self._headers, "client_timeout": timeout_s}
            config = self._call(self._client.get_model_config, named).config
            metadata = self._call(self._client.get_model_metadata, named)
            self.spec: ModelSpec = parse_model_config(config, version=newest_version(metadata))
        except BaseException:
            self.close()
            raise

    def encode(self, images: npt.NDArray[np.uint8], outputs: Sequence[str]) -> Arrays:
        """Vectors as the model gives them, not normalised.

        Args:
            images: (N, S, S, 3) uint8 RGB, any N from 1.
            outputs: Names of `spec.outputs`.

        Returns:
            Each output as (N, ...) float32.

        Raises:
            EngineError: Images or outputs do not fit the model.
            GatewayError: A call failed on every attempt.
        """
        batches = split_batches(images, outputs, self.spec)
        parts = self._pool.map(lambda batch: self._infer(batch, outputs), batches)
        return concatenate(list(parts), outputs)

    def close(self) -> None:
        """Close the connection."""
        self._pool.shutdown()
        self._client.close()

    def __enter__(self) -> TritonEncoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _infer(
        self, batch: npt.NDArray[np.uint8], outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        arguments = infer_arguments(batch, outputs, self.spec)
        arguments |= {"headers": self._headers, "client_timeout": self._timeout_s}
        result = self._call(self._client.infer, arguments)
        return read_result(result, outputs, self.spec, count=len(batch))

    def _call(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        attempt = 0
        while True:
            try:
                return function(**arguments)
            except InferenceServerException as error:
                pause_s = _pause_s(error, attempt, self._retries)
                if pause_s is None:
                    raise as_client_error(error) from error
            attempt += 1
            self._sleep(pause_s)


class AsyncTritonEncoder:
    """A model on a server, without blocking the event loop. Open it with `connect`."""

    def __init__(
        self,
        client: Any,
        spec: ModelSpec,
        *,
        headers: dict[str, str],
        timeout_s: float,
        concurrency: int,
        retries: RetryPolicy,
    ) -> None:
        """Take over an open client; use `connect`."""
        self.spec = spec
        self._client = client
        self._headers = headers
        self._timeout_s = timeout_s
        self._retries = retries
        self._permits = asyncio.Semaphore(concurrency)

    @classmethod
    async def connect(
        cls,
        address: str = DEFAULT_ADDRESS,
        model: str = "amdim",
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        concurrency: int = 4,
        retries: RetryPolicy | None = None,
    ) -> AsyncTritonEncoder:
        """Connect and read the model's config; arguments and errors as for `TritonEncoder`."""
        client = kserve_aio.InferenceServerClient(address)
        headers, retries = _metadata(api_key), retries or RetryPolicy()
        try:
            named = {"model_name": model, "headers": headers, "client_timeout": timeout_s}
            config = (await _call(client.get_model_config, named, retries)).config
            metadata = await _call(client.get_model_metadata, named, retries)
            spec = parse_model_config(config, version=newest_version(metadata))
        except BaseException:
            await client.close()
            raise
        return cls(
            client,
            spec,
            headers=headers,
            timeout_s=timeout_s,
            concurrency=concurrency,
            retries=retries,
        )

    async def encode(self, images: npt.NDArray[np.uint8], outputs: Sequence[str]) -> Arrays:
        """Vectors as the model gives them; as `TritonEncoder.encode`."""
        batches = split_batches(images, outputs, self.spec)
        tasks = [asyncio.create_task(self._infer(batch, outputs)) for batch in batches]
        try:
            return concatenate(await asyncio.gather(*tasks), outputs)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def __aenter__(self) -> AsyncTritonEncoder:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _infer(
        self, batch: npt.NDArray[np.uint8], outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        arguments = infer_arguments(batch, outputs, self.spec)
        arguments |= {"headers": self._headers, "client_timeout": self._timeout_s}
        async with self._permits:
            result = await _call(self._client.infer, arguments, self._retries)
        return read_result(result, outputs, self.spec, count=len(batch))


async def _call(
    function: Callable[..., Any], arguments: dict[str, Any], retries: RetryPolicy
) -> Any:
    attempt = 0
    while True:
        try:
            return await function(**arguments)
        except InferenceServerException as error:
            pause_s = _pause_s(error, attempt, retries)
            if pause_s is None:
                raise as_client_error(error) from error
        attempt += 1
        await asyncio.sleep(pause_s)


def _pause_s(error: InferenceServerException, attempt: int, retries: RetryPolicy) -> float | None:
    status = transient_status(error)
    return None if status is None else retries.wait_s(attempt, status)


def _metadata(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"authorization": f"Bearer {api_key}"}
