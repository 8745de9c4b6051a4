"""Opens what the commands encode with: a gateway where an address is given, else an engine here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amdim_clients.embedders import Embedder
    from amdim_clients.window_embedders import WindowEmbedder
    from amdim_clients.window_rows import WindowPlan


@contextmanager
def open_embedder(
    *,
    url: str | None,
    api_key: str | None,
    repository: Path | None,
    model: str | None,
    outputs: Sequence[str] | None = None,
    normalize: bool = True,
    plan: WindowPlan | None = None,
) -> Iterator[Embedder]:
    """An embedder that is closed when the block ends; one of windows where a plan is given.

    Raises:
        EngineError: No engine or no model repository is at hand, or the model lacks an output.
        GatewayError: The server at `url` does not answer.
    """
    from amdim_clients import embedders

    embedder: Embedder
    if plan is not None:
        embedder = _window_embedder(plan, url, api_key, repository, model)
    elif url is not None:
        from amdim_clients.gateway import EmbedClient

        limits = embedders.REMOTE_LIMITS
        embedder = embedders.RemoteEmbedder(
            EmbedClient(url, api_key=api_key, limits=limits),
            model=model,
            outputs=outputs,
            normalize=normalize,
            limits=limits,
        )
    else:
        encoder = embedders.open_local_encoder(
            repository or embedders.default_repository(), model or embedders.DEFAULT_MODEL
        )
        embedder = embedders.LocalEmbedder(encoder, outputs=outputs, normalize=normalize)
    try:
        yield embedder
    finally:
        embedder.close()


def _window_embedder(
    plan: WindowPlan,
    url: str | None,
    api_key: str | None,
    repository: Path | None,
    model: str | None,
) -> WindowEmbedder:
    from amdim_clients import embedders, window_embedders

    if url is not None:
        from amdim_clients.gateway import EmbedClient

        client = EmbedClient(url, api_key=api_key, limits=window_embedders.WINDOW_LIMITS)
        return window_embedders.RemoteWindowEmbedder(client, plan, model=model)
    encoder = window_embedders.open_local_windows(
        repository or embedders.default_repository(),
        model or window_embedders.DEFAULT_WINDOWS_MODEL,
    )
    return window_embedders.LocalWindowEmbedder(encoder, plan)
