"""What a file was when a run began: enough to notice that it is another one now, without reading all of it.

Size, time of the last change, and the SHA-256 of its two ends and of 32 places between them, 4 KiB each. A raster of a
terabyte takes as long as one of a megabyte. Files of a virtual raster count with it.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ENDS = 64 * 2**10
"""Bytes that are hashed at either end: header and directory of a TIFF, footer of others."""
PLACES, PIECE = 32, 4 * 2**10
"""Pieces between the ends, and bytes of each."""


def fingerprint(paths: Iterable[Path], *, times: bool = True) -> dict[str, Any]:
    """Size, time and sampled bytes of every file, by name.

    Args:
        paths: Files; what is no file on this machine (a URL of GDAL) counts by its name alone.
        times: With the time of the last change, which differs between copies of one file.
    """
    found: dict[str, Any] = {}
    for path in paths:
        name = path.name
        while name in found:
            name += "'"
        if not path.is_file():
            found[name] = "no local file"
            continue
        about = path.stat()
        found[name] = {"size": about.st_size, "bytes": _sampled(path, about.st_size)}
        if times:
            found[name]["changed"] = about.st_mtime_ns
    return found


def _sampled(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(ENDS))
        for number in range(1, PLACES + 1):
            file.seek(size * number // (PLACES + 1))
            digest.update(file.read(PIECE))
        file.seek(max(0, size - ENDS))
        digest.update(file.read(ENDS))
    return digest.hexdigest()
