"""A page to look at after a mosaic run: the whole raster with outlines and skipped tiles, and some places at full size.

Reads back what was written, a part of it: memory follows neither the raster nor the number of objects.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window as GdalWindow

from samgraft.domains.atomic import full_suffix
from samgraft.domains.remote_sensing.stream_vector import FORMATS
from samgraft.domains.scene import Scene
from samgraft.errors import ConfigError, InputError
from samgraft.recipes.look import Look, look_at
from samgraft.recipes.mosaic.drawing import draw_outlines
from samgraft.recipes.mosaic.plan import Part, shape_of
from samgraft.recipes.mosaic.progress import clock
from samgraft.recipes.mosaic.run import MosaicSummary, Skipped
from samgraft.recipes.report import PALETTE, Report, png

Picture = NDArray[np.uint8]
OVERVIEW = 1200
"""Longest side of the picture of the whole raster."""
PLACES, SIDE = 4, 480
"""Places that are shown at full size, and their side in pixels."""


def write_mosaic_report(path: Path, scene: Scene, summary: MosaicSummary, look: Look | None = None) -> Path:
    """Write the HTML page.

    Args:
        path: Where it goes.
        scene: The raster that was segmented.
        summary: What the run said.
        look: Channels and scale of the pictures; None chooses by the raster.

    Raises:
        OutputError: the file cannot be written.
    """
    seen = look or look_at(scene)
    report = Report(f"Segmentation of {scene.path.name}", subtitle=", ".join(p.name for p in summary.outputs))
    report.table("Run", ["what", "value"], _rows(scene, summary))
    if summary.by_class:
        report.table("Found", ["class", "objects"], [(name, count) for name, count in summary.by_class.items()])
    caption = "crossed out: tiles that could not be read" if summary.skipped else ""
    for heading, window in [("Overview", None), *(("Full size", place) for place in _places(scene))]:
        try:
            picture, shown = _drawn(scene, summary, window, seen)
        except (InputError, ConfigError) as error:  # a damaged place: the page says so and goes on
            report.text(heading, f"cannot be drawn: {error}")
            continue
        many = f"{shown:,} outlines" if shown else ""
        if window is not None:
            heading += f": rows {window[0].start} to {window[0].stop}, columns {window[1].start} to {window[1].stop}"
        report.figure(heading, png(picture), caption="; ".join(filter(None, (many, caption if window is None else ""))))
    if summary.skipped:
        report.table("Skipped tiles", ["tile", "rows", "columns", "why"], [_cells(one) for one in summary.skipped])
    return report.save(path)


def _drawn(scene: Scene, summary: MosaicSummary, window: Part | None, look: Look) -> tuple[Picture, int]:
    """The raster or a part of it with what was found, and how many outlines that is."""
    crossed = [_core(one) for one in summary.skipped] if window is None else []
    side = OVERVIEW if window is None else 2 * SIDE
    vectors = [path for path in summary.outputs if full_suffix(path) in FORMATS]
    if vectors:
        drawn = draw_outlines(scene, vectors[0], window=window, side=side, marked=crossed, look=look)
        return drawn.picture, drawn.shown
    part = (slice(0, scene.grid.shape[0]), slice(0, scene.grid.shape[1])) if window is None else window
    step = max(1, -(-max(shape_of(part)) // side))
    return _tinted(scene, summary.outputs, part, step, look), 0


def _tinted(scene: Scene, outputs: Sequence[Path], part: Part, step: int, look: Look) -> Picture:
    """Every ``step``-th pixel, block by block; what a raster output says in colour, and black what cannot be read."""
    height, width = (-(-n // step) for n in shape_of(part))
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    block = 512 * step if step > 1 else 512
    for top in range(part[0].start, part[0].stop, block):
        for left in range(part[1].start, part[1].stop, block):
            rows, cols = slice(top, min(top + block, part[0].stop)), slice(left, min(left + block, part[1].stop))
            try:
                array, valid = _thin(scene, (rows, cols), step, look)
            except InputError:
                continue
            seen = np.moveaxis(look.apply(array) * valid[None], 0, -1)
            y, x = (rows.start - part[0].start) // step, (cols.start - part[1].start) // step
            picture[y : y + seen.shape[0], x : x + seen.shape[1]] = (seen * 255 + 0.5).astype(np.uint8)
    rasters = [path for path in outputs if full_suffix(path) in (".tif", ".tiff")]
    if rasters:
        _colour(picture, rasters[0], part, scene)
    return picture


def _thin(scene: Scene, part: Part, step: int, look: Look) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Every ``step``-th pixel of a part; of large steps, row by row, so that little is held."""
    if step == 1:
        return scene.read_valid(part, look.channels)
    found = [
        scene.read_valid((slice(row, row + 1), part[1]), look.channels)
        for row in range(part[0].start, part[0].stop, step)
    ]
    arrays, valid = zip(*found, strict=True)
    return np.concatenate(arrays, axis=1)[:, :, ::step], np.concatenate(valid)[:, ::step]


def _colour(picture: Picture, path: Path, part: Part, scene: Scene) -> None:
    """Half the colour of a label over its pixels; the file may have smaller or larger pixels than the scene."""
    rows, cols = part
    with rasterio.open(path) as source:
        down, across = source.height / scene.grid.shape[0], source.width / scene.grid.shape[1]
        size = (cols.stop - cols.start) * across, (rows.stop - rows.start) * down
        window = GdalWindow(cols.start * across, rows.start * down, *size)
        labels = source.read(1, window=window, out_shape=picture.shape[:2]).astype(np.int64)
        seen = (labels > 0) & (labels != source.nodata)
    colours = np.array(PALETTE, dtype=np.float64)
    picture[seen] = (0.5 * picture[seen] + 0.5 * colours[(labels[seen] - 1) % len(colours)]).astype(np.uint8)


def _places(scene: Scene) -> list[Part]:
    """Squares along the diagonal of the raster, or all of a small one."""
    height, width = scene.grid.shape
    if max(height, width) <= SIDE:
        return []
    found: list[Part] = []
    for share in (np.arange(PLACES) + 0.5) / PLACES:
        axes = [slice(s := int((n - min(n, SIDE)) * share), s + min(n, SIDE)) for n in (height, width)]
        if (axes[0], axes[1]) not in found:
            found.append((axes[0], axes[1]))
    return found


def _core(one: Skipped) -> Part:
    return slice(one.rows[0], one.rows[1] + 1), slice(one.cols[0], one.cols[1] + 1)


def _cells(one: Skipped) -> tuple[object, ...]:
    return one.number, f"{one.rows[0]} to {one.rows[1]}", f"{one.cols[0]} to {one.cols[1]}", one.reason


def _rows(scene: Scene, summary: MosaicSummary) -> list[tuple[str, object]]:
    rows, cols = scene.grid.shape
    return [
        ("raster", f"{rows:,} x {cols:,} pixels, {scene.channels} channels"),
        ("tiles", summary.tiles),
        ("of these without data in the area", summary.empty),
        ("computed by the last run", summary.computed),
        ("skipped", len(summary.skipped)),
        ("objects" if summary.kind == "instance" else "patches", summary.objects),
        ("time of the last run", clock(summary.seconds)),
        *[("written", str(path)) for path in summary.outputs],
    ]
