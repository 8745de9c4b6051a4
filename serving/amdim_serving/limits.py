"""What a request may ask for, as one value handed to whoever enforces a part of it.

Knows no environment: `settings.py` builds it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from amdim_clients.windows import MAX_WINDOWS


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the wire contract; published at /model under these names."""

    max_body_bytes: int = 64 * 2**20
    inflight_bytes: int = 512 * 2**20
    """Bytes that the bodies of all requests may hold at once; past it: 429."""
    max_images: int = 1024
    max_pixels: int = 50_000_000
    """Pixels per image, read from its header before anything is decoded."""
    max_windows: int = MAX_WINDOWS
    """Windows of an image, at all scales together."""
    min_side: int = 2
    """Pixels; the shorter side of an image must be at least this."""
    decode_seconds: float = 10.0
    queue_images: int = 2048
    """Images admitted at once: waiting to be decoded, waiting for the engine, or in it."""
    deadline_seconds: float = 30.0
    body_seconds: float = 30.0
    """A request's body must have arrived after so long."""
    header_seconds: float = 10.0
    """A connection must have sent a whole request head after so long."""

    def published(self) -> dict[str, int | float]:
        """Returns the limits by name, as /model shows them."""
        return asdict(self)
