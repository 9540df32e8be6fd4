"""Options of ``samgraft segment`` for rasters that are walked over tile by tile, and the run."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samgraft.errors import ConfigError
from samgraft.recipes.commands.parsing import PlainParser, say

if TYPE_CHECKING:
    from samgraft.domains.scene import Scene

LARGE = 2**26
"""Pixels above which a raster goes through tiles. Below, labels of the whole fit into memory many times over, objects
need no joining, and the result is a ``Segmentation``."""
STREAMED = (".parquet", ".fgb")
"""Formats that only the tiled run writes."""
_READING = ("bands", "sensor", "gsd", "crs", "nodata")
_ONLY = (
    "aoi",
    "engine",
    "scheduler",
    "workers",
    "object_size",
    "restart",
    "on_bad_tile",
    "keep_work",
    "scores",
    "simplify",
)


def add_mosaic(parser: PlainParser) -> None:
    """Add the options."""
    group = parser.add_argument_group(
        "large rasters",
        f"A raster of more than {LARGE:,} pixels, several files (one mosaic), and every call with one of these options "
        "or with .parquet or .fgb as output goes tile by tile: memory follows the tile, and the same call goes on "
        "after a crash. --tile (pixels) and --overlap (pixels, or a share of the tile) change the tiles.",
    )
    group.add_argument("--aoi", default=None, metavar="FILE", help="polygons that say where results are wanted")
    group.add_argument(
        "--object-size", type=float, default=None, metavar="METRES", help="longest object; chooses the tiles"
    )
    group.add_argument("--workers", type=int, default=None, metavar="N", help="processes on this machine")
    group.add_argument("--engine", default=None, choices=("local", "dask"), help="who computes; local if not named")
    group.add_argument(
        "--scheduler", default=None, metavar="ADDRESS", help="dask: tcp://host:8786; none starts one here"
    )
    group.add_argument("--restart", action="store_true", default=None, help="throw away what an earlier run left")
    group.add_argument("--on-bad-tile", default=None, choices=("fail", "skip"), help="what to do if a tile is damaged")
    group.add_argument("--keep-work", action="store_true", default=None, help="leave OUTPUT.samgraft with the journal")
    group.add_argument("--scores", default=None, metavar="FILE.tif", help="raster of scores, as well")
    group.add_argument(
        "--simplify", type=float, default=None, metavar="UNITS", help="tolerance of polygons; 0 is exact"
    )
    group.add_argument(
        "--report", nargs="?", const="", default=None, metavar="FILE.html", help="a page to look at, beside the output"
    )
    reading = parser.add_argument_group("how a raster is read")
    reading.add_argument(
        "--bands", default=None, help="numbers from 1 or names, such as 4,3,2 or red,green,blue or rgb"
    )
    reading.add_argument("--sensor", default=None, help="names the bands: sentinel2, landsat8, naip, planetscope, ...")
    reading.add_argument(
        "--gsd", type=float, default=None, help="metres per pixel to work at; labels come back on the file's own pixels"
    )
    reading.add_argument("--crs", default=None, help="coordinate system to bring the raster to, such as EPSG:32633")
    reading.add_argument("--nodata", type=float, default=None, help="missing pixels, where the file does not say so")


def reading_options(values: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of ``samgraft.open``, of those that were given."""
    found = {name: v for name in _READING if (v := getattr(values, name)) is not None}
    if "bands" in found and any(character.isdigit() or character == "," for character in found["bands"]):
        words = [word.strip() for word in found["bands"].split(",")]
        found["bands"] = [int(word) if word.isdigit() else word for word in words]
    return found


def given_options(values: argparse.Namespace) -> list[str]:
    """Names of the options on the command line that only the tiled run has."""
    names = [name for name in (*_ONLY, "report") if getattr(values, name) is not None]
    return names + ([] if values.everything else [n for n in ("tile", "overlap") if getattr(values, n) is not None])


def by_tiles(values: argparse.Namespace, scene: "Scene | None") -> bool:
    """Whether a call goes through tiles.

    Args:
        values: The command line.
        scene: What is segmented; None for several files.

    Raises:
        ConfigError: an option of tiles with prompts or references, or for a volume.
    """
    options = given_options(values)
    asked = bool(options) or scene is None or any(Path(p).suffix.lower() in STREAMED for p in values.output)
    other = [name for name in ("box", "point", "line", "prompts", "reference", "records") if getattr(values, name)]
    if asked and (other or (scene is not None and scene.grid.ndim != 2)):
        what = f"--{options[0].replace('_', '-')}" if options else "several files, .parquet and .fgb"
        belongs = f"not --{other[0].replace('_', '-')}" if other else "not volumes"
        raise ConfigError(f"{what}: for rasters with --adapter or --everything, {belongs}; leave one of them out")
    if other or scene is None or asked:
        return asked
    return scene.kind != "volume" and scene.grid.shape[0] * scene.grid.shape[1] > LARGE


def run_tiles(values: argparse.Namespace, everything: Any = None) -> None:
    """Segment tile by tile, say what was found, and write the report."""
    from samgraft.recipes.mosaic.progress import clock, shown
    from samgraft.recipes.mosaic.segment import MosaicOptions, segment_mosaic

    if values.spacing is not None:
        raise ConfigError("--spacing is for volumes; --gsd brings a raster to the pixel size of the adapter")
    if values.scales != [1]:
        raise ConfigError(
            f"--scales needs the whole raster at once, and this is done tile by tile; cut out a part of at most "
            f"{LARGE:,} pixels, or leave --scales out"
        )
    options = MosaicOptions(**_options(values))
    reading = reading_options(values)
    with shown(sys.stderr) as tell:
        summary = segment_mosaic(
            values.input,
            values.output,
            adapter=values.adapter,
            backbone=values.backbone,
            options=options,
            everything=None if everything is None else replace(everything, tile=None, overlap=0.25),
            reading=reading,
            scores=values.scores,
            simplify=values.simplify or 0.0,
            tell=tell,
        )
    found = ", ".join(f"{count:,} {name}" for name, count in summary.by_class.items()) or "nothing"
    say(f"{found} in {summary.tiles:,} tiles ({summary.empty:,} without data), {clock(summary.seconds)}")
    if summary.computed < summary.tiles:
        say(f"{summary.tiles - summary.computed:,} tiles were finished before")
    for one in summary.skipped:
        say(f"skipped tile {one.number}: {one.words()}")
    for path in summary.outputs:
        say(f"wrote {path}")
    if values.report is not None:
        say(f"report: {_report(values, summary, reading)}")


def _report(values: argparse.Namespace, summary: Any, reading: dict[str, Any]) -> Path:
    from samgraft.domains.opening import open_scene
    from samgraft.recipes.mosaic.report import write_mosaic_report

    target = Path(values.report or f"{values.output[0]}.report.html")
    inputs: Sequence[str] = values.input
    return write_mosaic_report(target, open_scene(inputs if len(inputs) > 1 else inputs[0], **reading), summary)


def _options(values: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of ``MosaicOptions``, of those that were given."""
    names = (
        "aoi",
        "engine",
        "scheduler",
        "workers",
        "restart",
        "on_bad_tile",
        "keep_work",
        "tile",
        "align",
        "align_source",
        "views",
    )
    named = {name: name for name in names} | {"largest_m": "object_size"}
    found = {name: v for name, option in named.items() if (v := getattr(values, option)) is not None}
    return found if values.overlap is None else found | {"overlap": values.overlap}
