"""A DICOM series as one volume: single slices or multi-frame, headers first, strict order, pixels slice by slice.

Slices are ordered by their position along the common normal (ImagePositionPatient . (row x column)), never by instance
number. World "LPS" in mm, arrays (D, H, W). Whatever would change the geometry silently is an error with a name: gaps,
duplicates, two series, several stacks or orientations, tilt, slices of other sizes. Enhanced (multi-frame) files give
one slice per frame (``dicom_header``). Standard: DICOM PS3.3 C.7.6.2 (Image Plane).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.medical.dicom_header import frame_pixels, read_slices
from samgraft.domains.medical.dicom_order import Slice, Stack, stack_slices
from samgraft.domains.scene import Array, NanPolicy, Scene, Window, dtype_range, guard_finite
from samgraft.errors import InputError

SPACING_TOLERANCE_MM = 0.1
"""Default for how far, in mm, a slice may lie from the regular position."""

_GAP_VALUE = {"CT": -1024.0}


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
            path: folder (searched with its subfolders) or one file; a file may be multi-frame.
            series: SeriesInstanceUID or SeriesDescription; needed when there are several.
            nan: as in ``samgraft.open``; only float pixel data can hold NaN.
            allow_gaps: keep missing slices as empty ones (``valid`` is False there) instead of refusing.
            spacing_tolerance: how far in mm a slice may lie from its regular position.

        Raises:
            InputError: no DICOM image, several series, missing or duplicate slices, tilt, missing position, mixed
                sizes, colour, several stacks or orientations in multi-frame files.
            MissingDependencyError: pydicom is not installed.
        """
        slices, notes = scan_folder(path)
        chosen = _choose(slices, series, path)
        _refuse_stacks(chosen, path)
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
            format="DICOM series" if path.is_dir() else "DICOM file" if first.frame is None else "multi-frame DICOM",
            modality=first.modality,
            value_range=(min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else None,
            notes=[*notes, *self._stack.notes],
        )
        self.series_uid = first.series
        """SeriesInstanceUID of the series that was opened."""
        self.frame_of_reference = first.frame_of_reference
        """FrameOfReferenceUID of the series; empty if its headers have none."""

    @property
    def slices(self) -> tuple[Slice | None, ...]:
        """Header of each slice in array order; None where a slice is missing."""
        return self._stack.slices

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
        return checked[None] if len(channels) == 1 else np.stack([checked] * len(channels))

    def _valid(self, window: Window) -> NDArray[np.bool_]:
        """False on missing slices, and where a slice holds its PixelPaddingValue."""
        if not self.may_hide:
            return super()._valid(window)
        valid = super()._valid(window).copy()
        for k, index in enumerate(range(window[0].start, window[0].stop)):
            one = self._stack.slices[index]
            if one is None:
                valid[k] = False
            elif one.padding is not None:
                valid[k] = _decode(one)[window[1], window[2]] != one.padding
        return valid

    @property
    def may_hide(self) -> bool:
        """A series with a missing slice, or one that names a value for padding, does."""
        return any(one is None or one.padding is not None for one in self._stack.slices)


def is_dicom(path: Path) -> bool:
    """True if a file carries the DICOM mark ("DICM" after 128 bytes)."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def scan_folder(path: Path) -> tuple[list[Slice], list[str]]:
    """Read the headers of every file below a folder; what is no image slice is counted and mentioned.

    Returns:
        Slices of every series, and remarks.

    Raises:
        InputError: nothing readable, or a damaged file.
    """
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    if not files:
        raise InputError(f"{path}: the folder is empty; expected DICOM files")
    slices: list[Slice] = []
    ignored: dict[str, int] = {}
    for file in files:
        found = read_slices(file)
        if isinstance(found, str):
            ignored[found] = ignored.get(found, 0) + 1
        else:
            slices += found
    if not slices:
        what = ", ".join(f"{n} x {kind}" for kind, n in ignored.items())
        known = {"SEG", "RTSTRUCT"} & set(ignored)
        labels = "; labels are read with samgraft labels FILE --image SERIES" if known else ""
        raise InputError(
            f"{path}: no DICOM image slices among {len(files)} files ({what}); expected CT, MR or similar{labels}"
        )
    return slices, [f"ignored {n} {kind} file{'s' if n > 1 else ''}" for kind, n in sorted(ignored.items())]


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


def _refuse_stacks(slices: Sequence[Slice], path: Path) -> None:
    """Multi-frame files with several stacks or directions hold several volumes."""
    names = sorted({s.stack for s in slices})
    if len(names) > 1:
        counts = ", ".join(f"{name!r}: {sum(s.stack == name for s in slices)} frames" for name in names)
        raise InputError(f"{path}: holds {len(names)} stacks ({counts}); split them into one file per stack")
    framed = [s for s in slices if s.frame is not None]
    axes = sorted({tuple(np.round(s.orientation, 3).tolist()) for s in framed})
    if len(axes) > 1:
        raise InputError(
            f"{path}: its frames have {len(axes)} orientations, such as {axes[0]} and {axes[1]}; "
            "split them into one file per orientation"
        )


def differences(one: Slice, first: Slice) -> list[tuple[str, object, object]]:
    """What two slices of one volume should share and do not: (what, value of ``one``, value of ``first``)."""
    axes, spacing = (one.orientation, first.orientation), (one.spacing, first.spacing)
    frames = (one.frame_of_reference, first.frame_of_reference)
    table = (
        ("size", one.shape, first.shape, one.shape == first.shape),
        ("PixelSpacing", *spacing, np.allclose(*spacing, rtol=1e-4, atol=0)),
        ("direction", *axes, np.allclose(*axes, rtol=0, atol=1e-4)),
        ("sample type", one.dtype, first.dtype, one.dtype == first.dtype),
        ("frame of reference", *frames, frames[0] == frames[1]),
    )
    return [(what, mine, other) for what, mine, other, same in table if not same]


def _check_uniform(slices: Sequence[Slice], path: Path) -> None:
    """All slices must share size, spacing, direction, sample type and frame of reference."""
    first = slices[0]
    for one in slices[1:]:
        for what, mine, other in differences(one, first):
            raise InputError(
                f"{path}: slices differ in {what}: {one.name} has {mine}, {first.name} has {other}; "
                "remove localisers and foreign slices, or choose with series="
            )


def _decode(one: Slice) -> Array:
    """Stored pixels of one slice (H, W)."""
    try:
        pixels = frame_pixels(one.path, one.frame)
    except Exception as error:
        raise InputError(
            f"{one.path}: pixels cannot be decoded ({error}); the file is truncated, or its compression needs "
            "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
        ) from error
    if pixels.shape != one.shape:
        raise InputError(f"{one.path}: pixels are {pixels.shape}, the header says {one.shape}; copy the file again")
    return pixels
