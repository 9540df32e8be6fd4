"""Other packages' merging beside ours on the scene of the seam benchmark: SAHI, samgeo and DeepForest.

Each runs in an interpreter of its own, through a script beside this file, on what the oracle sees in the windows that
the package cuts; see there what of it is called. Beside every place (tile side and overlap) stands our own merging.
``unseen`` are the objects that no window shows: the jittered oracle misses others in every layout, and no merging can
bring them back, so ``dropped`` is to be read beside it.
"""

import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from samgraft.recipes.mosaic.found import TileObjects
from samgraft.recipes.mosaic.plan import Tile, plan_tiles
from tests.benchmarks._seam_scene import Labels, Scene, judge, judge_boxes
from tests.benchmarks._table import is_there

See = Callable[[Scene, Tile], TileObjects]
Place = tuple[int, int]
PLACES: tuple[Place, ...] = ((256, 32), (512, 128), (1024, 128))
PACKAGES = ("sahi", "segment-geospatial", "deepforest", "torch", "torchvision")
_KEYS = ("oracle", "side", "overlap", "way")


@dataclass(frozen=True)
class Way:
    """One way of merging of one package."""

    name: str
    script: str
    key: str
    """What the script is told."""
    own: Place | None = None
    """Side and overlap that the package takes if it is told nothing; SAHI has no side of its own, only the overlap."""
    beyond: bool = False
    """Whether windows reach beyond the raster on all sides, as samgeo's blocks do; if not, the last is moved inside."""
    note: str = ""


WAYS = (
    Way("SAHI GREEDYNMM", "_seam_sahi.py", "GREEDYNMM", own=(512, 102)),
    Way("SAHI NMM", "_seam_sahi.py", "NMM", own=(512, 102)),
    Way("SAHI NMS", "_seam_sahi.py", "NMS", own=(512, 102)),
    Way("samgeo tiled", "_seam_samgeo.py", "paste", own=(1024, 128)),
    Way("samgeo batch", "_seam_samgeo.py", "batch", own=(768, 256), beyond=True),
    Way("samgeo batch, eroded", "_seam_samgeo.py", "eroded", own=(768, 256), beyond=True, note="outlines 1 px inside"),
    Way("DeepForest", "_seam_deepforest.py", "boxes", own=(400, 20), note="boxes"),
)


def windows(length: int, side: int, overlap: int, *, beyond: bool) -> list[Tile]:
    """Tiles as the packages lay them, in raster scan order."""
    step, half = side - overlap, overlap // 2
    if beyond:
        starts = list(range(-half, length, side - 2 * half))
    else:
        starts = [*range(0, length - side, step), length - side]
    spans = [slice(max(0, start), min(length, start + side)) for start in starts]
    tiles = product(enumerate(spans), enumerate(spans))
    return [Tile(row * len(spans) + col, (row, col), (rows, cols), (rows, cols)) for (row, rows), (col, cols) in tiles]


def unseen(of: Scene, tiles: Iterable[tuple[Tile, TileObjects]]) -> int:
    """How many true objects have nothing in any tile that lies mostly in them."""
    n = len(of.boxes) + 1
    seen = np.zeros(n, dtype=bool)
    for tile, found in tiles:
        joint, both = np.unique(found.labels.astype(np.int64) * n + of.labels[tile.window], return_counts=True)
        p, t = np.divmod(joint, n)
        seen[t[(p > 0) & (both > 0.5 * np.bincount(p, weights=both)[p])]] = True
    return int((~seen[1:]).sum())


def boxes_of(labels: Labels) -> np.ndarray:
    """(n, 4) top, left, bottom, right of all objects."""
    found = [box for box in ndimage.find_objects(labels) if box is not None]
    return np.array([[r.start, c.start, r.stop, c.stop] for r, c in found], dtype=np.int64).reshape(-1, 4)


def run(of: Scene, python: Path, way: Way, folder: Path) -> dict[str, Any]:
    """Let a package merge what lies in ``folder``, and judge it."""
    script = Path(__file__).with_name(way.script)
    done = subprocess.run(
        [str(python), str(script), str(folder), way.key, str(len(of.labels))], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{way.name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    with np.load(folder / f"{way.key}.npz") as file:
        judged = judge_boxes(of.boxes, file["boxes"]) if "boxes" in file else judge(of.labels, file["labels"])
        return {**judged, "seconds": round(float(file["seconds"]), 1)}


def versions(python: Path) -> dict[str, str]:
    """Of the packages in the other interpreter."""
    code = f"from importlib.metadata import version\nfor name in {PACKAGES}: print(name, version(name))"
    out = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout
    return dict(line.split() for line in out.splitlines())


def measure_peers(
    of: Scene,
    python: Path,
    sees: Mapping[str, See],
    merge: Callable[..., tuple[Labels, str, float]],
    done: Sequence[Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:
    """One row for every oracle, place and way that is not ``done``.

    Args:
        of: The scene.
        python: An interpreter that has the packages.
        sees: The oracles by name.
        merge: Ours.
        done: Rows that are there.
    """
    own = {way.own for way in WAYS if way.own is not None} - set(PLACES)
    for (name, see), (side, overlap) in product(sees.items(), (*PLACES, *sorted(own))):
        task = {"oracle": name, "side": side, "overlap": overlap}
        ways = [way for way in WAYS if (side, overlap) in (*PLACES, way.own)]
        left = [way for way in ways if not is_there(task | {"way": way.name}, done, _KEYS)]
        if not is_there(task | {"way": "samgraft"}, done, _KEYS):
            boxes = any(way.note == "boxes" for way in ways)
            yield from (task | row for row in _ours(of, see, side, overlap, merge, boxes))
        for beyond in (False, True):
            some = [way for way in left if way.beyond == beyond]
            if not some:
                continue
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                missed = _write(of, see, folder, side, overlap, beyond)
                for way in some:
                    note = "; ".join(filter(None, (way.note, "default overlap" if way.own == (side, overlap) else "")))
                    yield task | {"way": way.name, **run(of, python, way, folder), "unseen": missed, "note": note}


def _ours(
    of: Scene, see: See, side: int, overlap: int, merge: Callable[..., tuple[Labels, str, float]], boxes: bool
) -> Iterator[dict[str, Any]]:
    """Our own rows at a place; with ``boxes`` also judged by boxes alone."""
    plan = plan_tiles((len(of.labels), len(of.labels)), side, overlap)
    whole, _, seconds = merge(of, plan, see, 1)
    rest = {"seconds": round(seconds, 1), "unseen": unseen(of, ((tile, see(of, tile)) for tile in plan.tiles))}
    yield {"way": "samgraft", **judge(of.labels, whole), **rest, "note": ""}
    if boxes:
        yield {"way": "samgraft, as boxes", **judge_boxes(of.boxes, boxes_of(whole)), **rest, "note": "boxes"}


def _write(of: Scene, see: See, folder: Path, side: int, overlap: int, beyond: bool) -> int:
    """What the scripts read; how many objects no window shows."""
    np.savez(folder / "plan.npz", side=side, overlap=overlap)
    tiles = windows(len(of.labels), side, overlap, beyond=beyond)

    def seen() -> Iterator[tuple[Tile, TileObjects]]:
        for tile in tiles:
            found, corner = see(of, tile), [tile.window[0].start, tile.window[1].start]
            np.savez(folder / f"tile{tile.number:06d}.npz", labels=found.labels, corner=corner)
            yield tile, found

    return unseen(of, seen())
