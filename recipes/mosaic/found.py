"""What one tile shows, as arrays and as a file.

The file is a zip of ``.npy`` arrays with fixed dates and order, so that equal contents are equal bytes. It is written
under a temporary name and read without unpickling.
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.atomic import atomic_path
from samgraft.errors import InputError, ShapeError

_DATE = (1980, 1, 1, 0, 0, 0)
_LEVEL = 1  # label maps shrink to a few per cent at any level


class _TileFile:
    """What both kinds of tile contents do: the fields are the arrays of the file, and None is left out."""

    _NEEDED: ClassVar[tuple[str, ...]]
    _OPTIONAL: ClassVar[tuple[str, ...]] = ()
    _WHAT: ClassVar[str]

    def content_hash(self) -> str:
        """SHA-256 of the values; the same whatever the file's compression."""
        return _hash(self._arrays())

    def to_bytes(self) -> bytes:
        """The bytes of the file."""
        return _packed(self._arrays())

    def save(self, path: Path | str) -> Path:
        """Write the file, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        return _save(path, self._arrays())

    @classmethod
    def load(cls, path: Path | str | io.BytesIO) -> Self:
        """Read the file, or its bytes, back.

        Raises:
            InputError: missing, damaged, or not such a file.
        """
        arrays = _load(path, cls._NEEDED, optional=cls._OPTIONAL)
        try:
            return cls(**arrays)
        except ShapeError as error:
            raise InputError(
                f"{path} is not the {cls._WHAT} of a tile: {error}; delete it to have it made again"
            ) from error

    def _arrays(self) -> dict[str, NDArray[Any]]:
        found = {name: getattr(self, name) for name in (*self._NEEDED, *self._OPTIONAL)}
        return {name: array for name, array in found.items() if array is not None}


@dataclass(frozen=True, eq=False)
class TileObjects(_TileFile):
    """Separate objects of a tile."""

    labels: NDArray[np.int32]
    """(h, w) over the tile's window: 0 nothing, 1 to n the objects."""
    classes: NDArray[np.int32]
    """(n,) class of each object."""
    scores: NDArray[np.float32]
    """(n,) 0 to 1."""

    def __post_init__(self) -> None:
        """Check what belongs together.

        Raises:
            ShapeError: not (h, w), (n,), (n,), or a label outside 0 to n.
        """
        count = len(self.classes)
        if self.labels.ndim != 2 or self.classes.shape != (count,) or self.scores.shape != (count,):
            raise ShapeError(
                f"labels {self.labels.shape}, classes {self.classes.shape}, scores {self.scores.shape}; "
                "expected (h, w), (n,), (n,)"
            )
        low, high = int(self.labels.min(initial=0)), int(self.labels.max(initial=0))
        if low < 0 or high > count:
            raise ShapeError(
                f"labels go from {low} to {high}, but {count} objects are described; expected 0 to {count}"
            )
        object.__setattr__(self, "labels", np.ascontiguousarray(self.labels, dtype=np.int32))
        object.__setattr__(self, "classes", np.asarray(self.classes, dtype=np.int32))
        object.__setattr__(self, "scores", np.asarray(self.scores, dtype=np.float32))

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.classes)

    @classmethod
    def nothing(cls, shape: tuple[int, int]) -> Self:
        """A tile of (h, w) without objects."""
        return cls(np.zeros(shape, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))

    _NEEDED = ("labels", "classes", "scores")
    _WHAT = "objects"


@dataclass(frozen=True, eq=False)
class TileClasses(_TileFile):
    """Class of every pixel of a tile."""

    labels: NDArray[np.integer]
    """(h, w) over the tile's window, the same in all tiles that show a pixel."""
    scores: NDArray[np.uint8] | None = None
    """(h, w) over the window, 0 to 255 for 0 to 1."""

    def __post_init__(self) -> None:
        """Check what belongs together.

        Raises:
            ShapeError: labels are not (h, w) integers, or the scores are not (h, w) uint8.
        """
        scores = self.scores
        if self.labels.ndim != 2 or self.labels.dtype.kind not in "iu":
            raise ShapeError(f"labels are {self.labels.dtype} {self.labels.shape}; expected integers (h, w)")
        if scores is not None and (scores.shape != self.labels.shape or scores.dtype != np.uint8):
            raise ShapeError(f"scores are {scores.dtype} {scores.shape}; expected uint8 {self.labels.shape}")

    _NEEDED, _OPTIONAL = ("labels",), ("scores",)
    _WHAT = "classes"


def _hash(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _save(path: Path | str, arrays: Mapping[str, NDArray[Any]]) -> Path:
    final = Path(path)
    with atomic_path(final) as temporary:
        temporary.write_bytes(_packed(arrays))
    return final


def _packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Bytes of a zip of ``.npy`` arrays."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content.getbuffer(), compresslevel=_LEVEL)
    return file.getvalue()


def _load(
    path: Path | str | io.BytesIO, names: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, NDArray[Any]]:
    """The named arrays of a file; an entry is unpacked whole, and so its checksum tested, before it is looked at."""
    try:
        with zipfile.ZipFile(path) as archive:
            there = {Path(entry).stem for entry in archive.namelist()}
            wanted = [*names, *(name for name in optional if name in there)]
            content = {name: archive.read(f"{name}.npy") for name in wanted if name in there}
        missing = sorted(set(names) - there)
        if missing:
            raise ValueError(f"it has {sorted(there)} but lacks {missing}")
        return {n: np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False) for n, raw in content.items()}
    except FileNotFoundError as error:
        raise InputError(f"cannot read {path}: there is no such file") from error
    except (OSError, EOFError, ValueError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"cannot read {path}: {error}; the file is damaged, delete it to have it made again"
        ) from error
