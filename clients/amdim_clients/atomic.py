"""Files that appear whole or not at all.

Knows no formats: it hands out a place beside the target and renames it at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amdim_clients.errors import SourceError


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A path beside `target` that replaces it when the block ends well, and is removed otherwise.

    Raises:
        SourceError: The folder of `target` does not exist or cannot be written to.
    """
    if not target.parent.is_dir():
        raise SourceError(f"the folder of {target} does not exist")
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield aside
        os.replace(aside, target)
    except OSError as error:
        raise SourceError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)
