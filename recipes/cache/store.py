"""Tensors on disk under the hash of what they were computed from: fp16, memory-mapped, bounded, shared by processes.

An entry is one safetensors file in one of 256 folders. It appears by a rename, so that no other process ever sees half
of it and a killed one leaves nothing but a temporary file, which the next clean-up takes away. Entries that were not
used for longest go first.
"""

import logging
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from samgraft.errors import ConfigError

GB = 10**9
DEFAULT_LIMIT_GB = 20.0
FULLEST, EMPTIED = 1.0, 0.9
"""A store that is fuller than the first share of its limit is emptied to the second."""
STALE_SECONDS = 3600.0
"""Age at which a temporary file is nobody's any more."""
_log = logging.getLogger(__name__)


def default_folder() -> Path:
    """``$SAMGRAFT_CACHE``, else ``samgraft/features`` in the user's cache folder."""
    own = os.environ.get("SAMGRAFT_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "samgraft" / "features"


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """What a store holds."""

    folder: Path
    entries: int
    size: int
    """Bytes."""
    limit: int
    """Bytes."""
    oldest: float | None
    """Last use of the entry that was not used for longest, in seconds since 1970."""


class FeatureStore:
    """Entries by key.

    Args:
        folder: Where; None takes :func:`default_folder`. Made when the first entry is written.
        limit_gb: Largest size in GB (10^9 bytes).

    Raises:
        ConfigError: a limit that is not positive.
    """

    def __init__(self, folder: Path | None = None, *, limit_gb: float = DEFAULT_LIMIT_GB) -> None:
        """Nothing is read or written yet."""
        if limit_gb <= 0:
            raise ConfigError(f"the cache limit is {limit_gb} GB; expected a positive size")
        self.folder = default_folder() if folder is None else Path(folder)
        self.limit = round(limit_gb * GB)
        self.writable = True
        self._size: int | None = None
        self._unseen = 0

    def path(self, key: str) -> Path:
        """File of ``key``."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of an entry as they lie on disk (memory-mapped), or None; using it makes it young again."""
        path = self.path(key)
        try:
            tensors: dict[str, Tensor] = load_file(path)
            os.utime(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            _log.warning("feature cache: %s is damaged (%s); it is computed again", path, error)
            path.unlink(missing_ok=True)
            return None
        return tensors

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep ``tensors``, see :func:`narrow`. A disk that takes no more ends the writing, not the run."""
        if not self.writable:
            return
        path = self.path(key)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: narrow(tensor).contiguous() for name, tensor in tensors.items()}, temporary)
            size = temporary.stat().st_size
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            self.writable = False
            _log.warning("feature cache: %s cannot be written (%s); going on without it", self.folder, error)
            return
        self._grow(size)

    def _grow(self, size: int) -> None:
        """Count what was written; look at the whole folder now and then, since others write too."""
        if self._size is None or self._unseen > self.limit // 20:
            self._size, self._unseen = self.info().size, 0
        else:
            self._size += size
            self._unseen += size
        if self._size > FULLEST * self.limit:
            self.prune(round(EMPTIED * self.limit))

    def info(self) -> StoreInfo:
        """Count entries."""
        found = self._entries()
        return StoreInfo(
            folder=self.folder,
            entries=len(found),
            size=sum(size for _, size, _ in found),
            limit=self.limit,
            oldest=min((used for used, _, _ in found), default=None),
        )

    def prune(self, limit: int | None = None) -> tuple[int, int]:
        """Remove what was not used for longest until at most ``limit`` bytes are left, and stale temporary files.

        Args:
            limit: Bytes; None takes the store's own limit, 0 removes everything.

        Returns:
            Entries and bytes that were removed.
        """
        most = self.limit if limit is None else limit
        for path in self.folder.glob("??/*.tmp"):
            if time.time() - _modified(path) > STALE_SECONDS:
                path.unlink(missing_ok=True)
        found = sorted(self._entries(), key=lambda entry: entry[0])
        left, removed, freed = sum(size for _, size, _ in found), 0, 0
        for _, size, path in found:
            if left <= most:
                break
            path.unlink(missing_ok=True)  # another process may have been quicker
            left, removed, freed = left - size, removed + 1, freed + size
        self._size, self._unseen = left, 0
        return removed, freed

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of every entry; one that vanishes meanwhile is left out."""
        found = []
        for path in self.folder.glob("??/*.safetensors"):
            try:
                about = path.stat()
            except FileNotFoundError:
                continue
            found.append((about.st_mtime, about.st_size, path))
        return found


def narrow(tensor: Tensor) -> Tensor:
    """``tensor`` in fp16 where its values fit, else as it is; the relative error is at most 2^-11 above 6.1e-5."""
    half = tensor.detach().to("cpu", torch.float16)
    return half if bool(torch.isfinite(half).all()) else tensor.detach().cpu()


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()
