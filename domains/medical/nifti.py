"""NIfTI volumes (.nii, .nii.gz): a lazy reader that never guesses, and a writer that keeps the affine bit by bit.

File arrays are (i, j, k) with i fastest; here they become (D, H, W) = (k, j, i) and the affine's columns move with
them, world "RAS" in mm. The header is read and checked by this module, the voxels by nibabel, without ITK, which would
turn NaN into 0. Format: NIfTI-1 (Cox et al. 2004) and NIfTI-2.
"""

import gzip
import warnings
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
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

CACHE_LIMIT = 1 << 30
"""Compressed files whose voxels take at most so many bytes are held in memory after the first read."""

WRITE_TOLERANCE = 1e-4
"""Largest displacement of a corner, in mm, that rounding the affine to NIfTI's float32 may cause."""

_NAMED_TYPES = {128: "RGB", 2304: "RGBA", 32: "complex", 1792: "complex", 2048: "complex", 1536: "float128"}
_UNITS = {1: "metre", 3: "micrometre"}
_NIFTI1_MAX_SIDE = 32767


class NiftiScene(Scene):
    """A NIfTI volume, or one frame of a 4D file; header checked on construction, voxels read by window."""

    def __init__(self, path: Path, *, frame: int | None = None, nan: NanPolicy = "raise") -> None:
        """Read and check the header.

        Args:
            path: .nii or .nii.gz.
            frame: which volume of a 4D file; needed if it has more than one.
            nan: "raise", or "fill" to read NaN and Inf as 0 (``valid`` is False there).

        Raises:
            InputError: no NIfTI, truncated, RGB or complex, 4D without ``frame``, 5D, pixdim 0.
            GeometryError: the affine is singular or not finite.
        """
        header = read_header(path)
        sides = _sides(header, path, frame)
        self._frame = frame if len(sides) > 3 else None
        self._nan: NanPolicy = nan
        self._slope, self._intercept = _scaling(header, path)
        raw_dtype = header.get_data_dtype()
        _check_length(header, sides, raw_dtype, path)
        grid, frame_known, notes = _grid(header, sides[:3], path)
        spec = (sides, raw_dtype, header.get_data_offset(), 1.0, 0.0)
        self._proxy = ArrayProxy(str(path), spec, mmap=False)  # mapped pages count as memory, and go with the file
        self._cache: Array | None = None
        scaled = (self._slope, self._intercept) != (1.0, 0.0)
        super().__init__(
            path=path,
            kind="volume",
            grid=grid,
            channels=1,
            dtype=np.dtype(np.float32) if scaled else raw_dtype.newbyteorder("="),
            format="NIfTI",
            value_range=dtype_range(raw_dtype, self._slope, self._intercept),
            frame_known=frame_known,
            notes=notes,
        )

    @property
    def is_loaded(self) -> bool:
        """True once a compressed file has been unpacked into memory."""
        return self._cache is not None

    @property
    def kept_bytes(self) -> int:
        """An unpacked file is kept if it is not too large."""
        stored = int(np.prod(self.grid.shape, dtype=np.int64)) * self._proxy.dtype.itemsize
        return stored if self._worth_caching() else 0

    @property
    def reading_bytes(self) -> int:
        """Voxels as stored, unless they are the kept ones, and as real-world values where that is not the same."""
        stored = int(np.prod(self.grid.shape, dtype=np.int64)) * self._proxy.dtype.itemsize
        return self.nbytes + (0 if self.dtype == self._proxy.dtype or self._worth_caching() else stored)

    @property
    def may_hide(self) -> bool:
        """Float files opened with ``nan="fill"`` may."""
        return self._nan == "fill" and self._proxy.dtype.kind == "f"

    @property
    def cheap_slabs(self) -> bool:
        """False for a compressed file that is too large to keep: every slab is unpacked from the start."""
        return not full_suffix(self.path).endswith(".gz") or self._worth_caching()

    def _read(self, window: Window, channels: tuple[int, ...]) -> Array:
        """Unscaled voxels, checked, then scaled; the single channel repeated as asked."""
        raw = self._raw(window)
        checked = guard_finite(raw, nan=self._nan, where=str(self.path), grid=self.grid, window=window)
        if (self._slope, self._intercept) != (1.0, 0.0):
            checked = self._scaled(checked)
        values = np.ascontiguousarray(checked, dtype=self.dtype)
        kept = self.is_loaded and np.may_share_memory(values, self._cache)
        own = len(channels) == 1 and values.flags.writeable and not kept
        return values[None] if own else np.stack([values] * len(channels))

    def _scaled(self, stored: Array) -> NDArray[np.float32]:
        """Slope and intercept, computed in double precision slice by slice."""
        values = np.empty(stored.shape, dtype=np.float32)
        for k, one in enumerate(stored):
            values[k] = one.astype(np.float64) * self._slope + self._intercept
        return values

    def _nonfinite(self, window: Window) -> tuple[int, int]:
        """Counted in the values as stored."""
        return count_nonfinite(self._raw(window)) if self._proxy.dtype.kind == "f" else (0, 0)

    def _valid(self, window: Window) -> NDArray[np.bool_]:
        """False at NaN and Inf of float files opened with ``nan="fill"``."""
        if not self.may_hide:
            return super()._valid(window)
        return np.asarray(np.isfinite(self._raw(window)), dtype=np.bool_)

    def _raw(self, window: Window) -> Array:
        """Voxels as stored, (D, H, W) order."""
        if self._cache is None and self._worth_caching():
            everything = tuple(slice(0, side) for side in self.grid.shape)
            whole = self._slice(everything)
            if self._nan == "raise":
                guard_finite(whole, nan="raise", where=str(self.path), grid=self.grid, window=everything)
            self._cache = whole
        return self._slice(window) if self._cache is None else self._cache[window]

    def _worth_caching(self) -> bool:
        """Compressed files must be unpacked from the start for every slab, so small ones are kept."""
        size = int(np.prod(self.grid.shape, dtype=np.int64)) * self._proxy.dtype.itemsize
        return full_suffix(self.path).endswith(".gz") and size <= CACHE_LIMIT

    def _slice(self, window: Window) -> Array:
        """Read a window from the file; damage becomes an InputError that counts bytes."""
        index: tuple[Any, ...] = tuple(reversed(window))
        if self._frame is not None:
            index = (*index, self._frame)
        try:
            return np.asarray(self._proxy[index]).transpose(2, 1, 0)
        except (EOFError, OSError, ValueError, zlib.error) as error:
            raise InputError(_damage(self.path, self._proxy, error)) from error


def read_header(path: Path) -> nib.Nifti1Header:
    """Read a NIfTI-1 or NIfTI-2 header as it stands, without nibabel's silent repairs.

    Raises:
        InputError: the file is missing, too short, or no NIfTI.
    """
    opener: Any = gzip.open if full_suffix(path).endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            block = file.read(540)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as NIfTI: {error}; the file is missing or damaged") from error
    if len(block) < 348:
        raise InputError(f"{path}: holds {len(block)} bytes after unpacking; a NIfTI header has 348: truncated?")
    second = int.from_bytes(block[:4], "little") == 540 or int.from_bytes(block[:4], "big") == 540
    magic = block[4:8] if second else block[344:348]
    if magic[:3] not in ((b"n+2",) if second else (b"n+1",)) or (second and len(block) < 540):
        raise InputError(f"{path}: no single-file NIfTI (magic {magic!r}; expected n+1 or n+2); convert it first")
    header_type: Any = nib.Nifti2Header if second else nib.Nifti1Header
    header: nib.Nifti1Header = header_type(block if second else block[:348], check=False)
    return header


def _sides(header: nib.Nifti1Header, path: Path, frame: int | None) -> tuple[int, ...]:
    """File shape (i, j, k) or (i, j, k, t); the frame choice is checked here."""
    code = int(header["datatype"])
    if code in _NAMED_TYPES:
        raise InputError(
            f"{path}: voxels are {_NAMED_TYPES[code]}; expected one real number per voxel; "
            "convert to gray or split the channels into files first"
        )
    count = int(header["dim"][0])
    dims = tuple(int(n) for n in header["dim"][1 : count + 1])
    if not 1 <= count <= 7 or min(dims) < 1:
        raise InputError(f"{path}: header dim is {[int(n) for n in header['dim']]}; expected 1 to 7 positive sides")
    while len(dims) > 3 and dims[-1] == 1:
        dims = dims[:-1]
    if len(dims) > 4:
        raise InputError(f"{path}: is {len(dims)}D {dims}; expected 3D, or 4D with frame=; split the file first")
    dims = dims + (1,) * (3 - len(dims))
    frames = dims[3] if len(dims) == 4 else 1
    if frames > 1 and frame is None:
        raise InputError(f"{path}: is 4D {dims} with {frames} frames; choose one with frame=0 to {frames - 1}")
    if frame is not None and not 0 <= frame < frames:
        raise InputError(f"{path}: frame={frame} asked; the file has {frames} (0 to {frames - 1})")
    try:
        header.get_data_dtype()
    except nib.spatialimages.HeaderDataError as error:
        raise InputError(f"{path}: unknown voxel type code {code}; convert the file first") from error
    return dims


def _scaling(header: nib.Nifti1Header, path: Path) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 or NaN means none, as the standard says."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        return 1.0, 0.0
    if not np.isfinite([slope, intercept]).all():
        raise InputError(f"{path}: scl_slope {slope}, scl_inter {intercept}; expected finite; repair the header")
    return slope, intercept


def _check_length(header: nib.Nifti1Header, sides: tuple[int, ...], dtype: np.dtype[Any], path: Path) -> None:
    """Refuse a truncated uncompressed file before any voxel is read; compressed ones show it when read."""
    if full_suffix(path).endswith(".gz"):
        return
    need = int(header.get_data_offset()) + int(np.prod(sides, dtype=np.int64)) * dtype.itemsize
    have = path.stat().st_size
    if have < need:
        raise InputError(f"{path}: truncated: {have} bytes, the header promises {need}; copy the file again")


def _grid(header: nib.Nifti1Header, sides: tuple[int, ...], path: Path) -> tuple[Grid, bool, list[str]]:
    """Grid in (D, H, W) order, whether the frame is known, and remarks."""
    count = min(int(header["dim"][0]), 3)
    pixdim = np.array(header["pixdim"][1:4], dtype=np.float64)
    if not (np.isfinite(pixdim[:count]).all() and (pixdim[:count] != 0).all()):
        raise InputError(f"{path}: header pixdim is {pixdim[:count].tolist()}; expected sizes in mm, not 0; repair it")
    clean = header.copy()
    clean["pixdim"][1:4] = np.where(np.arange(3) < count, np.abs(pixdim), np.abs(pixdim) + (pixdim == 0))
    notes: list[str] = []
    known = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    if not known:
        notes.append("no sform and no qform: the place in the patient is unknown")
        warnings.warn(
            f"{path}: has neither sform nor qform; axes and origin are a convention, sides may be swapped",
            UserWarning,
            stacklevel=4,
        )
    unit = int(header["xyzt_units"]) & 7
    if unit in _UNITS:
        notes.append(f"header says {_UNITS[unit]}, not mm")
    try:
        affine = np.array(clean.get_best_affine(), dtype=np.float64)
        grid = Grid(shape=sides[::-1], affine=affine[:, [2, 1, 0, 3]], world="RAS")
    except (GeometryError, ValueError, nib.spatialimages.HeaderDataError) as error:
        raise GeometryError(f"{path}: {error}; repair the header") from error
    return grid, known, notes


def _damage(path: Path, proxy: ArrayProxy, error: Exception) -> str:
    """Message for a file that broke off; counts what could be unpacked."""
    need = int(proxy.offset) + int(np.prod(proxy.shape, dtype=np.int64)) * proxy.dtype.itemsize
    have = 0
    opener: Any = gzip.open if full_suffix(path).endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            while chunk := file.read(1 << 16):
                have += len(chunk)
    except (EOFError, OSError, zlib.error):
        pass
    return f"{path}: truncated or damaged: about {have} of {need} bytes can be read ({error}); copy the file again"


def write_nifti(path: Path | str, labels: Array, grid: Grid) -> None:
    """Write a label map; the dtype follows from its largest label (uint8, uint16 or uint32).

    Args:
        path: .nii or .nii.gz; written atomically.
        labels: whole numbers >= 0 on ``grid.shape`` (D, H, W).
        grid: world "RAS" or "LPS"; LPS is converted by sign flips.

    Raises:
        GeometryError: shape or world do not fit, or float32 cannot hold the affine.
        InputError: the array holds no labels.
        OutputError: the file cannot be written; nothing is left behind.
    """
    check_shape(np.shape(labels), grid, path)
    _save(Path(path), as_labels(np.asarray(labels), str(path), copy=False), grid)


def write_nifti_image(path: Path | str, image: Array, grid: Grid) -> None:
    """Write an image (D, H, W) with its own dtype (bool as uint8); arguments and errors as in ``write_nifti``."""
    check_shape(np.shape(image), grid, path)
    array = np.asarray(image)
    _save(Path(path), array.astype(np.uint8) if array.dtype == np.bool_ else array, grid)


def _save(path: Path, array: Array, grid: Grid) -> None:
    """Write the file under a temporary name, check the affine, move it into place."""
    if full_suffix(path) not in (".nii", ".nii.gz"):
        raise GeometryError(f"cannot write {path}: a NIfTI is named .nii or .nii.gz")
    ras = to_frame(grid, "RAS")
    affine = ras.affine[:, [2, 1, 0, 3]]
    large = max(array.shape) > _NIFTI1_MAX_SIDE
    image_type: Any = nib.Nifti2Image if large else nib.Nifti1Image
    image = image_type(array.transpose(2, 1, 0), None, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    place_affine(image.header, affine)
    _check_affine(image.header, ras, path)
    with atomic_path(path) as temp, temp.open("wb") as file:
        if full_suffix(path) == ".nii.gz":
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)


def place_affine(header: nib.Nifti1Header, affine: NDArray[np.float64]) -> None:
    """Store an affine so that it reads back bit-equal where the format can hold it.

    An affine made of float32 numbers goes into the sform (code 1), and into the qform too if it has no shear. One that
    came from a qform (float64 numbers computed from a float32 quaternion) goes back into the qform alone, if that
    reproduces it; otherwise the sform holds it rounded to float32.
    """
    exact = np.array_equal(affine.astype(np.float32).astype(np.float64), affine)
    header.set_sform(None, code=0)
    header.set_qform(None, code=0)
    header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
    try:
        header.set_qform(affine, code=1, strip_shears=False)
        has_qform = np.array_equal(header.get_qform(), affine)
        close = np.allclose(header.get_qform(), affine, rtol=0, atol=WRITE_TOLERANCE)
    except nib.spatialimages.HeaderDataError:
        has_qform = close = False
    if exact or not has_qform:
        header.set_sform(affine, code=1)
        header["qform_code"] = 1 if close else 0


def _check_affine(header: nib.Nifti1Header, ras: Grid, path: Path) -> None:
    """Refuse when rounding to float32 would move the volume."""
    stored = Grid(shape=ras.shape, affine=np.array(header.get_best_affine())[:, [2, 1, 0, 3]], world="RAS")
    moved = stored.corner_distance(ras)
    if not moved <= WRITE_TOLERANCE:
        raise GeometryError(
            f"cannot write {path}: NIfTI keeps the affine as float32, which would move a corner by {moved:.3g} mm "
            f"(allowed {WRITE_TOLERANCE:g}); write .nrrd instead"
        )
