"""MetaImage and NRRD volumes (.mha .mhd .nrrd .nhdr) through SimpleITK; world "LPS", arrays (D, H, W), mm.

ITK keeps NaN in these formats (it does not in NIfTI, which therefore never comes here) and straightens a sheared NRRD
without a word, so the NRRD header is also read here and wins.
"""

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from samgraft.domains.atomic import atomic_path, full_suffix
from samgraft.domains.medical.orientation import check_shape, to_frame
from samgraft.domains.scene import (
    Array,
    NanPolicy,
    Scene,
    Window,
    as_labels,
    count_nonfinite,
    dtype_range,
    guard_finite,
)
from samgraft.errors import GeometryError, InputError
from samgraft.grid import Grid

sitk: Any = SimpleITK  # its bindings carry no types

SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")

CACHE_LIMIT = 1 << 30
"""Compressed files whose voxels take at most so many bytes are held in memory after the first read."""

WRITE_TOLERANCE = 1e-6
"""Largest displacement of a corner, in mm, between the grid and the header that was written."""

_FORMATS = {".mha": "MetaImage", ".mhd": "MetaImage", ".nrrd": "NRRD", ".nhdr": "NRRD"}
_SPACES = {
    "left-posterior-superior": (1, 1), "lps": (1, 1),
    "right-anterior-superior": (-1, -1), "ras": (-1, -1),
    "left-anterior-superior": (1, -1), "las": (1, -1),
}  # fmt: skip
_NRRD_TYPES = {"u1": "uint8", "u2": "uint16", "u4": "uint32"}
_HEADER_BYTES = 1 << 16


class ItkScene(Scene):
    """A MetaImage or NRRD volume, or one frame of a 4D file; voxels are read by window."""

    def __init__(self, path: Path, *, frame: int | None = None, nan: NanPolicy = "raise") -> None:
        """Read and check the header.

        Args:
            path: .mha, .mhd, .nrrd or .nhdr.
            frame: which volume of a 4D file; needed if it has more than one.
            nan: "raise", or "fill" to read NaN and Inf as 0.

        Raises:
            InputError: missing, damaged, complex, 4D without ``frame``, 5D.
            GeometryError: the affine is singular or not finite.
        """
        reader = _reader(path)
        sides = _sides(reader, path, frame)
        self._frame = frame if len(reader.GetSize()) > 3 else None
        self._ndim = len(reader.GetSize())
        self._nan: NanPolicy = nan
        self._cache: Array | None = None
        header = _nrrd_header(path)
        grid = _grid(reader, header, sides, path)
        known = header is None or "space" in header
        dtype = _dtype(reader, path)
        super().__init__(
            path=path,
            kind="volume",
            grid=grid,
            channels=int(reader.GetNumberOfComponents()),
            dtype=dtype,
            format=_FORMATS[full_suffix(path)],
            modality=_modality(reader),
            value_range=dtype_range(dtype),
            frame_known=known,
            notes=() if known else ("no space in the header: the place in the patient is unknown",),
        )

    def _read(self, window: Window, channels: tuple[int, ...]) -> Array:
        """The voxels of a box, checked."""
        raw = self._raw(window)
        fresh = channels == tuple(range(self.channels)) and not self.is_loaded
        voxels = raw if fresh else raw[list(channels)]
        return guard_finite(voxels, nan=self._nan, where=str(self.path), grid=self.grid, window=window)

    def _nonfinite(self, window: Window) -> tuple[int, int]:
        """Counted in the values as stored."""
        return count_nonfinite(self._raw(window)) if self.dtype.kind == "f" else (0, 0)

    def _valid(self, window: Window) -> NDArray[np.bool_]:
        """False at NaN and Inf of float files opened with ``nan="fill"``."""
        if not self.may_hide:
            return super()._valid(window)
        return np.asarray(np.isfinite(self._raw(window)).all(axis=0), dtype=np.bool_)

    @property
    def is_loaded(self) -> bool:
        """True once a compressed file has been unpacked into memory."""
        return self._cache is not None

    @property
    def kept_bytes(self) -> int:
        """An unpacked file is kept if it is not too large."""
        return self.nbytes if self.nbytes <= CACHE_LIMIT and _is_compressed(self.path) else 0

    @property
    def reading_bytes(self) -> int:
        """ITK's image and the array that it becomes."""
        return 2 * self.nbytes

    @property
    def may_hide(self) -> bool:
        """Float files opened with ``nan="fill"`` may."""
        return self._nan == "fill" and self.dtype.kind == "f"

    @property
    def cheap_slabs(self) -> bool:
        """False for a compressed file that is too large to keep: every slab is unpacked from the start."""
        return self.nbytes <= CACHE_LIMIT or not _is_compressed(self.path)

    def _raw(self, window: Window) -> Array:
        """Voxels of a box, all channels (C, D, H, W); compressed files are unpacked once and kept."""
        if self._cache is None and self.nbytes <= CACHE_LIMIT and _is_compressed(self.path):
            whole = tuple(slice(0, side) for side in self.grid.shape)
            voxels = self._execute(whole)
            if self._nan == "raise":
                guard_finite(voxels, nan="raise", where=str(self.path), grid=self.grid, window=whole)
            self._cache = voxels
        return self._execute(window) if self._cache is None else self._cache[(slice(None), *window)]

    def _execute(self, window: Window) -> Array:
        """Let ITK read the box; what it cannot read is named with the file's size."""
        reader = _reader(self.path)
        start, size = [s.start for s in reversed(window)], [s.stop - s.start for s in reversed(window)]
        spare = max(self._ndim - 3, 0)
        reader.SetExtractIndex((start + [self._frame or 0] + [0] * spare)[: self._ndim])
        reader.SetExtractSize((size + [0] * spare)[: self._ndim])
        try:
            array = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            on_disk = self.path.stat().st_size if self.path.exists() else 0
            raise InputError(
                f"{self.path}: truncated or damaged ({on_disk} bytes on disk): {_reason(error)}; copy the file again"
            ) from error
        shape = tuple(s.stop - s.start for s in window)
        return np.ascontiguousarray(np.moveaxis(array.reshape(*shape, self.channels), -1, 0))


def _reader(path: Path) -> Any:
    """SimpleITK reader with the header read."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.SetImageIO("NrrdImageIO" if _FORMATS[full_suffix(path)] == "NRRD" else "MetaImageIO")
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: no readable {_FORMATS[full_suffix(path)]} header: {_reason(error)}") from error
    return reader


def _reason(error: RuntimeError) -> str:
    """ITK's message without source paths and addresses."""
    lines = [re.sub(r"\(0x[0-9a-f]+\)", "", line).strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and "Exception thrown" not in line and not line.startswith("/")]
    return " ".join(kept).removeprefix("ITK ERROR: ") or "unknown reason"


def _sides(reader: Any, path: Path, frame: int | None) -> tuple[int, ...]:
    """File sides (i, j, k); the frame choice is checked here."""
    dims = tuple(int(n) for n in reader.GetSize())
    if len(dims) > 4 and any(n > 1 for n in dims[4:]):
        raise InputError(f"{path}: is {len(dims)}D {dims}; expected 3D, or 4D with frame=; split the file first")
    frames = dims[3] if len(dims) > 3 else 1
    if frames > 1 and frame is None:
        raise InputError(f"{path}: is 4D {dims} with {frames} frames; choose one with frame=0 to {frames - 1}")
    if frame is not None and not 0 <= frame < frames:
        raise InputError(f"{path}: frame={frame} asked; the file has {frames} (0 to {frames - 1})")
    return (dims + (1, 1))[:3]


def _dtype(reader: Any, path: Path) -> np.dtype[Any]:
    """Dtype of the stored components."""
    name = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    match = re.search(r"(\d+)-bit (unsigned integer|signed integer|float)", name)
    if match is None or "complex" in name:
        raise InputError(f"{path}: voxels are {name}; expected real numbers")
    kind = {"unsigned integer": "u", "signed integer": "i", "float": "f"}[match[2]]
    return np.dtype(f"{kind}{int(match[1]) // 8}")


def _modality(reader: Any) -> str | None:
    """Modality of a MetaImage, if it was set."""
    value = str(reader.GetMetaData("Modality")) if "Modality" in reader.GetMetaDataKeys() else ""
    found = value.removeprefix("MET_MOD_")
    return found if found in ("CT", "MR", "NM", "US") else None


def _grid(reader: Any, header: dict[str, str] | None, sides: tuple[int, ...], path: Path) -> Grid:
    """LPS grid in (D, H, W) order."""
    ndim = len(reader.GetSize())
    keep = min(ndim, 3)
    affine = np.eye(4)
    direction = np.array(reader.GetDirection(), dtype=np.float64).reshape(ndim, ndim)
    affine[:keep, :keep] = (direction * np.array(reader.GetSpacing(), dtype=np.float64))[:keep, :keep]
    affine[:keep, 3] = np.array(reader.GetOrigin(), dtype=np.float64)[:keep]
    exact = None if header is None else _nrrd_affine(header)
    try:
        return Grid(shape=sides[::-1], affine=(affine if exact is None else exact)[:, [2, 1, 0, 3]], world="LPS")
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}; repair the header") from error


def _nrrd_header(path: Path) -> dict[str, str] | None:
    """Fields of a NRRD header; None for other formats."""
    if _FORMATS[full_suffix(path)] != "NRRD":
        return None
    with path.open("rb") as file:
        text = file.read(_HEADER_BYTES).replace(b"\r\n", b"\n").split(b"\n\n", 1)[0].decode("latin-1")
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))
    return {key.strip().lower(): value.lstrip("=").strip() for key, value in pairs}


def _is_compressed(path: Path) -> bool:
    """True if the header says that the voxels are packed, so that every slab would unpack the file from its start."""
    header = _nrrd_header(path)
    if header is not None:
        return header.get("encoding", "raw").lower() != "raw"
    with path.open("rb") as file:
        return re.search(rb"CompressedData\s*=\s*True", file.read(_HEADER_BYTES)) is not None


def _nrrd_affine(header: dict[str, str]) -> NDArray[np.float64] | None:
    """Affine (i, j, k) -> LPS as written in the text, shear included; None if the text is of another kind."""
    signs = _SPACES.get(header.get("space", "").lower())
    vectors = re.findall(r"\(([^)]*)\)", header.get("space directions", ""))
    origin = re.findall(r"\(([^)]*)\)", header.get("space origin", ""))
    if signs is None or len(vectors) != 3 or len(origin) != 1:
        return None
    try:
        columns = [[float(v) for v in vector.split(",")] for vector in (*vectors, *origin)]
    except ValueError:
        return None
    if any(len(column) != 3 for column in columns):
        return None
    affine = np.eye(4)
    affine[:3] = np.array(columns).T * np.array([*signs, 1])[:, None] + 0.0
    return affine


def write_itk(path: Path | str, labels: Array, grid: Grid) -> None:
    """Write a label map as .mha or .nrrd; the dtype follows from its largest label.

    Args:
        path: .mha or .nrrd, compressed, written atomically. NRRD keeps any affine bit by bit; MetaImage stores
            direction and spacing apart, which can differ in the last bit.
        labels: whole numbers >= 0 on ``grid.shape`` (D, H, W).
        grid: world "LPS" or "RAS"; RAS is converted by sign flips.

    Raises:
        GeometryError: shape, suffix or world do not fit, or the header moved a corner by more than 1e-6 mm.
        InputError: the array holds no labels.
        OutputError: the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    check_shape(np.shape(labels), grid, path)
    array = as_labels(np.asarray(labels), str(path), copy=False)
    if full_suffix(path) not in (".mha", ".nrrd"):
        raise GeometryError(f"cannot write {path}: expected a name that ends in .mha or .nrrd")
    lps = to_frame(grid, "LPS")
    with atomic_path(path) as temp:
        if full_suffix(path) == ".nrrd":
            _write_nrrd(temp, array, lps)
        else:
            _write_meta(temp, array, lps)
        moved = ItkScene(temp).grid.corner_distance(lps)
        if not moved <= WRITE_TOLERANCE:
            raise GeometryError(f"cannot write {path}: the header would move a corner by {moved:.3g} mm; write .nrrd")


def _write_meta(temp: Path, array: Array, lps: Grid) -> None:
    """MetaImage through SimpleITK."""
    columns = lps.affine[:3, [2, 1, 0]]
    spacing = np.linalg.norm(columns, axis=0)
    image = sitk.GetImageFromArray(array)
    try:
        image.SetSpacing([float(v) for v in spacing])
        image.SetOrigin([float(v) for v in lps.affine[:3, 3]])
        image.SetDirection([float(v) for v in (columns / spacing).ravel()])
        sitk.WriteImage(image, str(temp), useCompression=True)
    except RuntimeError as error:
        raise OSError(_reason(error)) from error


def _write_nrrd(temp: Path, array: Array, lps: Grid) -> None:
    """NRRD by hand: ITK would straighten a sheared grid. Numbers are written so that they read back bit-equal."""
    vectors = ["(" + ",".join(repr(float(v)) for v in lps.affine[:3, c]) + ")" for c in (2, 1, 0, 3)]
    little = array.astype(array.dtype.newbyteorder("<"))
    header = "\n".join((
        "NRRD0005", f"type: {_NRRD_TYPES[little.dtype.str[1:]]}", "dimension: 3", "space: left-posterior-superior",
        f"sizes: {' '.join(str(n) for n in array.shape[::-1])}", f"space directions: {' '.join(vectors[:3])}",
        "kinds: domain domain domain", "endian: little", "encoding: gzip", f"space origin: {vectors[3]}",
    ))  # fmt: skip
    with temp.open("wb") as file:
        file.write(header.encode("ascii") + b"\n\n")
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as packed:
            packed.write(little.tobytes())
