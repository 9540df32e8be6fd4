"""A folder of DICOM slices as one volume: headers first, strict order, pixels slice by slice.

Slices are ordered by their position along the common normal (ImagePositionPatient . (row x column)), never by instance
number. World "LPS" in mm, arrays (D, H, W). Whatever would change the geometry silently is an error with a name: gaps,
duplicates, two series, tilt, slices of other sizes. Standard: DICOM PS3.3 C.7.6.2 (Image Plane).
"""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.medical.dicom_order import Slice, Stack, stack_slices
from samgraft.domains.scene import Array, NanPolicy, Scene, Window, dtype_range, guard_finite
from samgraft.errors import InputError, MissingDependencyError

SPACING_TOLERANCE_MM = 0.1
"""Default for how far, in mm, a slice may lie from the regular position."""

_GAP_VALUE = {"CT": -1024.0}
_TAGS = (
    "SOPInstanceUID SOPClassUID Modality SeriesInstanceUID SeriesDescription SeriesNumber Rows Columns PixelSpacing "
    "ImageOrientationPatient ImagePositionPatient SliceThickness SpacingBetweenSlices RescaleSlope RescaleIntercept "
    "BitsAllocated BitsStored PixelRepresentation SamplesPerPixel NumberOfFrames PhotometricInterpretation "
    "SharedFunctionalGroupsSequence PixelPaddingValue"
).split()


class DicomScene(Scene):
    """One DICOM series (or one slice file); only headers are read on construction."""

    def __init__(
        self,
        path: Path,
        *,
        series: str | None = None,
        nan: NanPolicy = "raise",
        allow_gaps: bool = False,
        spacing_tolerance: float = SPACING_TOLERANCE_MM,
    ) -> None:
        """Read all headers below ``path``, choose the series, check and order its slices.

        Args:
            path: folder (searched with its subfolders) or one file.
            series: SeriesInstanceUID or SeriesDescription; needed when there are several.
            nan: as in ``samgraft.open``; only float pixel data can hold NaN.
            allow_gaps: keep missing slices as empty ones (``valid`` is False there) instead of refusing.
            spacing_tolerance: how far in mm a slice may lie from its regular position.

        Raises:
            InputError: no DICOM image, several series, missing or duplicate slices, tilt, missing position, mixed
                sizes, colour, multi-frame.
            MissingDependencyError: pydicom is not installed.
        """
        slices, notes = _scan(path)
        chosen = _choose(slices, series, path)
        _check_uniform(chosen, path)
        self._stack: Stack = stack_slices(chosen, path, allow_gaps=allow_gaps, tolerance=spacing_tolerance)
        self._nan: NanPolicy = nan
        first = chosen[0]
        self._scaled = any((s.slope, s.intercept) != (1.0, 0.0) for s in chosen)
        raw = first.dtype
        ranges = [r for s in chosen if (r := dtype_range(raw, s.slope, s.intercept)) is not None]
        super().__init__(
            path=path,
            kind="volume",
            grid=self._stack.grid,
            channels=1,
            dtype=np.dtype(np.float32) if self._scaled else raw,
            format="DICOM series" if path.is_dir() else "DICOM file",
            modality=first.modality,
            value_range=(min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else None,
            notes=[*notes, *self._stack.notes],
        )
        self.series_uid = first.series
        """SeriesInstanceUID of the series that was opened."""

    @property
    def files(self) -> tuple[Path | None, ...]:
        """File of each slice in array order; None where a slice is missing."""
        return tuple(None if s is None else s.path for s in self._stack.slices)

    def _read(self, window: Window, channels: tuple[int, ...]) -> Array:
        """Decode the slices of the window one by one."""
        shape = tuple(s.stop - s.start for s in window)
        out = np.empty(shape, dtype=self.dtype)
        for k, index in enumerate(range(window[0].start, window[0].stop)):
            one = self._stack.slices[index]
            if one is None:
                out[k] = _GAP_VALUE.get(self.modality or "", 0.0)
                continue
            pixels = _decode(one)[window[1], window[2]]
            if self._scaled:
                out[k] = pixels.astype(np.float64) * one.slope + one.intercept
            else:
                out[k] = pixels
        checked = guard_finite(out, nan=self._nan, where=str(self.path), grid=self.grid, window=window)
        return np.stack([checked] * len(channels))

    def _valid(self, window: Window) -> NDArray[np.bool_]:
        """False on missing slices, and where a slice holds its PixelPaddingValue."""
        valid = super()._valid(window)
        for k, index in enumerate(range(window[0].start, window[0].stop)):
            one = self._stack.slices[index]
            if one is None:
                valid[k] = False
            elif one.padding is not None:
                valid[k] = _decode(one)[window[1], window[2]] != one.padding
        return valid


def is_dicom(path: Path) -> bool:
    """True if a file carries the DICOM mark ("DICM" after 128 bytes)."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _pydicom() -> Any:
    """Import pydicom when it is needed."""
    try:
        import pydicom
    except ImportError as error:
        raise MissingDependencyError("reading DICOM needs pydicom: pip install 'samgraft[dicom]'") from error
    return pydicom


def _scan(path: Path) -> tuple[list[Slice], list[str]]:
    """Read the headers of every file below a folder; what is no image slice is counted and mentioned."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    if not files:
        raise InputError(f"{path}: the folder is empty; expected DICOM files")
    slices: list[Slice] = []
    ignored: dict[str, int] = {}
    for file in files:
        found = _header(file)
        if isinstance(found, Slice):
            slices.append(found)
        else:
            ignored[found] = ignored.get(found, 0) + 1
    if not slices:
        what = ", ".join(f"{n} x {kind}" for kind, n in ignored.items())
        raise InputError(f"{path}: no DICOM image slices among {len(files)} files ({what}); expected CT, MR or similar")
    return slices, [f"ignored {n} {kind} file{'s' if n > 1 else ''}" for kind, n in sorted(ignored.items())]


def _header(file: Path) -> Slice | str:
    """Header of one file as a Slice, or in a word why it is none."""
    pydicom = _pydicom()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            head = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
    except pydicom.errors.InvalidDicomError:
        return "non-DICOM"
    except Exception as error:
        raise InputError(f"{file}: damaged DICOM header ({error}); copy the file again or remove it") from error
    if "Rows" not in head or "Columns" not in head:
        return str(head.get("Modality") or "non-image DICOM")
    if head.get("Modality") in ("SEG", "RTDOSE"):
        return str(head.Modality)
    try:
        return _slice(file, head)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{file}: unreadable DICOM header value ({error}); repair or remove the file") from error


def _slice(file: Path, head: Any) -> Slice:
    """Collect what the stack needs; absent geometry is refused here."""
    if int(head.get("NumberOfFrames") or 1) > 1 or "SharedFunctionalGroupsSequence" in head:
        raise InputError(
            f"{file}: multi-frame (enhanced) DICOM is not supported yet and comes with a later version; "
            "convert it to single-frame slices or NIfTI"
        )
    if int(head.get("SamplesPerPixel") or 1) != 1:
        raise InputError(f"{file}: colour DICOM ({head.get('PhotometricInterpretation')}); expected one gray channel")
    for tag, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
        value = head.get(tag)
        if value is None or len(value) != count:
            raise InputError(f"{file}: {tag} is missing or incomplete ({value}); the slice cannot be placed; remove it")
    rows, columns = int(head.Rows), int(head.Columns)
    bits, signed = int(head.get("BitsAllocated") or 16), int(head.get("PixelRepresentation") or 0)
    kind = "f" if bits in (32, 64) and "PixelRepresentation" not in head else "i" if signed else "u"
    syntax = getattr(getattr(head, "file_meta", None), "TransferSyntaxUID", None)
    need, have = rows * columns * bits // 8, file.stat().st_size
    if syntax is not None and not syntax.is_compressed and have < need:
        raise InputError(f"{file}: truncated: {have} bytes, its pixels alone take {need}; copy the file again")
    slope, intercept = head.get("RescaleSlope"), head.get("RescaleIntercept")
    return Slice(
        path=file,
        uid=str(head.get("SOPInstanceUID", "")),
        series=str(head.get("SeriesInstanceUID", "")),
        description=str(head.get("SeriesDescription", "")),
        modality=str(head.get("Modality", "")) or None,
        shape=(rows, columns),
        dtype=np.dtype(f"{kind}{-(-bits // 8)}"),
        spacing=_floats(head.PixelSpacing),
        orientation=_floats(head.ImageOrientationPatient),
        position=_floats(head.ImagePositionPatient),
        thickness=_thickness(head),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        padding=None if head.get("PixelPaddingValue") is None else float(head.PixelPaddingValue),
    )


def _floats(values: Iterable[Any]) -> NDArray[np.float64]:
    """DICOM decimal strings as float64, which must be finite."""
    array = np.array([float(v) for v in values], dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"not finite: {array.tolist()}")
    return array


def _thickness(head: Any) -> float | None:
    """Distance of slices as the header claims it; used for a single slice and for a remark only."""
    for tag in ("SpacingBetweenSlices", "SliceThickness"):
        value = head.get(tag)
        if value is not None and abs(float(value)) > 0:
            return abs(float(value))
    return None


def _choose(slices: Sequence[Slice], series: str | None, path: Path) -> list[Slice]:
    """The slices of one series; several without a choice are an error that lists them."""
    groups: dict[str, list[Slice]] = {}
    for one in slices:
        groups.setdefault(one.series, []).append(one)
    listing = "\n".join(
        f"  series={uid!r}: {len(g)} slices, {g[0].modality}, {g[0].description!r}" for uid, g in groups.items()
    )
    if series is None:
        if len(groups) > 1:
            raise InputError(f"{path}: holds {len(groups)} series; choose with series=UID or description:\n{listing}")
        return next(iter(groups.values()))
    matches = [uid for uid, group in groups.items() if series in (uid, group[0].description)]
    if len(matches) != 1:
        raise InputError(f"{path}: series={series!r} fits {len(matches)} of {len(groups)}; choose from:\n{listing}")
    return groups[matches[0]]


def _check_uniform(slices: Sequence[Slice], path: Path) -> None:
    """All slices must share size, spacing, direction and sample type."""
    first = slices[0]
    axes = first.orientation
    for one in slices[1:]:
        for what, mine, other, same in (
            ("size", one.shape, first.shape, one.shape == first.shape),
            ("PixelSpacing", one.spacing, first.spacing, np.allclose(one.spacing, first.spacing, rtol=1e-4, atol=0)),
            ("direction", one.orientation, axes, np.allclose(one.orientation, axes, rtol=0, atol=1e-4)),
            ("sample type", one.dtype, first.dtype, one.dtype == first.dtype),
        ):
            if not same:
                raise InputError(
                    f"{path}: slices differ in {what}: {one.path.name} has {mine}, {first.path.name} has {other}; "
                    "remove localisers and foreign slices, or choose with series="
                )


def _decode(one: Slice) -> Array:
    """Stored pixels of one slice (H, W)."""
    pydicom = _pydicom()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = np.asarray(pydicom.dcmread(one.path).pixel_array)
    except Exception as error:
        raise InputError(
            f"{one.path}: pixels cannot be decoded ({error}); the file is truncated, or its compression needs "
            "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
        ) from error
    if pixels.shape != one.shape:
        raise InputError(f"{one.path}: pixels are {pixels.shape}, the header says {one.shape}; copy the file again")
    return pixels
