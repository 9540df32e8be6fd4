"""Objects across seams: ``python -m tests.benchmarks.seams``, on the scene of ``_seam_scene``.

With an oracle that is perfect in every tile, what is left are errors of the merging: objects split, fused or dropped.
Every tile size, overlap and origin is run in one thread, tile after tile, and in four threads that make tiles and links
in random order; the label maps must be equal bit by bit. The jittered oracle draws every object a pixel smaller or
larger, anew in every tile, and misses one in twenty. With ``--peers PYTHON``, an interpreter that has SAHI, samgeo and
DeepForest, these merge what the same oracles see (``_seam_peers``); ``--peers PYTHON --oracles`` runs nothing else.
"""

import argparse
import hashlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.recipes.mosaic.found import TileObjects
from samgraft.recipes.mosaic.frontier import number_objects, stream_steps
from samgraft.recipes.mosaic.link import link
from samgraft.recipes.mosaic.plan import Tile, TilePlan, plan_tiles
from samgraft.recipes.mosaic.reduce import Keys
from tests.benchmarks._seam_peers import measure_peers, versions
from tests.benchmarks._seam_scene import Labels, Scene, in_parts, jittered, judge, oracle, scene
from tests.benchmarks._table import is_there, markdown, read_json, write_json

SIDES = (160, 200, 256, 333, 384, 512, 640, 777, 1024, 2048)
OVERLAPS = (1, 4, 16, 32, 48)
ORIGINS = ((0, 0), (37, 101), (101, 37), (-13, 250), (511, 1))
See = Callable[[Scene, Tile], TileObjects]
Found = Mapping[int, tuple[Tile, TileObjects]]


def merge(of: Scene, plan: TilePlan, see: See, workers: int) -> tuple[Labels, str, float]:
    """Label map, hash of it and of all objects, and seconds of the merging alone.

    Args:
        of: The scene.
        plan: Its tiles.
        see: What is found in a tile.
        workers: 1 goes tile by tile; more make tiles and links in threads, in random order.
    """
    if workers == 1:
        found: Found = {tile.number: (tile, see(of, tile)) for tile in plan.tiles}
        links = None
    else:
        found, made = _in_threads(of, plan, see, workers)
        links = lambda tile: made.get(tile.number, {})  # noqa: E731
    start = time.perf_counter()
    whole, digest = np.zeros(plan.shape, dtype=np.int32), hashlib.sha256()
    numbering = number_objects(plan, found.values(), links)
    for step in stream_steps(plan, found.values(), numbering, links):
        if step.labels is not None:
            whole[step.part] = step.labels
        for one in step.objects:
            digest.update(repr((one.id, one.class_id, one.score, one.tiles, one.box, one.area_px)).encode())
    seconds = time.perf_counter() - start
    digest.update(whole.data)
    return whole, digest.hexdigest(), seconds


def _in_threads(of: Scene, plan: TilePlan, see: See, workers: int) -> tuple[Found, dict[int, dict[int, Keys]]]:
    """Tiles and the links between them, made in random order; tiles are handed back in their own."""
    order = list(plan.tiles)
    random.Random(plan.side).shuffle(order)
    with ThreadPoolExecutor(workers) as pool:
        seen = dict(zip([t.number for t in order], pool.map(lambda tile: (tile, see(of, tile)), order), strict=True))
        edges = [(n.number, t.number) for t in order for n in plan.neighbours(t) if n.number < t.number]
        linked = pool.map(lambda edge: link(*seen[edge[0]], *seen[edge[1]]), edges)
        made: dict[int, dict[int, NDArray[np.int64]]] = {}
        for (a, b), pairs in zip(edges, linked, strict=True):
            made.setdefault(b, {})[a] = pairs
    return {number: seen[number] for number in sorted(seen)}, made


def measure(of: Scene, options: argparse.Namespace, see: See, done: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row for every tile size, overlap and origin that is not ``done``."""
    end = time.monotonic() + 60 * options.minutes
    tasks = list(product(options.sides, options.overlaps, options.origins))
    random.Random(0).shuffle(tasks)  # so that a run that was cut short has seen some of everything
    for side, overlap, origin in tasks:
        task = {"side": side, "overlap": overlap, "origin": list(origin)}
        if is_there(task, done, tuple(task)) or time.monotonic() > end:
            continue
        plan = plan_tiles((len(of.labels), len(of.labels)), side, overlap, origin=origin)
        results = [merge(of, plan, see, workers) for workers in options.workers]
        row = task | judge(of.labels, results[0][0])
        yield row | {
            "in_parts": 0 if row["exact"] == len(of.boxes) else in_parts(results[0][0]),
            "workers": options.workers,
            "same_bits": len({digest for _, digest, _ in results}) == 1,
            "tiles": len(plan.tiles),
            "merge_seconds": round(results[0][2], 3),
        }


def summary(rows: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """The worst of each tile size."""
    table = []
    for side in sorted({row["side"] for row in rows}):
        some = [row for row in rows if row["side"] == side]
        counts = [row["split"] + row["fused"] for row in some]
        table.append(
            {
                "oracle": name,
                "side": side,
                "runs": len(some),
                "exact, least": min(row["exact"] for row in some),
                "split, most": max(row["split"] for row in some),
                "fused, most": max(row["fused"] for row in some),
                "dropped, most": max(row["dropped"] for row in some),
                "split + fused, mean": float(np.mean(counts)),
                "split + fused, most": max(counts),
                "in parts, most": max(row["in_parts"] for row in some),
                "workers agree": all(row["same_bits"] for row in some),
                "ms per tile": float(np.mean([1000 * row["merge_seconds"] / row["tiles"] for row in some])),
            }
        )
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.seams", description=__doc__)
    parser.add_argument("--size", type=int, default=4096, help="side of the scene in pixels")
    parser.add_argument("--sides", type=int, nargs="*", default=list(SIDES))
    parser.add_argument("--overlaps", type=int, nargs="*", default=list(OVERLAPS))
    parser.add_argument("--origins", type=lambda text: tuple(map(int, text.split(","))), nargs="*", default=ORIGINS)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--oracles", nargs="*", default=["exact", "jittered"], choices=["exact", "jittered"])
    parser.add_argument("--minutes", type=float, default=1e6, help="begin nothing new afterwards; call again to go on")
    parser.add_argument("--peers", type=Path, help="an interpreter that has sahi, segment-geospatial and deepforest")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/seams.json"))
    options = parser.parse_args(argv)
    of = scene(options.size)
    content: dict[str, Any] = read_json(options.json)
    if content.setdefault("size", options.size) != options.size:
        raise SystemExit(f"{options.json} is of another scene; name another file")
    content["objects"] = len(of.boxes)
    sees: dict[str, See] = {"exact": oracle, "jittered": jittered}
    peers = content.setdefault("peers", [])
    if options.peers is not None:
        content["versions"] = versions(options.peers)
        for row in measure_peers(of, options.peers, sees, merge, peers):
            peers.append(row)
            write_json(options.json, content)
            print(markdown([row]), flush=True)
    for name, see in sees.items():
        rows = content.setdefault(name, [])
        for row in measure(of, options, see, rows) if name in options.oracles else ():
            rows.append(row)
            write_json(options.json, content)
        print(markdown(summary(rows, name)), flush=True)
    print(markdown(peers), f"{len(of.boxes)} objects")


if __name__ == "__main__":
    main()
