"""Real rasters through the one command: ``python -m tests.benchmarks.raster_sets``.

"banepa": the 48 chips as one VRT. An adapter is trained in the west (tile columns up to 386693), and the whole mosaic
is segmented with several tiles and overlaps, which should give the same polygons, and chip by chip, as people do who
have no mosaics. Average precision at an IoU of 0.5 in the east: against whole buildings, and against what of them lies
in a chip, with the polygons of either way cut at the chips.

"others": tree crowns of NEON, the 8-band scenes of Rio, and every file of geotiff_cases (among them 8 bands of
Sentinel-2), each through ``samgraft segment FILE --adapter ... -o FILE.gpkg --report``: polygons, whether they carry
the CRS of the input, and how many of their pixels lie where the input has no data.

Adapters are trained for ``--minutes`` each, and used again if they are in ``--work``.
"""

import argparse
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import rasterize

from samgraft.domains.opening import open_scene
from samgraft.domains.remote_sensing.georeference import ground_step, transform_of
from samgraft.recipes import cli
from tests.benchmarks._data import data_root
from tests.benchmarks._object_metrics import Overlaps, coco_average_precision
from tests.benchmarks._table import markdown, write_json
from tests.benchmarks.raster_pictures import call, rio_data, trained

WEST = 386693
"""Last tile column that trains."""
TILINGS = ((8192, 0), (512, 128), (700, 256), (1024, 128), (1024, 512), (1500, 300), (2048, 512))
"""Side and overlap in pixels; the first one holds the whole mosaic."""
SMALLEST = 16.0
"""Pixels below which a piece of a building, cut off by the edge of a chip, is not looked for."""
Objects = tuple[NDArray[Any], NDArray[np.float64]]
"""(n,) geometries in the CRS of the file, and their (n,) scores."""


def column(chip: Path) -> int:
    """Number of the tile column in the name of a chip."""
    return int(chip.name.split("-")[1])


def virtual(chips: Sequence[Path], target: Path) -> Path:
    """The chips as one VRT on the pixels of the first; neighbours in other latitudes have other pixels."""
    with rasterio.open(chips[0]) as first:
        crs, pixel_x, pixel_y = first.crs.to_wkt(), first.transform.a, -first.transform.e
    bounds = []
    for chip in chips:
        with rasterio.open(chip) as source:
            bounds.append((*source.bounds, source.width, source.height))
    left, top = min(b[0] for b in bounds), max(b[3] for b in bounds)
    size = [round((max(b[2] for b in bounds) - left) / pixel_x), round((top - min(b[1] for b in bounds)) / pixel_y)]
    root = ElementTree.Element("VRTDataset", rasterXSize=str(size[0]), rasterYSize=str(size[1]))
    ElementTree.SubElement(root, "SRS").text = crs
    ElementTree.SubElement(root, "GeoTransform").text = f"{left!r}, {pixel_x!r}, 0, {top!r}, 0, {-pixel_y!r}"
    for band, colour in enumerate(("Red", "Green", "Blue"), start=1):
        node = ElementTree.SubElement(root, "VRTRasterBand", dataType="Byte", band=str(band))
        ElementTree.SubElement(node, "ColorInterp").text = colour
        for chip, (x0, y0, x1, y1, width, height) in zip(chips, bounds, strict=True):
            source = ElementTree.SubElement(node, "ComplexSource", resampling="bilinear")
            ElementTree.SubElement(source, "SourceFilename", relativeToVRT="0").text = str(chip)
            ElementTree.SubElement(source, "SourceBand").text = str(band)
            ElementTree.SubElement(source, "SrcRect", xOff="0", yOff="0", xSize=str(width), ySize=str(height))
            place = {"xOff": (x0 - left) / pixel_x, "yOff": (top - y1) / pixel_y}
            place |= {"xSize": (x1 - x0) / pixel_x, "ySize": (y1 - y0) / pixel_y}
            ElementTree.SubElement(source, "DstRect", {key: repr(value) for key, value in place.items()})
    ElementTree.ElementTree(root).write(target)
    return target


def objects(path: Path) -> Objects:
    """Polygons of a written file."""
    meta, _, shapes, fields = pyogrio.raw.read(path)
    scores = fields[list(meta["fields"]).index("score")] if "score" in meta["fields"] else np.ones(len(shapes))
    return shapely.from_wkb(shapes), np.asarray(scores, dtype=np.float64)


def alike(found: NDArray[Any], expected: NDArray[Any]) -> dict[str, Any]:
    """How many polygons are equal vertex by vertex, and how much of the others is."""
    own, other = ({shapely.to_wkb(shapely.normalize(one)) for one in many} for many in (found, expected))
    union, both = shapely.union_all(found), shapely.union_all(expected)
    common = shapely.area(shapely.intersection(union, both)) / shapely.area(shapely.union(union, both))
    return {"polygons": len(found), "equal": len(own & other), "other": len(own - other), "area_iou": float(common)}


def overlaps(found: Objects, truth: NDArray[Any]) -> Overlaps:
    """IoU of every polygon with every building."""
    shapes, scores = found
    iou = np.zeros((len(shapes), len(truth)))
    if len(shapes) and len(truth):
        rows, cols = shapely.STRtree(truth).query(shapes, predicate="intersects")
        shared = shapely.area(shapely.intersection(shapes[rows], truth[cols]))
        iou[rows, cols] = shared / (shapely.area(shapes)[rows] + shapely.area(truth)[cols] - shared)
    return Overlaps(scores=scores, iou=iou)


def cut(found: Objects, to: Any, least: float) -> Objects:
    """What of the polygons lies in a geometry; pieces below an area are left out."""
    shapes = shapely.intersection(found[0], to)
    kept = shapely.area(shapes) >= least
    return shapes[kept], found[1][kept]


def precision(images: Sequence[Overlaps]) -> dict[str, float]:
    """AP at 0.5, and averaged over 0.5 to 0.95."""
    values = coco_average_precision(images)
    return {"ap50": float(values[0]), "ap": float(values.mean())}


def banepa(data: Path, work: Path, minutes: float) -> dict[str, Any]:
    """One mosaic, several tilings; and chip by chip."""
    folder = data / "geo" / "buildings_banepa" / "train"
    split = ("--data.split_pattern", r"OAM-(\d+)-", "--data.split_last_train", WEST)
    places = ("--data.images", "oam", "--data.labels", "osm")
    adapter = trained(work, minutes, "--config", "aerial_buildings", "--data", folder, *places, *split)
    chips = sorted((folder / "oam").glob("*.tif"))
    mosaic = virtual(chips, work / "banepa.vrt")
    tilings, first = [], np.zeros(0, dtype=object)
    for tile, overlap in TILINGS:
        output = work / f"tiles_{tile}_{overlap}.gpkg"
        start = time.perf_counter()
        call("segment", mosaic, "--adapter", adapter, "-o", output, *_tiled(tile, overlap), "--restart")
        shapes = objects(output)[0]
        first = first if len(first) else shapes
        seconds = time.perf_counter() - start
        tilings.append({"tile": tile, "overlap": overlap, **alike(shapes, first), "seconds": seconds})
        print(markdown(tilings[-1:]), flush=True)
    east = [chip for chip in chips if column(chip) > WEST]
    scores = scored(east, adapter, {"one mosaic": objects(work / "tiles_1024_512.gpkg")}, folder, work)
    print(markdown(scores), flush=True)
    return {"tilings": tilings, "east": scores}


def _tiled(tile: int, overlap: int) -> tuple[object, ...]:
    return ("--tile", tile, *(("--overlap", overlap) if overlap else ()))


def scored(
    chips: Sequence[Path], adapter: Path, ways: Mapping[str, Objects], folder: Path, work: Path
) -> list[dict[str, Any]]:
    """Average precision over the area of ``chips``: of ``ways``, and of these chips one by one."""
    frames, single = [], list[Objects]()
    for chip in chips:
        with rasterio.open(chip) as source:
            frames.append((shapely.box(*source.bounds), SMALLEST * source.transform.a * -source.transform.e))
        output = work / f"chip_{chip.stem}.gpkg"
        call("segment", chip, "--adapter", adapter, "-o", output)
        single.append(objects(output))
    every = (np.concatenate([one[0] for one in single]), np.concatenate([one[1] for one in single]))
    shapes, ones = objects(next(iter((folder / "osm").glob("*.geojson"))))
    truth = shapely.make_valid(shapes), ones
    area = shapely.union_all([frame for frame, _ in frames])
    rows = []
    for name, found in {**ways, "chip by chip": every}.items():
        parts = single if name not in ways else [found] * len(frames)
        inside = [
            overlaps(cut(part, frame, least), cut(truth, frame, least)[0])
            for part, (frame, least) in zip(parts, frames, strict=True)
        ]
        whole = overlaps(cut(found, area, frames[0][1]), cut(truth, area, frames[0][1])[0])
        row = {"way": name, "polygons": len(whole.scores), "buildings": whole.iou.shape[1]}
        rows.append(row | precision([whole]) | {f"{key}_in_chips": v for key, v in precision(inside).items()})
    return rows


def others(data: Path, work: Path, minutes: float) -> list[dict[str, Any]]:
    """Every other raster, each with an adapter of the set that is nearest to it."""
    geo, rows = data / "geo", []
    aerial = work.parent / "banepa" / "run" / "adapter.graft"
    for path in sorted((geo / "tree_crowns_neon").glob("*.tif")):
        rows.append(through(path, aerial, work, *own_pixels(path)))
    folder = rio_data(data, work / "rio", "8band")
    view = ("--data.window", 64, "--size", 128, "--data.bands", "[4,2,1]")  # red, green and blue of WorldView-2
    rio = trained(work / "rio", minutes, "--config", "aerial_buildings", "--data", folder, *view)
    for path in sorted((geo / "buildings_rio_8band" / "8band").glob("*.tif")):
        rows.append(through(path, rio, work, "--nodata", 0))
    for path in sorted((geo / "geotiff_cases").glob("*.tif")):
        with rasterio.open(path) as source:
            bands = "4,3,2" if source.count == 8 else "1,2,3" if source.count >= 3 else "1"
        rows.append(through(path, aerial, work, *own_pixels(path), "--bands", bands))
    return rows


def own_pixels(path: Path) -> tuple[object, ...]:
    """Option that has a raster seen at its own pixels, whatever the adapter was trained at."""
    step = ground_step(open_scene(path).grid)
    return () if step is None else ("--gsd", float(np.mean(step)))


def through(path: Path, adapter: Path, work: Path, *words: object) -> dict[str, Any]:
    """One file through the command; what came of it."""
    output = work / f"{path.stem}.gpkg"
    start = time.perf_counter()
    said = ("segment", path, "--adapter", adapter, "-o", output, "--report", work / f"{path.stem}.html", *words)
    code = cli.main([str(word) for word in said])
    row: dict[str, Any] = {"file": path.name, "code": code, "seconds": time.perf_counter() - start}
    if code:
        return row
    scene = open_scene(path, nodata=0 if "--nodata" in words else None)
    meta = pyogrio.read_info(output)
    with rasterio.open(path) as source:
        row |= {"bands": source.count, "dtype": source.dtypes[0]}
        same = source.crs == (meta["crs"] and CRS.from_user_input(meta["crs"]))
    valid = scene.read_valid()[1]
    shapes = objects(output)[0]
    inside = np.zeros(valid.shape, dtype=bool)
    if len(shapes):
        place = transform_of(scene.grid)
        inside = rasterize(((one, 1) for one in shapes), valid.shape, transform=place).astype(bool)
    row |= {"valid": float(valid.mean()), "polygons": len(shapes), "same_crs": same}
    return row | {"pixels": int(inside.sum()), "on_nodata": int((inside & ~valid).sum())}


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.raster_sets", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/raster_sets"), help="folder of runs and polygons")
    parser.add_argument("--minutes", type=float, default=8.0, help="training of each adapter")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/raster_sets.json"))
    options = parser.parse_args(argv)
    for name in ("banepa", "others"):
        (options.work / name).mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"minutes": options.minutes}
    found |= banepa(data_root(), options.work / "banepa", options.minutes)
    found["others"] = others(data_root(), options.work / "others", options.minutes)
    print(markdown(found["others"]))
    write_json(options.json, found)


if __name__ == "__main__":
    main()
