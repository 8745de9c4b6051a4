"""HTTP clients of the gateway, one that blocks and one that awaits.

Everything but the sending and the waiting lives in modules they share. Knows no server: the
transport is a parameter, so tests hand over an application and nothing listens.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Final

import httpx

from amdim_clients.errors import TransportError
from amdim_clients.exchange import Exchange, no_answer, timed_out
from amdim_clients.inputs import ImageInput, RequestBatch, RequestLimits, plan_requests
from amdim_clients.results import EmbedResult, ResultBuilder
from amdim_clients.retries import RetryPolicy
from amdim_clients.window_results import WindowResult
from amdim_clients.windows import DEFAULT_SCALES
from amdim_clients.wire import EMBED_PATH, MODEL_PATH, EmbedOptions, parse_model

DEFAULT_URL: Final = "http://127.0.0.1:8000"
# An image that takes the event loop half a millisecond to encode; larger ones go through a thread.
_QUICK_BYTES: Final = 1 << 20

# Called with the number of images answered so far, after each request.
Progress = Callable[[int], None]


class EmbedClient:
    """Embeds images by a gateway; every method blocks. Safe to share between threads."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        limits: RequestLimits | None = None,
        retries: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Connect lazily to `base_url`.

        Args:
            base_url: Where the gateway listens.
            api_key: Sent as a bearer token.
            timeout_s: Longest wait for one answer.
            limits: How calls are cut into requests.
            retries: When a failed request is sent again.
            transport: What carries requests instead of the network.
            sleep: How to wait between attempts.
        """
        self._limits = limits or RequestLimits()
        self._retries = retries or RetryPolicy()
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=base_url, headers=_headers(api_key), timeout=timeout_s, transport=transport
        )

    def embed(
        self,
        images: Iterable[ImageInput] | ImageInput,
        *,
        outputs: Iterable[str] | None = None,
        normalize: bool = True,
        model: str | None = None,
        progress: Progress | None = None,
    ) -> EmbedResult:
        """Vectors of any number of images, read only as requests are formed.

        Args:
            images: Paths, files' bytes, Pillow images or uint8 arrays; or one of them.
            outputs: Names of outputs; None for the model's default.
            normalize: Whether vectors are scaled to length 1.
            model: A model of the server; None for its default.
            progress: Called with the number of images answered so far.

        Raises:
            GatewayError: A request failed on every attempt. A bad image raises nothing: it is in
                the result's `errors`.
            DigestMismatchError: The server changed its encoder during the call.
        """
        options = EmbedOptions.of(outputs, normalize=normalize, model=model)
        return (self._gather(images, options, progress)).build()

    def embed_windows(
        self,
        images: Iterable[ImageInput] | ImageInput,
        *,
        scales: Iterable[float] = DEFAULT_SCALES,
        model: str | None = None,
        progress: Progress | None = None,
    ) -> WindowResult:
        """The vectors of all windows of any number of images, L2-normalised.

        Args:
            images: Paths, files' bytes, Pillow images or uint8 arrays; or one of them.
            scales: One to four; at 1 a picture's short side is one window.
            model: A model of the server; None for its default.
            progress: Called with the number of images answered so far.

        Raises:
            GatewayError: A request failed on every attempt.
            DigestMismatchError: The server changed its encoder during the call.
        """
        options = EmbedOptions.of_windows(scales, model=model)
        return (self._gather(images, options, progress)).build_windows()

    def _gather(
        self,
        images: Iterable[ImageInput] | ImageInput,
        options: EmbedOptions,
        progress: Progress | None,
    ) -> ResultBuilder:
        result = ResultBuilder()
        plan = plan_requests(images, self._limits)
        running: set[Future[None]] = set()
        with ThreadPoolExecutor(self._limits.concurrency, "amdim-embed") as pool:
            try:
                for item in plan:
                    if not isinstance(item, RequestBatch):
                        result.fail(*item)
                        continue
                    if len(running) == self._limits.concurrency:
                        running = _collect(running, result, progress)
                    exchange = Exchange(item, options, self._retries, result)
                    running.add(pool.submit(self._run, exchange))
                while running:
                    running = _collect(running, result, progress)
            finally:
                for future in running:
                    future.cancel()
        return result

    def model(self) -> Mapping[str, Any]:
        """What the server says of its models and limits (`GET /model`)."""
        try:
            answer = self._http.get(MODEL_PATH)
        except httpx.TransportError as error:
            raise TransportError(no_answer(error)) from error
        return parse_model(answer.status_code, answer.content)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> EmbedClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, exchange: Exchange) -> None:
        while exchange.next is not None:
            try:
                body = exchange.body()
                answer = self._http.post(EMBED_PATH, content=body, headers=body.headers)
                pause_s = exchange.received(answer.status_code, answer.headers, answer.content)
            except httpx.TimeoutException as error:
                raise timed_out(error, self._timeout_s) from error
            except httpx.TransportError as error:
                pause_s = exchange.broke(error)
            if pause_s:
                self._sleep(pause_s)


class AsyncEmbedClient:
    """Embeds images by a gateway without blocking the event loop."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        limits: RequestLimits | None = None,
        retries: RetryPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Connect lazily to `base_url`; arguments as for `EmbedClient`."""
        self._limits = limits or RequestLimits()
        self._retries = retries or RetryPolicy()
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(
            base_url=base_url, headers=_headers(api_key), timeout=timeout_s, transport=transport
        )

    async def embed(
        self,
        images: Iterable[ImageInput] | ImageInput,
        *,
        outputs: Iterable[str] | None = None,
        normalize: bool = True,
        model: str | None = None,
        progress: Progress | None = None,
    ) -> EmbedResult:
        """Vectors of any number of images; as `EmbedClient.embed`, files are read in a thread.

        Raises:
            GatewayError: A request failed on every attempt.
            DigestMismatchError: The server changed its encoder during the call.
        """
        options = EmbedOptions.of(outputs, normalize=normalize, model=model)
        return (await self._gather(images, options, progress)).build()

    async def embed_windows(
        self,
        images: Iterable[ImageInput] | ImageInput,
        *,
        scales: Iterable[float] = DEFAULT_SCALES,
        model: str | None = None,
        progress: Progress | None = None,
    ) -> WindowResult:
        """The vectors of all windows of any number of images; as `EmbedClient.embed_windows`.

        Raises:
            GatewayError: A request failed on every attempt.
            DigestMismatchError: The server changed its encoder during the call.
        """
        options = EmbedOptions.of_windows(scales, model=model)
        return (await self._gather(images, options, progress)).build_windows()

    async def _gather(
        self,
        images: Iterable[ImageInput] | ImageInput,
        options: EmbedOptions,
        progress: Progress | None,
    ) -> ResultBuilder:
        result = ResultBuilder()
        plan = plan_requests(images, self._limits)
        running: set[asyncio.Task[None]] = set()
        try:
            while (item := await asyncio.to_thread(next, plan, None)) is not None:
                if not isinstance(item, RequestBatch):
                    result.fail(*item)
                    continue
                if len(running) == self._limits.concurrency:
                    running = await _collect_tasks(running, result, progress)
                exchange = Exchange(item, options, self._retries, result)
                running.add(asyncio.create_task(self._run(exchange)))
            while running:
                running = await _collect_tasks(running, result, progress)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return result

    async def model(self) -> Mapping[str, Any]:
        """What the server says of its models and limits (`GET /model`)."""
        try:
            answer = await self._http.get(MODEL_PATH)
        except httpx.TransportError as error:
            raise TransportError(no_answer(error)) from error
        return parse_model(answer.status_code, answer.content)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncEmbedClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _run(self, exchange: Exchange) -> None:
        while exchange.next is not None:
            try:
                body = exchange.body()
                is_quick = body.longest <= _QUICK_BYTES
                pieces = body if is_quick else await asyncio.to_thread(list, body)
                answer = await self._http.post(
                    EMBED_PATH, content=_sent(pieces), headers=body.headers
                )
                pause_s = await asyncio.to_thread(
                    exchange.received, answer.status_code, answer.headers, answer.content
                )
            except httpx.TimeoutException as error:
                raise timed_out(error, self._timeout_s) from error
            except httpx.TransportError as error:
                pause_s = exchange.broke(error)
            if pause_s:
                await asyncio.sleep(pause_s)


async def _sent(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _headers(api_key: str | None) -> dict[str, str]:
    headers = {"accept": "application/json"}
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key}"
    return headers


def _collect(
    running: set[Future[None]], result: ResultBuilder, progress: Progress | None
) -> set[Future[None]]:
    """The requests still running once at least one has ended."""
    done, pending = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    if progress is not None:
        progress(result.done)
    return pending


async def _collect_tasks(
    running: set[asyncio.Task[None]], result: ResultBuilder, progress: Progress | None
) -> set[asyncio.Task[None]]:
    done, pending = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    if progress is not None:
        progress(result.done)
    return pending
