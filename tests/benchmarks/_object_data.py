"""Trees: aerial pictures with points (trees_naip) and with crown boxes (tree_crowns_neon), by plain readers.

What is learned from is an instance map, so a point becomes a disc and a box the ellipse in it; what is scored are the
points and boxes of the file. Crowns are read at 0.1 m: one of the three pictures has pixels of 0.018 m.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyogrio
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.enums import Resampling

from tests.benchmarks._data import Case, Float, Int, Split, data_root

Places = NDArray[np.float64]
DISC = 2.5
"""Radius of the disc that stands for a tree of trees_naip, metres: about that of the smaller crowns, four pixels."""
TRAINED_ON = 30
"""Pictures of trees_naip in the train split, the first in the order of names."""
PIXEL = 0.1
"""Metres per pixel of crowns."""
CROWNS = ("OSBS_029.tif", "2018_SJER_3_252000_4107000_image_477.tif", "australia.tif")


@dataclass(frozen=True, kw_only=True, eq=False)
class TreeCase(Case):
    """A picture with trees; ``label`` holds the discs or ellipses that are learned from, 1..n."""

    metre: float
    """Side of a pixel, metres."""
    points: Places | None = None
    """(n, 2) in (x, y) pixels, 0 is the first pixel's centre."""
    boxes: Places | None = None
    """(n, 4) x0, y0, x1, y1, first and last pixel."""


def trees(split: Split) -> list[TreeCase]:
    """Pictures of trees_naip (red, green, blue; near infrared is left out)."""
    folder = data_root() / "geo" / "trees_naip"
    paths = sorted((folder / "images").glob("*.tif"))
    chosen = paths[:TRAINED_ON] if split == "train" else paths[TRAINED_ON:]
    return [_tree_case(path, folder / "csv" / f"{path.stem}.csv") for path in chosen]


def _tree_case(path: Path, table: Path) -> TreeCase:
    image, metre = _read(path)
    points = read_points(table)
    label = discs(points, image.shape[:2], DISC / metre)
    return TreeCase(id=path.stem, name=path.name, image=image, label=label, metre=metre, points=points)


def read_points(table: Path) -> Places:
    """(n, 2) of a table with the columns x and y."""
    with table.open(newline="") as file:
        rows = [(float(row["x"]), float(row["y"])) for row in csv.DictReader(file)]
    return np.asarray(rows, dtype=np.float64).reshape(-1, 2)


def read_boxes(table: Path) -> Places:
    """(n, 4) first and last pixel of a table with edges xmin, ymin, xmax, ymax, whatever the order of its columns."""
    with table.open(newline="") as file:
        rows = [[float(row[key]) for key in ("xmin", "ymin", "xmax", "ymax")] for row in csv.DictReader(file)]
    return np.asarray(rows, dtype=np.float64).reshape(-1, 4) - (0, 0, 1, 1)


def crowns() -> list[TreeCase]:
    """The three pictures of tree_crowns_neon."""
    return [_crown_case(data_root() / "geo" / "tree_crowns_neon" / name) for name in CROWNS]


def _crown_case(path: Path) -> TreeCase:
    image, metre = _read(path, PIXEL)
    outlines = path.with_suffix(".shp")
    if outlines.exists():
        boxes = _shapefile_boxes(outlines, path, image.shape[:2])
    else:
        tables = [path.with_suffix(".csv"), path.with_name(f"{path.stem}_truth.csv")]
        boxes = read_boxes(next(table for table in tables if table.exists()))
    label = ellipses(boxes, image.shape[:2])
    return TreeCase(id=path.stem, name=path.name, image=image, label=label, metre=metre, boxes=boxes)


def _shapefile_boxes(outlines: Path, picture: Path, shape: Sequence[int]) -> Places:
    """(n, 4) of polygons in the CRS of the picture, on a grid of ``shape`` (H, W) over it."""
    found = shapely.bounds(shapely.from_wkb(pyogrio.raw.read(outlines)[2]))
    with rasterio.open(picture) as file:
        west, south, east, north = file.bounds
    x, y = shape[1] / (east - west), shape[0] / (north - south)
    edges = [(found[:, 0] - west) * x, (north - found[:, 3]) * y, (found[:, 2] - west) * x, (north - found[:, 1]) * y]
    return np.stack(edges, axis=1) - (0, 0, 1, 1)


def _read(path: Path, metre: float | None = None) -> tuple[Float, float]:
    """(H, W, 3) in [0, 1] and the side of a pixel; averaged to ``metre`` per pixel where the file is finer."""
    with rasterio.open(path) as file:
        own = float(file.transform.a)
        shrink = 1.0 if metre is None or own > 0.9 * metre else own / metre
        size = (round(file.height * shrink), round(file.width * shrink))
        pixels = file.read((1, 2, 3), out_shape=(3, *size), resampling=Resampling.average)
        side = own * file.width / size[1]
    return np.moveaxis(pixels, 0, -1).astype(np.float32) / np.float32(255), side


def discs(points: Places, shape: Sequence[int], radius: float) -> Int:
    """(H, W) instance map: every pixel within ``radius`` of a point belongs to the nearest one, 1..n."""
    y, x = np.indices((shape[0], shape[1]))
    label, nearest = np.zeros((shape[0], shape[1]), dtype=np.int32), np.full((shape[0], shape[1]), np.inf)
    for number, (px, py) in enumerate(points, start=1):
        away = (x - px) ** 2 + (y - py) ** 2
        closer = (away <= radius**2) & (away < nearest)
        label[closer], nearest[closer] = number, away[closer]
    return label


def ellipses(boxes: Places, shape: Sequence[int]) -> Int:
    """(H, W) instance map of the ellipses that fill the boxes, 1..n; a smaller one lies on a larger one."""
    y, x = np.indices((shape[0], shape[1]))
    label = np.zeros((shape[0], shape[1]), dtype=np.int32)
    sides = boxes[:, 2:] + 1 - boxes[:, :2]
    for row in np.argsort(-sides.prod(axis=1), kind="stable").tolist():
        (cx, cy), (width, height) = (boxes[row, :2] + boxes[row, 2:]) / 2, sides[row]
        label[(2 * (x - cx) / width) ** 2 + (2 * (y - cy) / height) ** 2 <= 1] = row + 1
    return label
