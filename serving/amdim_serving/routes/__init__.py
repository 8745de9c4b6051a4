"""The HTTP routes: they translate, and leave the work to `EmbedService`."""

from __future__ import annotations
