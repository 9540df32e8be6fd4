"""Pictures to look at: a raster, or a part of it, with the outlines of a vector file drawn on it.

Outlines are drawn where they lie to a fraction of a pixel; parts smaller than the picture are enlarged by a whole
factor, so that it shows whether an outline sits on an edge.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray

from samgraft.domains.atomic import atomic_path, full_suffix
from samgraft.domains.remote_sensing.georeference import point_map, transform_of
from samgraft.domains.remote_sensing.palette import class_color
from samgraft.domains.scene import Scene
from samgraft.errors import ConfigError, InputError
from samgraft.grid import Grid
from samgraft.recipes.look import Look, look_at
from samgraft.recipes.mosaic.plan import Part, shape_of
from samgraft.recipes.report import png

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

CLASS_FIELD = "class"
MARK = (230, 30, 30)
"""Colour of parts that are marked, such as tiles that could not be read."""
_HALO = (20, 24, 30)
_MOST_PIXELS = 64_000_000
Picture = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a picture shows."""

    picture: Picture
    """(h, w, 3)."""
    shown: int
    """Outlines drawn."""

    def save(self, path: Path | str) -> Path:
        """Write a PNG.

        Raises:
            OutputError: it cannot be written.
        """
        path = Path(path)
        with atomic_path(path) as temporary:
            temporary.write_bytes(png(self.picture))
        return path


def draw_outlines(
    scene: Scene,
    vectors: Path | str,
    *,
    window: Part | None = None,
    side: int = 1200,
    most: int = 20_000,
    marked: Iterable[Part] = (),
    look: Look | None = None,
) -> Drawn:
    """Draw the features of a vector file on a raster.

    Args:
        scene: The raster.
        vectors: Vector file in the raster's coordinates, as samgraft writes it; a field "class" gives the colours.
        window: Rows and columns to show; None shows the whole raster, from its overviews.
        side: The longer side of the picture, about.
        most: Draw no more features than this.
        marked: Parts of the raster to cross out.
        look: Channels and scale, if known; else they are chosen for the scene.

    Raises:
        InputError: the vector file cannot be read.
        ConfigError: a window that is too large to be read at once.
    """
    part = window or (slice(0, scene.grid.shape[0]), slice(0, scene.grid.shape[1]))
    picture = _picture(scene, part, side, window is None, look or look_at(scene))
    geometries, classes = _features(Path(vectors), _bounds(scene.grid, part), most)
    scale = np.array([picture.shape[1], picture.shape[0]]) / np.array(shape_of(part)[::-1])
    corner = np.array([part[1].start, part[0].start])
    to_pixel = point_map(~transform_of(scene.grid))
    placed = shapely.transform(geometries, lambda points: (to_pixel(points) - corner) * scale)
    drawn = _paint(picture, placed, [class_color(int(c or 1)) for c in classes], _boxes(marked, part, scale))
    return Drawn(picture=drawn, shown=len(placed))


def _picture(scene: Scene, part: Part, side: int, whole: bool, look: Look) -> Picture:
    """Pixels of a part as bytes, shrunk or enlarged to about ``side``."""
    height, width = shape_of(part)
    overview = getattr(scene, "overview", None)
    if whole and overview is not None and max(height, width) > side:
        values, _ = overview(max_pixels=max(1, int(side * side * min(height, width) / max(height, width))))
        values = values[list(look.channels)]
    elif height * width <= _MOST_PIXELS:
        step = max(1, -(-max(height, width) // side))
        values = scene.read(part, look.channels)[:, ::step, ::step]
    else:
        raise ConfigError(f"a window of {height} x {width} pixels cannot be drawn; at most {_MOST_PIXELS:,} pixels")
    image = (np.moveaxis(look.apply(values), 0, -1) * 255 + 0.5).astype(np.uint8)
    factor = max(1, round(side / max(image.shape[:2])))
    return np.ascontiguousarray(image.repeat(factor, axis=0).repeat(factor, axis=1))


def _bounds(grid: Grid, part: Part) -> tuple[float, float, float, float]:
    """Box around a part in map coordinates."""
    corners = [(x, y) for x in (part[1].start, part[1].stop) for y in (part[0].start, part[0].stop)]
    world = point_map(transform_of(grid))(np.array(corners, dtype=np.float64))
    return (*world.min(axis=0).tolist(), *world.max(axis=0).tolist())


def _features(
    path: Path, box: tuple[float, float, float, float], most: int
) -> tuple[NDArray[np.object_], Sequence[Any]]:
    """Geometries that meet a box, and their classes (None where there is none)."""
    if full_suffix(path) == ".parquet":
        from samgraft.domains.remote_sensing.geoparquet import read_features

        found, values = read_features(path, CLASS_FIELD, box=box, most=most)
        return found, values.tolist()
    from pyogrio import raw
    from pyogrio.errors import DataSourceError

    try:
        meta, _, geometry, fields = raw.read(path, columns=[CLASS_FIELD], bbox=box, max_features=most)
    except (DataSourceError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a vector file: {error}; is it complete?") from error
    return shapely.from_wkb(geometry), fields[0].tolist() if len(fields) else [None] * len(geometry)


def _boxes(parts: Iterable[Part], window: Part, scale: NDArray[np.float64]) -> list[tuple[float, ...]]:
    """Parts as (x0, y0, x1, y1) in the picture."""
    found = []
    for rows, cols in parts:
        ends = np.array([[cols.start, rows.start], [cols.stop, rows.stop]]) - [window[1].start, window[0].start]
        found.append(tuple((ends * scale).ravel().tolist()))
    return found


def _paint(
    picture: Picture,
    geometries: NDArray[np.object_],
    colours: Sequence[tuple[int, int, int, int]],
    boxes: Sequence[tuple[float, ...]],
) -> Picture:
    """Outlines in colour over a dark halo, so that they show on any ground."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture)
    canvas = ImageDraw.Draw(image)
    parts, whole = shapely.get_parts(geometries, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    lines = [[tuple(p) for p in shapely.get_coordinates(ring).tolist()] for ring in rings]
    for line in lines:
        canvas.line(line, fill=_HALO, width=4, joint="curve")
    for line, number in zip(lines, whole[part].tolist(), strict=True):
        canvas.line(line, fill=colours[number][:3], width=2, joint="curve")
    for box in boxes:
        _cross(canvas, box)
    return np.asarray(image, dtype=np.uint8)


def _cross(canvas: "ImageDraw", box: tuple[float, ...]) -> None:
    x0, y0, x1, y1 = box
    canvas.rectangle((x0, y0, x1, y1), outline=MARK, width=2)
    canvas.line((x0, y0, x1, y1), fill=MARK, width=1)
    canvas.line((x0, y1, x1, y0), fill=MARK, width=1)
