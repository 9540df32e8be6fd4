"""Several raster files as one: a lazy :class:`MosaicScene`.

Every file keeps its own nodata value, mask and scale. Files whose pixels lie on the common grid are copied; others are
moved onto it by GDAL's warper, each on the part of the grid that it covers. Where files overlap, the first one named
that has data wins. Files are opened only when a window touches them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.remote_sensing.geo_scene import GeoScene, Sample, reduced_shape
from samgraft.domains.remote_sensing.georeference import PIXEL, crs_of
from samgraft.domains.remote_sensing.header import RasterChoice
from samgraft.domains.remote_sensing.raster import RasterScene
from samgraft.domains.remote_sensing.warp import Warp, WarpedScene, placed
from samgraft.domains.scene import Array, Window
from samgraft.errors import ConfigError, GeometryError, InputError
from samgraft.grid import Grid

ON_GRID = 0.01
"""Pixels by which a file's corners may miss the common grid and still be copied."""

MixedDtypes = Literal["refuse", "promote"]
"""What to do with files of different dtypes: refuse them by name, or widen all to one that holds every value."""

_MOST_SIDE = 2**31 - 1
_MOST_SAMPLED = 64


@dataclass(frozen=True, eq=False)
class _Part:
    """A file on the mosaic's grid."""

    scene: RasterScene
    """Pixels that lie on the grid."""
    row: int
    """First row of the mosaic that it covers."""
    col: int
    """First column."""


class MosaicScene(GeoScene):
    """Raster files side by side or overlapping, seen as one raster."""

    def __init__(
        self,
        paths: Sequence[Path | str],
        *,
        choice: RasterChoice | None = None,
        warp: Warp | None = None,
        dtypes: MixedDtypes = "refuse",
    ) -> None:
        """Read all headers and lay the files out.

        The grid is that of the first file, extended over all. With ``warp.crs`` it is that of the first file in this
        CRS, else a north-up one with pixels of the first file's area.

        Args:
            paths: Raster files; the first has precedence where they overlap.
            choice: Bands, sensor, nodata; the same for all files.
            warp: Common CRS, and interpolation of files that do not lie on the common grid.
            dtypes: Whether files of different dtypes are widened.

        Raises:
            InputError: no file, a damaged one, or files with other numbers of bands, dtypes or colours.
            GeometryError: files in different CRS without ``warp.crs``, or with no place on the common grid.
            ConfigError: another word for ``dtypes``, or an unknown sensor or CRS.
        """
        if dtypes not in ("refuse", "promote"):
            raise ConfigError(f"dtypes is {dtypes!r}; expected 'refuse' or 'promote'")
        if not paths:
            raise InputError("no raster named; give at least one path")
        chosen, warp = choice or RasterChoice(), warp or Warp()
        scenes = [placed(Path(path), chosen, warp) for path in paths]
        _require_alike(scenes, dtypes)
        _require_places(scenes)
        if warp.crs is None:
            _require_one_world(scenes)
        parts, grid, remarks = _laid_out(scenes, chosen, warp)
        first = scenes[0]
        self.parts = parts
        """Files on the grid, in order of precedence."""
        self.color = first.color
        self.block_shape = first.block_shape
        self._places = np.array(
            [(p.row, p.row + p.scene.grid.shape[0], p.col, p.col + p.scene.grid.shape[1]) for p in parts],
            dtype=np.int64,
        )
        ranges = [scene.value_range for scene in scenes]
        known = [r for r in ranges if r is not None]
        super().__init__(
            path=first.path,
            kind="raster",
            grid=grid,
            channels=first.channels,
            dtype=np.result_type(*(scene.dtype for scene in scenes)),
            format=f"mosaic of {len(scenes)} {first.format} files",
            value_range=(min(r[0] for r in known), max(r[1] for r in known)) if len(known) == len(ranges) else None,
            channel_names=first.channel_names,
            frame_known=first.frame_known,
            notes=remarks,
        )

    @property
    def files(self) -> tuple[Path, ...]:
        """All files, each once."""
        return tuple(dict.fromkeys(file for part in self.parts for file in part.scene.files))

    def touches(self, window: Window) -> bool:
        """False between the files; see :class:`GeoScene`."""
        return bool(self._hits(window).any())

    def overview(self, max_pixels: int = 1_000_000) -> tuple[Array, NDArray[np.bool_]]:
        """The whole mosaic at reduced size, from the overviews of its files; see :class:`GeoScene`."""
        height, width = reduced_shape(self.grid.shape, max_pixels)
        array = np.zeros((self.channels, height, width), dtype=self.dtype)
        valid = np.zeros((height, width), dtype=np.bool_)
        rows, cols = (
            ((2 * np.arange(n) + 1) * side) // (2 * n) for n, side in zip((height, width), self.grid.shape, strict=True)
        )
        for part, (top, bottom, left, right) in zip(self.parts, self._places.tolist(), strict=True):
            inside = (rows >= top) & (rows < bottom), (cols >= left) & (cols < right)
            if not (inside[0].any() and inside[1].any()):
                continue
            small, seen = part.scene.overview(4 * int(inside[0].sum()) * int(inside[1].sum()))
            y = (rows[inside[0]] - top) * small.shape[1] // (bottom - top)
            x = (cols[inside[1]] - left) * small.shape[2] // (right - left)
            place = np.ix_(*(np.flatnonzero(side) for side in inside))
            new = seen[np.ix_(y, x)] & ~valid[place]
            for number in range(self.channels):
                array[number][place] = np.where(new, small[number][np.ix_(y, x)], array[number][place])
            valid[place] |= new
        return array, valid

    def sample(self, limit: int = 1_000_000) -> Sample:
        """Valid pixels of evenly chosen files; every file has the same share. See :class:`GeoScene`."""
        count = min(_MOST_SAMPLED, len(self.parts))
        chosen = [self.parts[(2 * i + 1) * len(self.parts) // (2 * count)] for i in range(count)]
        found = [part.scene.sample(max(1, limit // count)) for part in chosen]
        if not any(one.values.shape[1] for one in found) and count < len(self.parts):
            return super().sample(limit)
        values = np.concatenate([one.values.astype(self.dtype, copy=False) for one in found], axis=1)
        hows = sorted({one.how for one in found})
        return Sample(values=values, how=f"{count} of {len(self.parts)} files: {' and '.join(hows[:3])}")

    def _both(self, window: Window, channels: tuple[int, ...]) -> tuple[Array, NDArray[np.bool_]]:
        """Pixels and validity of a window, from the files that touch it."""
        rows, cols = window
        shape = (rows.stop - rows.start, cols.stop - cols.start)
        array = np.zeros((len(channels), *shape), dtype=self.dtype)
        valid = np.zeros(shape, dtype=np.bool_)
        top, bottom, left, right = self._places.T
        for number in np.flatnonzero(self._hits(window)).tolist():
            part = self.parts[number]
            a, b = max(rows.start, int(top[number])), min(rows.stop, int(bottom[number]))
            c, d = max(cols.start, int(left[number])), min(cols.stop, int(right[number]))
            here = (slice(a - rows.start, b - rows.start), slice(c - cols.start, d - cols.start))
            if valid[here].all():
                continue
            there = (slice(a - part.row, b - part.row), slice(c - part.col, d - part.col))
            pixels, seen = part.scene.read_valid(there, channels)
            new = seen & ~valid[here]
            np.copyto(array[(slice(None), *here)], pixels.astype(self.dtype, copy=False), where=new)
            valid[here] |= new
        return array, valid

    def _hits(self, window: Window) -> NDArray[np.bool_]:
        """Which files a window touches."""
        (rows, cols), (top, bottom, left, right) = window, self._places.T
        hits = (top < rows.stop) & (bottom > rows.start) & (left < cols.stop) & (right > cols.start)
        return np.asarray(hits)


def _require_alike(scenes: Sequence[RasterScene], dtypes: MixedDtypes) -> None:
    """Refuse files whose pixels do not mean the same."""
    first = scenes[0]
    for other in scenes[1:]:
        if other.channels != first.channels:
            raise InputError(
                f"{other.path} has {other.channels} channels, {first.path} has {first.channels}; choose bands that "
                "all files have"
            )
        if other.dtype != first.dtype and dtypes == "refuse":
            raise InputError(
                f"{other.path} has {other.dtype} pixels, {first.path} has {first.dtype}; convert one, or open with "
                "dtypes='promote' if the same number means the same in both"
            )
        told = [{"red", "green", "blue"} <= set(scene.color) for scene in (first, other)]
        if all(told) and other.color != first.color:
            raise InputError(
                f"{other.path} has the channels {', '.join(other.color)}, {first.path} has {', '.join(first.color)}; "
                "choose bands by name"
            )


def _require_places(scenes: Sequence[RasterScene]) -> None:
    """Refuse files that nothing places: they would all lie on each other."""
    for scene in scenes if len(scenes) > 1 else ():
        if scene.grid.world == PIXEL:
            raise GeometryError(
                f"{scene.path} has no place in the world (neither CRS nor transform), so it cannot lie beside other "
                "files; open it alone"
            )


def _require_one_world(scenes: Sequence[RasterScene]) -> None:
    """Refuse files in different coordinate reference systems."""
    first = scenes[0]
    for other in scenes[1:]:
        if other.grid.world != first.grid.world:
            names = [str(crs.to_string())[:60] if (crs := crs_of(s.grid)) else "no CRS" for s in (other, first)]
            raise GeometryError(
                f"{other.path} is in {names[0]}, {first.path} in {names[1]}; name the CRS to bring all files to: "
                f"crs={names[1]!r}"
            )


def _laid_out(
    scenes: Sequence[RasterScene], choice: RasterChoice, warp: Warp
) -> tuple[tuple[_Part, ...], Grid, tuple[str, ...]]:
    """Parts on one grid, the grid, and remarks."""
    base = next((s for s in scenes if not isinstance(s, WarpedScene)), scenes[0]).grid
    shifts = _shifts([scene.grid for scene in scenes])
    corners = np.stack([_corners(base, s.grid, shift) for s, shift in zip(scenes, shifts, strict=True)])  # (n, 4, 2)
    low = np.floor(corners.min(axis=1) + ON_GRID).astype(np.int64)
    high = np.ceil(corners.max(axis=1) - ON_GRID).astype(np.int64)
    high = np.maximum(high, low + 1)
    origin, end = low.min(axis=0), high.max(axis=0)
    shape = (int(end[0] - origin[0]), int(end[1] - origin[1]))
    if max(shape) > _MOST_SIDE:
        raise GeometryError(f"the files span {shape[0]} x {shape[1]} pixels; open those that belong together")
    parts: list[_Part] = []
    onto: RasterScene
    moved = 0
    for scene, shift, place, four in zip(scenes, shifts, low, corners, strict=True):
        number = len(parts)
        if not _on_grid(four, place, scene.grid.shape):
            moved += 1
            size = (int(high[number, 0] - place[0]), int(high[number, 1] - place[1]))
            grid = _part_of(base, place, size)
            turn = 0.0 if isinstance(scene, WarpedScene) else shift  # GDAL itself turns what comes from another CRS
            onto = WarpedScene(scene.path, warp=replace(warp, crs=None, shift=turn), choice=choice, grid=grid)
        else:
            onto = scene
        parts.append(_Part(onto, int(place[0] - origin[0]), int(place[1] - origin[1])))
    remarks = [*scenes[0].notes]
    if moved:
        remarks.append(f"{moved} files do not lie on the grid of the first: {warp.resampling}")
    if any(shifts):
        remarks.append("crosses the antimeridian")
    return tuple(parts), _part_of(base, origin, shape), tuple(remarks)


def _shifts(grids: Sequence[Grid]) -> list[float]:
    """What to add to the longitudes of each file so that files on both sides of the antimeridian lie together."""
    crs = crs_of(grids[0])
    spans = [(grid.corners()[:, 0].min(), grid.corners()[:, 0].max()) for grid in grids]
    west, east = min(s[0] for s in spans), max(s[1] for s in spans)
    if crs is None or not crs.is_geographic or east - west <= 180.0:
        return [0.0] * len(grids)
    anchor = spans[0][0] + spans[0][1]
    moved = [360.0 * round((anchor - s[0] - s[1]) / 720.0) for s in spans]
    ends = [(s[0] + m, s[1] + m) for s, m in zip(spans, moved, strict=True)]
    narrower = max(e[1] for e in ends) - min(e[0] for e in ends) < east - west
    return moved if narrower else [0.0] * len(grids)


def _corners(base: Grid, grid: Grid, shift: float) -> NDArray[np.float64]:
    """Corners of a grid, (4, 2), as rows and columns of ``base``."""
    return base.to_index(grid.corners() + np.array([shift, 0.0]))


def _on_grid(corners: NDArray[np.float64], place: NDArray[np.int64], shape: tuple[int, ...]) -> bool:
    """Whether all corners lie where pixels of the common grid meet, in the same order."""
    height, width = shape
    expected = np.array([[0, 0], [0, width], [height, 0], [height, width]], dtype=np.float64) + place
    return bool(np.abs(corners - expected).max() <= ON_GRID)


def _part_of(base: Grid, place: NDArray[np.int64], shape: tuple[int, int]) -> Grid:
    """Rows and columns of the plane that ``base`` divides into pixels; also beyond its own."""
    affine = base.affine.copy()
    if place.any():
        affine[:2, 2] = base.to_world(place.astype(np.float64))
    return Grid(shape=shape, affine=affine, world=base.world, anchor=base.anchor)
