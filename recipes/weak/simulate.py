r"""Weak labels made of full masks, as a person might have drawn them: for tests and benchmarks only.

This is the one place that reads masks and writes weak labels; training never comes here. Files are those that
``samgraft.recipes.weak_labels.reading`` reads, one per case: ``OUT/boxes/CASE.csv``, ``OUT/points/CASE.csv``,
``OUT/scribbles/CASE.png`` (``.tif`` for rasters, ``.nii.gz`` for volumes), ``OUT/coarse/...``; then
``samgraft fit ... --data.supervision boxes --data.weak OUT/boxes``.

    python -m samgraft.recipes.weak.simulate --data PATH --layout image_mask --kind instance \
        --supervision points --out OUT
"""

import argparse
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from samgraft.domains.atomic import atomic_path
from samgraft.domains.detections.base import DEFAULT_CLASS
from samgraft.errors import ConfigError
from samgraft.recipes.config import DataConfig, Kind
from samgraft.recipes.data.cases import CaseArrays, DataIndex
from samgraft.recipes.data.layouts import index_data
from samgraft.recipes.weak_config import SUPERVISIONS, Supervision

SMALLEST = 4
"""Parts with fewer pixels are not pointed at."""
CORNERS = 8
"""Corners of a coarse outline."""
EMPTY_EVERY = 4
"""Scribbles: every so many slices without objects get a stroke of background."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """An object as a person sees it on a slice."""

    index: int
    """Of the slice."""
    value: int
    """Class, from 1, or number of the object."""
    place: tuple[slice, slice]
    inside: NDArray[np.bool_]
    """On ``place``."""


def simulate(
    config: DataConfig,
    kind: Kind,
    supervision: Supervision,
    out: Path,
    *,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    jitter: float = 0.0,
) -> Path:
    """Write weak labels of all labelled cases of a data set.

    Args:
        config: The data set with its masks; what it says of supervision does not count.
        kind: "semantic": connected parts of every class on every slice; "instance": the objects.
        supervision: Which kind of weak label.
        out: Folder; the files go into its subfolder ``supervision``.
        class_names: As for ``index_data``.
        seed: Of what a person does by chance.
        jitter: boxes: each edge is off by so much of the side, as a standard deviation.

    Returns:
        The folder of the files: what ``data.weak`` takes.

    Raises:
        ConfigError: "masks", which are no weak label.
    """
    if supervision == "masks" or supervision not in SUPERVISIONS:
        raise ConfigError(f"supervision is {supervision!r}; expected one of {', '.join(SUPERVISIONS[1:])}")
    masks = replace(config, supervision="masks", partial=False, weak=None, cases=None)
    index = index_data(masks, kind, class_names)
    folder = out / supervision
    folder.mkdir(parents=True, exist_ok=True)
    for number, ref in enumerate(sorted((*index.train, *index.val), key=lambda ref: ref.id)):
        case, rng = ref.read(), np.random.default_rng([seed, number])
        if supervision in ("boxes", "points"):
            rows = _rows(case, kind, supervision, index, rng, jitter)
            _write_rows(folder / f"{case.id}.csv", rows, supervision, volume=case.axis is not None)
        else:
            drawn = _drawn(case, kind, supervision, index, rng, config.scribble_background)
            _write_labels(folder, case, drawn)
    return folder


def parts_of(labels: NDArray[np.integer], kind: Kind) -> Iterator[Part]:
    """Objects on the slices of (n, h, w) labels."""
    for index, plane in enumerate(labels):
        for value in (int(v) for v in np.unique(plane) if v > 0):
            found = ndimage.label(plane == value)[0] if kind == "semantic" else (plane == value).astype(np.int32)
            for number, place in enumerate(ndimage.find_objects(found), start=1):
                inside = found[place] == number if place is not None else np.zeros(0, bool)
                if place is not None and inside.sum() >= SMALLEST:
                    yield Part(index=index, value=value, place=place, inside=inside)


def depth_of(inside: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Distance of every pixel of a part to its rim."""
    depth: NDArray[np.floating] = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    return depth


def _rows(
    case: CaseArrays,
    kind: Kind,
    supervision: Supervision,
    index: DataIndex,
    rng: np.random.Generator,
    jitter: float,
) -> list[list[object]]:
    """Class, slice and coordinates of every object."""
    rows: list[list[object]] = []
    for part in parts_of(case.labels, kind):
        name = DEFAULT_CLASS if len(index.classes) == 1 else index.classes[part.value]
        (down, across), (height, width) = part.place, part.inside.shape
        if supervision == "boxes":
            edges = np.array([across.start, down.start, across.stop - 1, down.stop - 1], dtype=np.float64)
            edges += rng.normal(0, 1, 4) * jitter * np.array([width, height, width, height])
            x0, y0, x1, y1 = np.round(edges)
            limits = case.plane[1] - 1, case.plane[0] - 1
            x0, y0 = max(0, min(x0, limits[0])), max(0, min(y0, limits[1]))
            rows.append([name, part.index, x0, y0, min(max(x1, x0), limits[0]), min(max(y1, y0), limits[1])])
        else:
            row, col = _inner(part.inside, rng)
            rows.append([name, part.index, col + across.start, row + down.start])
    return rows


def _inner(inside: NDArray[np.bool_], rng: np.random.Generator) -> tuple[int, int]:
    """A random pixel of the inner half of a part."""
    depth = depth_of(inside)
    places = np.argwhere(depth >= 0.5 * depth.max())
    row, col = places[rng.integers(len(places))]
    return int(row), int(col)


def _drawn(
    case: CaseArrays,
    kind: Kind,
    supervision: Supervision,
    index: DataIndex,
    rng: np.random.Generator,
    background: int,
) -> NDArray[np.int32]:
    """(n, h, w) values of a label file: scribbles, or coarse areas."""
    drawn = np.zeros((case.num_slices, *case.plane), dtype=np.int32)
    for part in parts_of(case.labels, kind):
        number = part.value if kind == "instance" else index.values[part.value - 1]
        number += supervision == "scribbles" and kind == "instance" and number >= background  # it is not free
        if supervision == "scribbles":
            drawn[part.index][part.place][_stroke(part.inside, rng)] = number
        else:
            _fill(drawn[part.index], part, number, rng)
    if supervision == "scribbles":
        for number, plane in enumerate(case.labels):
            if (plane > 0).any() or number % EMPTY_EVERY == 0:
                away = ndimage.distance_transform_edt(np.pad(plane == 0, 1, constant_values=True))[1:-1, 1:-1] > 3
                for _ in range(2 if away.any() else 0):
                    drawn[number][_stroke(away, rng, deep=False)] = background
    return drawn


def _stroke(inside: NDArray[np.bool_], rng: np.random.Generator, *, deep: bool = True) -> NDArray[np.bool_]:
    """A line between two pixels far from each other, as far as it stays inside; three pixels wide if there is room."""
    depth = depth_of(inside) if deep else inside.astype(float)
    places = np.argwhere(depth >= 0.5 * depth.max())
    start = places[rng.integers(len(places))]
    distance = ((places - start) ** 2).sum(axis=1)
    far = np.flatnonzero(distance >= 0.5 * distance.max())
    end = places[far[rng.integers(len(far))]]
    steps = np.linspace(0, 1, int(np.abs(end - start).max()) + 1)[:, None]
    line = np.zeros_like(inside)
    line[tuple((start + (end - start) * steps).round().astype(int).T)] = True
    if depth.max() > 4:
        line = ndimage.binary_dilation(line, structure=np.ones((3, 3)))
    parts, _ = ndimage.label(line & inside, structure=np.ones((3, 3)))
    own: NDArray[np.bool_] = parts == parts[tuple(start)]
    return own


def _fill(plane: NDArray[np.int32], part: Part, number: int, rng: np.random.Generator) -> None:
    """Draw a star of a few corners around a part: as far as the part reaches there, more or less."""
    depth = depth_of(part.inside)
    centre = np.argwhere(depth == depth.max())[0] + [part.place[0].start, part.place[1].start]
    pixels = np.argwhere(part.inside) + [part.place[0].start, part.place[1].start] - centre
    angles, radii = np.arctan2(pixels[:, 0], pixels[:, 1]), np.hypot(pixels[:, 0], pixels[:, 1])
    sector = ((angles + np.pi) / (2 * np.pi) * CORNERS).astype(int) % CORNERS
    reach = np.array([radii[sector == i].max(initial=1.0) for i in range(CORNERS)]) + 0.5
    reach *= 1 + rng.normal(0, 0.08, CORNERS)
    rows, cols = np.ogrid[: plane.shape[0], : plane.shape[1]]
    turn = (np.arctan2(rows - centre[0], cols - centre[1]) + np.pi) / (2 * np.pi) * CORNERS - 0.5
    limit = np.interp(turn.ravel(), np.arange(-1, CORNERS + 1), np.r_[reach[-1], reach, reach[0]]).reshape(plane.shape)
    plane[np.hypot(rows - centre[0], cols - centre[1]) <= limit] = number


def _write_rows(path: Path, rows: list[list[object]], supervision: Supervision, *, volume: bool) -> None:
    columns = ["class", "slice", *(["xmin", "ymin", "xmax", "ymax"] if supervision == "boxes" else ["x", "y"])]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([name for name in columns if volume or name != "slice"])
    writer.writerows([[v for name, v in zip(columns, row, strict=True) if volume or name != "slice"] for row in rows])
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _write_labels(folder: Path, case: CaseArrays, drawn: NDArray[np.int32]) -> None:
    labels = case.on_grid(drawn)
    if case.axis is not None:
        from samgraft.domains.medical.nifti import write_nifti

        write_nifti(folder / f"{case.id}.nii.gz", labels, case.grid)
    elif case.grid.world == "pixel":
        from samgraft.domains.picture.picture import write_png

        write_png(folder / f"{case.id}.png", labels)
    else:
        from samgraft.domains.remote_sensing.label_raster import write_label_geotiff

        write_label_geotiff(folder / f"{case.id}.tif", labels, case.grid)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line, for benchmarks."""
    parser = argparse.ArgumentParser(description="Make weak labels of masks. For tests and benchmarks only.")
    parser.add_argument("--data", required=True)
    parser.add_argument("--layout", default="nnunet", choices=("nnunet", "image_mask", "raster_vector"))
    parser.add_argument("--labels", default=None)
    parser.add_argument("--images", default=None)
    parser.add_argument("--kind", default="semantic", choices=("semantic", "instance"))
    parser.add_argument("--supervision", required=True, choices=SUPERVISIONS[1:])
    parser.add_argument("--class-names", nargs="*", default=None)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jitter", type=float, default=0.0)
    given = parser.parse_args(arguments)
    config = DataConfig(path=given.data, layout=given.layout, labels=given.labels, images=given.images)
    options = {"class_names": given.class_names, "seed": given.seed, "jitter": given.jitter}
    folder = simulate(config, given.kind, given.supervision, Path(given.out), **options)
    sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    main()
