"""The gateway: images in over HTTP, an AMDIM encoder's vectors out.

Knows no torch. Importing this package imports nothing else; its parts are imported by name.
"""

from __future__ import annotations
