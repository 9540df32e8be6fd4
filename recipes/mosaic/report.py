"""A page to look at after a mosaic run: the whole raster with outlines and skipped tiles, and some places at full size.

Reads back what was written, a part of it: memory follows neither the raster nor the number of objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pyogrio import raw
from rasterio.windows import Window as GdalWindow

from samgraft.domains.atomic import full_suffix
from samgraft.domains.remote_sensing.geo_scene import GeoScene
from samgraft.domains.remote_sensing.georeference import point_map, transform_of
from samgraft.domains.scene import Scene
from samgraft.recipes.look import Look, look_at
from samgraft.recipes.mosaic.progress import clock
from samgraft.recipes.mosaic.run import MosaicSummary
from samgraft.recipes.report import PALETTE, Report, png

Part = tuple[slice, slice]
Picture = NDArray[np.uint8]
OVERVIEW_PIXELS = 1_500_000
"""Of the picture of the whole raster."""
MOST_OUTLINES = 20_000
"""Outlines that are drawn on it."""
PLACES, SIDE = 4, 480
"""Places that are shown at full size, and their side in pixels."""
SKIPPED = (230, 30, 60)


@dataclass(frozen=True, eq=False)
class Outlines:
    """Polygons in (col, row) pixels of the raster, and the class of each."""

    polygons: NDArray[Any]
    classes: NDArray[np.int64]


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
    shape = (scene.grid.shape[0], scene.grid.shape[1])
    whole = (slice(0, shape[0]), slice(0, shape[1]))
    found = outlines_of(summary.outputs, scene, whole)
    report = Report(f"Segmentation of {scene.path.name}", subtitle=", ".join(p.name for p in summary.outputs))
    report.table("Run", ["what", "value"], _rows(scene, summary))
    if summary.by_class:
        report.table("Found", ["class", "objects"], [(name, count) for name, count in summary.by_class.items()])
    report.figure("Overview", png(_overview(scene, seen, found, summary)), caption=_caption(found, summary))
    pictures = [(place, _detail(scene, seen, summary.outputs, place)) for place in _places(found, shape)]
    for (rows, cols), picture in pictures:
        where = f"rows {rows.start} to {rows.stop}, columns {cols.start} to {cols.stop}"
        report.figure(f"Full size: {where}", png(picture))
    if summary.skipped:
        table = [(one.number, f"{one.rows[0]}-{one.rows[1]}", f"{one.cols[0]}-{one.cols[1]}", one.reason) for one in
                 summary.skipped]  # fmt: skip
        report.table("Skipped tiles", ["tile", "rows", "columns", "why"], table, note="Nothing was looked for there.")
    return report.save(path)


def outlines_of(outputs: Sequence[Path], scene: Scene, part: Part) -> Outlines:
    """Outlines of what was written, inside a part of the raster; at most ``MOST_OUTLINES``.

    Args:
        outputs: Files of the run; the first vector file is read, or else none.
        scene: The raster.
        part: Rows and columns.
    """
    to_pixel = point_map(~transform_of(scene.grid))
    corners = shapely.box(part[1].start, part[0].start, part[1].stop, part[0].stop)
    place = shapely.transform(corners, point_map(transform_of(scene.grid)))
    for path in outputs:
        suffix = full_suffix(path)
        if suffix in (".gpkg", ".fgb", ".geojson", ".json"):
            box = place.bounds if part[0].stop - part[0].start < scene.grid.shape[0] else None
            read = raw.read(path, columns=["class"], max_features=MOST_OUTLINES, bbox=box)
            shapes, classes = shapely.from_wkb(read[2]), read[3][0]
        elif suffix == ".parquet":
            shapes, classes = _from_parquet(path)
        else:
            continue
        polygons = shapely.transform(shapes, to_pixel)
        inside = shapely.intersects(polygons, corners)
        return Outlines(polygons[inside], np.asarray(classes, dtype=np.int64)[inside])
    return Outlines(np.zeros(0, dtype=object), np.zeros(0, dtype=np.int64))


def _from_parquet(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """The first ``MOST_OUTLINES`` features of a GeoParquet file."""
    from pyarrow import parquet

    shapes, classes, count = [], [], 0
    for batch in parquet.ParquetFile(path).iter_batches(columns=["geometry", "class"]):
        shapes.append(shapely.from_wkb(batch.column(0).to_numpy(zero_copy_only=False)))
        classes.append(batch.column(1).to_numpy())
        count += len(shapes[-1])
        if count >= MOST_OUTLINES:
            break
    if not shapes:
        return np.zeros(0, dtype=object), np.zeros(0, dtype=np.int64)
    return np.concatenate(shapes)[:MOST_OUTLINES], np.concatenate(classes)[:MOST_OUTLINES]


def _overview(scene: Scene, look: Look, found: Outlines, summary: MosaicSummary) -> Picture:
    """The whole raster, small, with outlines and skipped tiles."""
    if isinstance(scene, GeoScene):
        array, valid = scene.overview(OVERVIEW_PIXELS)
        picture = _picture(array[list(look.channels)], valid, look)
    else:
        step = max(1, round(float(np.sqrt(np.prod(scene.grid.shape) / OVERVIEW_PIXELS))))
        array, valid = scene.read_valid(None, look.channels)
        picture = _picture(array[:, ::step, ::step], valid[::step, ::step], look)
    factors = np.array([picture.shape[1] / scene.grid.shape[1], picture.shape[0] / scene.grid.shape[0]])
    if not len(found.polygons):
        _tint(picture, summary.outputs, None)
    return _drawn(picture, found, np.zeros(2), factors, summary, width=1)


def _detail(scene: Scene, look: Look, outputs: Sequence[Path], place: Part) -> Picture:
    """A place at full size, with its outlines."""
    array, valid = scene.read_valid(place, look.channels)
    picture = _picture(array, valid, look)
    found = outlines_of(outputs, scene, place)
    if not len(found.polygons):
        _tint(picture, outputs, place)
    corner = np.array([place[1].start, place[0].start], dtype=np.float64)
    enlarged = np.ascontiguousarray(picture.repeat(2, axis=0).repeat(2, axis=1))
    return _drawn(enlarged, found, corner, np.array([2.0, 2.0]), None, width=2)


def _picture(array: NDArray[Any], valid: NDArray[np.bool_], look: Look) -> Picture:
    seen = look.apply(array) * valid[None]
    return np.ascontiguousarray((np.moveaxis(seen, 0, -1) * 255 + 0.5).astype(np.uint8))


def _drawn(
    picture: Picture,
    found: Outlines,
    corner: NDArray[np.float64],
    factors: NDArray[np.float64],
    summary: MosaicSummary | None,
    *,
    width: int,
) -> Picture:
    """Outlines in the colour of their class, and skipped tiles crossed out."""
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    for polygon, label in zip(found.polygons, found.classes.tolist(), strict=True):
        colour = tuple(PALETTE[(label - 1) % len(PALETTE)])
        for ring in shapely.get_rings(polygon):
            points = (shapely.get_coordinates(ring) - corner) * factors
            pen.line([tuple(p) for p in points.tolist()], fill=colour, width=width)
    for one in summary.skipped if summary else ():
        x0, x1 = ((v - corner[0]) * factors[0] for v in (one.cols[0], one.cols[1] + 1))
        y0, y1 = ((v - corner[1]) * factors[1] for v in (one.rows[0], one.rows[1] + 1))
        pen.rectangle([x0, y0, x1, y1], outline=SKIPPED, width=2)
        pen.line([x0, y0, x1, y1], fill=SKIPPED, width=2)
        pen.line([x0, y1, x1, y0], fill=SKIPPED, width=2)
    return np.asarray(image)


def _tint(picture: Picture, outputs: Sequence[Path], place: Part | None) -> None:
    """Colour what a raster output says, where there are no outlines."""
    rasters = [path for path in outputs if full_suffix(path) in (".tif", ".tiff")]
    if not rasters:
        return
    window = None
    if place is not None:
        rows, cols = place
        window = GdalWindow(cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start)
    with rasterio.open(rasters[0]) as source:
        labels = source.read(1, window=window, out_shape=picture.shape[:2])
        labels = np.where(labels == (source.nodata or 0), 0, labels)
    colours = np.array(PALETTE, dtype=np.float64)
    seen = labels > 0
    mixed = 0.5 * picture[seen] + 0.5 * colours[(labels[seen].astype(np.int64) - 1) % len(colours)]
    picture[seen] = mixed.astype(np.uint8)


def _places(found: Outlines, shape: tuple[int, int]) -> list[Part]:
    """Squares around some objects spread evenly over the file, or around the centre."""
    if len(found.polygons):
        picks = np.linspace(0, len(found.polygons) - 1, min(PLACES, len(found.polygons)) * 2 + 1)[1::2].round()
        centres = shapely.get_coordinates(shapely.centroid(found.polygons[picks.astype(int)]))
    else:
        centres = np.array([[shape[1] / 2, shape[0] / 2]])
    parts = []
    for x, y in centres.tolist():
        axes = []
        for value, length in ((y, shape[0]), (x, shape[1])):
            start = int(min(max(0, value - SIDE // 2), max(0, length - SIDE)))
            axes.append(slice(start, min(length, start + SIDE)))
        if (axes[0], axes[1]) not in parts:
            parts.append((axes[0], axes[1]))
    return parts


def _caption(found: Outlines, summary: MosaicSummary) -> str:
    drawn = len(found.polygons)
    many = f"the first {drawn:,} of {summary.objects:,} outlines" if drawn < summary.objects else f"{drawn:,} outlines"
    return many + ("; crossed out: tiles that could not be read" if summary.skipped else "")


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
