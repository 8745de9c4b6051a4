"""Which Triton serves which model, and how it is reached; plain data, no gRPC."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TritonTarget:
    """Which Triton, which model, and how it is reached."""

    address: str
    """Host and port of its gRPC service."""
    model: str
    timeout_s: float = 10.0
    """Longest wait for one batch."""
    connect_s: float = 30.0
    """Longest wait for a Triton that is still starting."""
    tls: bool = False
    ca: bytes | None = None
    """PEM; None: the system's authorities."""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Sent with every call; may hold secrets."""
