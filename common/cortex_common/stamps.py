"""Whether a file is as it was when it was last looked at."""

from __future__ import annotations

from pathlib import Path

Stamp = tuple[int, int, int] | None
"""Of a file's content, as far as its directory tells; None where there is no file to look at."""


def stamp_of(path: Path | None) -> Stamp:
    """Differs whenever the file was written or replaced."""
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)
