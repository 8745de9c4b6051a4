"""Which engine serves: the one that the settings name.

Knows the settings and how each engine is opened; no HTTP and no batching.
"""

from __future__ import annotations

from amdim_serving.opening import OpenModel, open_model
from amdim_serving.settings import Settings


def open_engine(settings: Settings) -> OpenModel:
    """Opens the model that the settings name with the engine that they name.

    Raises:
        StartError: It cannot be served so; the text says why.
    """
    if settings.engine == "triton":
        from amdim_serving.remote import open_remote_model  # gRPC is imported where it is used

        return open_remote_model(
            settings.repository(),
            settings.triton(settings.model),
            in_flight=settings.triton_in_flight,
        )
    return open_model(
        settings.repository(),
        settings.model,
        version=settings.model_version,
        engine_name=settings.engine,
        provider=settings.provider,
        threads=settings.threads,
        beside=True,
    )
