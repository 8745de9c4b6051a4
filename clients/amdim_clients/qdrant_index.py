"""Makes and opens indexes on Qdrant. A creation that was cut off counts as none."""

from __future__ import annotations

from urllib.parse import urlsplit

from qdrant_client import QdrantClient, models

from amdim_clients.errors import IndexStoreError, ScaleError
from amdim_clients.qdrant_points import QdrantIndex, told, windows_of
from amdim_clients.space import VectorSpace
from amdim_clients.window_rows import WindowPlan

__all__ = ["QdrantIndex", "connect", "has_qdrant", "open_or_create_qdrant", "open_qdrant"]


def connect(url: str, api_key: str | None = None) -> tuple[QdrantClient, str]:
    """A client for `http://HOST:PORT/NAME`, and the name.

    Raises:
        IndexStoreError: The address names no collection.
    """
    parts = urlsplit(url)
    name = parts.path.strip("/")
    if parts.scheme not in ("http", "https") or not parts.hostname or not name or "/" in name:
        raise IndexStoreError(f"{url} is not like http://HOST:6333/NAME")
    server = f"{parts.scheme}://{parts.netloc}"
    port = parts.port or (443 if parts.scheme == "https" else 6333)
    return QdrantClient(url=server, port=port, api_key=api_key, check_compatibility=False), name


def has_qdrant(client: QdrantClient, name: str) -> bool:
    """Whether there is an index of that name."""
    with told():
        return bool(client.collection_exists(name))


def open_qdrant(client: QdrantClient, name: str) -> QdrantIndex:
    """The index of that name.

    Raises:
        IndexStoreError: There is none, or it does not say where its vectors come from.
    """
    if not has_qdrant(client, name):
        raise IndexStoreError(f"there is no index {name} on this server: make one by amdim index")
    with told():
        metadata = client.get_collection(name).config.metadata or {}
    space = VectorSpace.from_json(str(metadata.get("amdim", "null")))
    plan = metadata.get("amdim_windows")
    return QdrantIndex(client, name, space, None if plan is None else WindowPlan.from_json(plan))


def open_or_create_qdrant(
    client: QdrantClient, name: str, space: VectorSpace, plan: WindowPlan | None = None
) -> QdrantIndex:
    """The index of that name for vectors of `space`, a new one where there is none.

    Raises:
        DigestMismatchError: The index there holds vectors of another space.
        ScaleError: It holds other windows.
        IndexStoreError: It cannot be created.
    """
    if has_qdrant(client, name):
        index = open_qdrant(client, name)
        if index.plan != plan:
            raise ScaleError(f"the index {name} holds other windows: make a new index")
        index.space.check(space)
        return index
    if plan is not None:
        _create(client, windows_of(name), space, {}, models.Datatype.FLOAT16)
    metadata = {"amdim": space.to_json()}
    if plan is not None:
        metadata["amdim_windows"] = plan.to_json()
    _create(client, name, space, metadata, models.Datatype.FLOAT32)
    return QdrantIndex(client, name, space, plan)


def _create(
    client: QdrantClient,
    name: str,
    space: VectorSpace,
    metadata: dict[str, str],
    datatype: models.Datatype,
) -> None:
    with told():
        if client.collection_exists(name):  # windows of a creation that was cut off
            client.delete_collection(name)
        client.create_collection(
            name,
            vectors_config=models.VectorParams(
                size=space.dim, distance=models.Distance.COSINE, datatype=datatype
            ),
            metadata=metadata,
        )
