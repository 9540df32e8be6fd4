"""What rows of the shift benchmark find, side by side: ``python -m tests.benchmarks.shift_pictures JSON --pair PAIR``.

``JSON`` is what ``python -m tests.benchmarks.shift`` wrote; its adapters are still in the folder beside it, ``--work``.
A line per scored case: the picture with the true outlines, then one column per row. Cases are spread evenly over those
that are scored, none is chosen by hand, unless ``--cases`` numbers them; of a volume the slice with most of the
structure is shown.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import samgraft
from samgraft.adapters.bundle import read_header
from samgraft.domains.scene import Scene
from samgraft.recipes.report import Panel, overlay
from tests.benchmarks._data import cut_axis, evenly
from tests.benchmarks._shift_folders import IMAGES, Item, image_name, truth
from tests.benchmarks._shift_pairs import PAIRS, Pair
from tests.benchmarks._shift_rows import run_folder, source_folder
from tests.benchmarks._shift_scores import objects_of
from tests.benchmarks.prompter_pictures import column, save, sheet

SHOWN = ("source only", "no labels", "weak boxes", "all target labels")


def adapter_of(work: Path, pair: Pair, result: Mapping[str, Any]) -> Path:
    """The file that a run was scored with: its own, or the source adapter where it trained none.

    Raises:
        SystemExit: it is gone.
    """
    own = run_folder(work, pair.name, result["seed"], result["method"])
    found = [path for path in (own / "fit" / "adapter.graft", own / "adapter.graft") if path.is_file()]
    for path in sorted(source_folder(work, pair, result["seed"]).glob("*/*.graft")):
        same = read_header(path)["tensors_sha256"].startswith(result["source_adapter"])
        if same and path.stem == (f"as_{pair.modality}" if pair.modality else "adapter"):
            found.append(path)
    if not found:
        raise SystemExit(f"no adapter of {result['method']!r} in {own} or {source_folder(work, pair, result['seed'])}")
    return found[0]


def plane_of(scene: Scene, labels: NDArray[np.int32]) -> tuple[int, int] | None:
    """Of a volume: the axis of its slices and the slice with the most labels. None for pictures and rasters."""
    if scene.kind != "volume":
        return None
    axis = cut_axis(np.asarray(scene.grid.spacing))
    others = tuple(i for i in range(3) if i != axis)
    return axis, int((labels > 0).sum(axis=others).argmax())


def flat(array: NDArray[Any], plane: tuple[int, int] | None) -> NDArray[Any]:
    """The slice that is shown."""
    return array if plane is None else np.take(array, plane[1], axis=plane[0])


def picture_of(scene: Scene, plane: tuple[int, int] | None) -> NDArray[np.float32]:
    """(H, W) or (H, W, 3) in [0, 1]: what is drawn on."""
    pixels = np.asarray(scene.read(), dtype=np.float32)
    if plane is None:
        image = np.moveaxis(pixels, 0, -1)[..., :3] if pixels.ndim == 3 else pixels
        return np.asarray(image / max(1.0, float(image.max())), dtype=np.float32)
    image = flat(pixels[0] if pixels.ndim == 4 else pixels, plane)
    low, high = np.percentile(image, (1, 99))
    return np.asarray(np.clip((image - low) / max(high - low, 1e-6), 0, 1), dtype=np.float32)


def drawn(results: Sequence[Mapping[str, Any]], work: Path, pair: Pair, numbers: Sequence[int]) -> NDArray[np.uint8]:
    """The sheet of a pair.

    Args:
        results: One per column.
        work: Folder of the benchmark's data sets and adapters.
        pair: Which.
        numbers: Scored cases, from 0; none takes three, spread evenly.
    """
    seed = int(results[0]["seed"])
    items = pair.sides(seed).scored
    chosen = [items[number] for number in numbers or evenly(len(items), 3)]
    scenes = [samgraft.open(scored_image(work, pair, seed, item)) for item in chosen]
    known = [truth(item, scene.path) for item, scene in zip(chosen, scenes, strict=True)]
    planes = [plane_of(scene, labels) for scene, labels in zip(scenes, known, strict=True)]
    apart = pair.metric == "ap50"

    def panels(labels: Sequence[NDArray[np.int32]]) -> list[NDArray[np.uint8]]:
        found = []
        for item, scene, one, plane in zip(chosen, scenes, labels, planes, strict=True):
            shown = flat(one, plane) if apart else (flat(one, plane) > 0).astype(np.int32)
            panel = Panel(title=item.id, image=picture_of(scene, plane), predicted=shown, instances=apart)
            found.append(overlay(panel, side=320))
        return found

    columns = [column("truth", panels(known), 300)]
    for result in results:
        network = samgraft.load_adapter(adapter_of(work, pair, result))
        try:
            found = [samgraft.segment(scene, adapter=network, progress=False) for scene in scenes]
        finally:
            network.detach()
        labels = [objects_of(one)[0] if apart else one.labels.astype(np.int32) for one in found]
        columns.append(column(f"{result['method']}: {result[pair.metric]:.3f}", panels(labels), 300))
    return sheet(columns)


def scored_image(work: Path, pair: Pair, seed: int, item: Item) -> Path:
    """Where the benchmark put the image of a scored case."""
    return work / "scored" / pair.name / f"seed{seed}" / IMAGES[item.layout] / image_name(item)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.shift_pictures", description=__doc__)
    parser.add_argument("json", type=Path)
    parser.add_argument("--pair", required=True, choices=list(PAIRS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="+", default=SHOWN)
    parser.add_argument("--cases", nargs="*", type=int, default=[], help="numbers from 0; default three, spread")
    parser.add_argument("--work", type=Path, help="as for the benchmark; default beside the results")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(argv)
    all_rows = json.loads(options.json.read_text())["results"]
    own = {row["method"]: row for row in all_rows if row["set"] == options.pair and row["seed"] == options.seed}
    missing = [name for name in options.rows if name not in own]
    if missing:
        raise SystemExit(f"{options.json} has no {missing[0]!r} of {options.pair}, seed {options.seed}; run it first")
    work = (options.work or options.json.with_suffix("")).resolve()
    save(drawn([own[name] for name in options.rows], work, PAIRS[options.pair], options.cases), options.output)


if __name__ == "__main__":
    main()
