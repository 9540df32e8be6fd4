"""Pictures of image and outlines for docs/raster_outputs.md: ``python -m tests.benchmarks.raster_pictures -o FOLDER``.

Three sets; of each an adapter is trained for some minutes on one part of the images, and outlines are drawn on images
that it has not seen:

    banepa   buildings, aerial, 0.14 m: trained in the west (tile columns up to 386693), shown in the east
    rio      buildings, satellite, 0.5 m: trained on six scenes, shown on the one with the most buildings
    crowns   tree crowns, aerial, 0.1 m: boxes become masks first; two thirds of an image train, the last one is shown

An adapter that is in ``--work`` is used again.
"""

import argparse
import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.windows import Window

from samgraft.domains.atomic import atomic_path
from samgraft.domains.opening import open_scene
from samgraft.recipes import cli
from samgraft.recipes.mosaic.drawing import draw_outlines
from samgraft.recipes.mosaic.plan import Part
from tests.benchmarks._data import data_root

MOST_BYTES = 200_000
SIDES = (760, 500, 380)
"""About the longer side of a picture in pixels."""
COLOURS = (128, 64, 32)
"""Of its palette; the first side and number that make the file small enough are taken."""


def call(*words: object) -> None:
    """A command of samgraft.

    Raises:
        SystemExit: it failed; its message is on stderr.
    """
    code = cli.main([str(word) for word in words])
    if code:
        raise SystemExit(code)


def trained(work: Path, minutes: float, *words: object) -> Path:
    """The adapter of a recipe that is trained here, or was."""
    adapter = work / "run" / "adapter.graft"
    if not adapter.is_file():
        common = ("-o", work / "run", "--minutes", minutes, "--steps", 100_000, "--train.val_every", 100_000)
        call("fit", *words, *common, "--train.accelerator", "cpu", "--train.progress", "false")
    return adapter


def drawn(rasters: Sequence[Path], vectors: Path, window: Part | None, target: Path) -> int:
    """Write a PNG of at most ``MOST_BYTES``, with fewer colours or smaller where it has to be; how many outlines.

    Raises:
        SystemExit: no picture is small enough.
    """
    scene = open_scene(rasters if len(rasters) > 1 else rasters[0])
    for side in SIDES:
        found = draw_outlines(scene, vectors, window=window, side=side)
        for colours in COLOURS:
            content = io.BytesIO()
            Image.fromarray(found.picture).quantize(colours).save(content, "png", optimize=True)
            if len(content.getvalue()) <= MOST_BYTES:
                with atomic_path(target) as temporary:
                    temporary.write_bytes(content.getvalue())
                return found.shown
    raise SystemExit(f"{target}: no picture of at most {MOST_BYTES:,} bytes; choose a smaller window")


def banepa(data: Path, work: Path, minutes: float, target: Path) -> str:
    """West to east."""
    folder = data / "geo" / "buildings_banepa" / "train"
    split = ("--data.split_pattern", r"OAM-(\d+)-", "--data.split_last_train", 386693)
    places = ("--data.images", "oam", "--data.labels", "osm")
    adapter = trained(work, minutes, "--config", "aerial_buildings", "--data", folder, *places, *split)
    east = sorted(path for path in (folder / "oam").glob("*.tif") if int(path.name.split("-")[1]) > 386693)
    call("segment", *east, "--adapter", adapter, "-o", work / "found.gpkg", "--restart")
    rows, cols = open_scene(east).grid.shape
    corner = min(380, rows - 380), min(380, cols - 380)
    window = (slice(corner[0], corner[0] + 380), slice(corner[1], corner[1] + 380))
    return f"{drawn(east, work / 'found.gpkg', window, target)} outlines"


def rio(data: Path, work: Path, minutes: float, target: Path) -> str:
    """Scenes 4, 5, 6, 7, 9 and 10 to scene 8."""
    folder = rio_data(data, work / "data", "3band")
    view = ("--data.window", 256, "--size", 256)
    adapter = trained(work, minutes, "--config", "aerial_buildings", "--data", folder, *view)
    image = folder / "images" / "img8.tif"
    call("segment", image, "--adapter", adapter, "-o", work / "found.gpkg", "--nodata", 0, "--restart")
    return f"{drawn([image], work / 'found.gpkg', None, target)} outlines"


def rio_data(data: Path, folder: Path, kind: str) -> Path:
    """The labelled scenes of Rio in ``folder``; scene 8, with the most buildings, validates.

    Args:
        data: Folder of real images.
        folder: Made here, with links to the files.
        kind: "3band" or "8band".
    """
    source = data / "geo" / "buildings_rio_8band"
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in (4, 5, 6, 7, 8, 9, 10):
        stem = f"013022223130_Public_img{number}"
        for link, file in (
            (folder / "images" / f"img{number}.tif", source / kind / f"{kind}_{stem}.tif"),
            (folder / "labels" / f"img{number}.geojson", source / "vectorData" / "geoJson" / f"{stem}_Geo.geojson"),
        ):
            if not link.exists():
                link.symlink_to(file)
    train = [f"img{number}" for number in (4, 5, 6, 7, 9, 10)]
    (folder / "splits.json").write_text(json.dumps([{"train": train, "val": ["img8"]}]))
    return folder


def crowns(data: Path, work: Path, minutes: float, target: Path) -> str:
    """Two thirds of OSBS_029 to the last one; the labels are boxes."""
    source = data / "geo" / "tree_crowns_neon"
    parts = thirds(source / "OSBS_029.tif", work / "images")
    (work / "boxes.json").write_text(json.dumps(boxes_of(source / "OSBS_029.csv", parts[:2])))
    call("boxes-to-masks", work / "boxes.json", "--images", work / "images", "-o", work / "masks")
    view = ("--data.window", 128, "--size", 256, "--task.class_names", "[crown]")
    adapter = trained(work, minutes, "--config", "nuclei", "--data", work / "masks", *view)
    call("segment", parts[2], "--adapter", adapter, "-o", work / "found.gpkg", "--restart")
    return f"{drawn(parts[2:], work / 'found.gpkg', None, target)} outlines"


def boxes_of(table: Path, parts: Sequence[Path]) -> dict[str, list[dict[str, object]]]:
    """The boxes of an image as a COCO set of its first parts, which lie beside each other."""
    with table.open() as file:
        boxes = [[float(row[name]) for name in ("xmin", "ymin", "xmax", "ymax")] for row in csv.DictReader(file)]
    images: list[dict[str, object]] = []
    found: list[dict[str, object]] = []
    left = 0
    for number, part in enumerate(parts, start=1):
        height, width = open_scene(part).grid.shape
        images.append({"id": number, "file_name": part.name, "width": width, "height": height})
        for x0, y0, x1, y1 in boxes:
            if left <= (x0 + x1) / 2 < left + width:
                low, high = max(x0 - left, 0.0), min(x1 - left, float(width))
                box = {"bbox": [low, y0, high - low, y1 - y0], "area": (high - low) * (y1 - y0), "iscrowd": 0}
                found.append({"id": len(found) + 1, "image_id": number, "category_id": 1, **box})
        left += width
    return {"images": images, "annotations": found, "categories": [{"id": 1, "name": "crown"}]}


def thirds(path: Path, folder: Path) -> list[Path]:
    """An image of 400 columns as three files beside each other."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    with rasterio.open(path) as source:
        edges = np.linspace(0, source.width, 4).round().astype(int).tolist()
        for number, (left, right) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            window = Window(left, 0, right - left, source.height)
            profile = source.profile | {"width": right - left, "transform": source.window_transform(window)}
            found.append(folder / f"part_{number}.tif")
            with rasterio.open(found[-1], "w", **{k: v for k, v in profile.items() if k != "photometric"}) as target:
                target.write(source.read(window=window))
    return found


SETS: dict[str, Callable[[Path, Path, float, Path], str]] = {"banepa": banepa, "rio": rio, "crowns": crowns}


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.raster_pictures", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images"), help="folder of the PNGs")
    parser.add_argument("--work", type=Path, default=Path("runs/raster_pictures"), help="folder of runs and polygons")
    parser.add_argument("--minutes", type=float, default=3.0, help="training of each adapter")
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=tuple(SETS))
    options = parser.parse_args(argv)
    for name in options.sets:
        (options.work / name).mkdir(parents=True, exist_ok=True)
        target = options.output / f"outlines_{name}.png"
        said = SETS[name](data_root(), options.work / name, options.minutes, target)
        print(f"{target}: {said}, {target.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main()
