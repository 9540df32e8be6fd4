"""Find and read files of weak labels: boxes and points of detection files, drawn label images, coarse polygons.

Below the folder of the data set lies one file for all images (COCO JSON, CSV with a column ``image``, a vector file),
or a folder with one file per case, called like the case. Without ``data.weak`` they are called as the supervision is:
``boxes.json``, ``points.csv``, ``scribbles/``, ``coarse/`` and so on. A case without a file, or that the file for all
does not name, was not annotated: it neither trains nor validates. Where a file is there, it names every object.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from samgraft.domains.atomic import full_suffix
from samgraft.domains.datasets.index import Case, DatasetIndex, read_json
from samgraft.domains.detections.base import DEFAULT_CLASS, Detection, Detections
from samgraft.domains.detections.coco import CocoFile, from_rle, is_coco, read_coco
from samgraft.domains.detections.reading import read_detections
from samgraft.domains.scene import Scene
from samgraft.errors import ConfigError, InputError
from samgraft.recipes.config import DataConfig, Kind
from samgraft.recipes.losses import IGNORE
from samgraft.recipes.prompt_files import mask_prompt
from samgraft.recipes.prompting import MaskPrompt
from samgraft.recipes.weak_config import Supervision
from samgraft.recipes.weak_labels.labels import WeakLabels, WeakObject

TABLES = (".json", ".csv", ".geojson", ".gpkg", ".shp")
IMAGES = (".png", ".nii.gz", ".nii", ".mha", ".nrrd", ".tif", ".tiff")
SUFFIXES: Mapping[Supervision, tuple[str, ...]] = {
    "boxes": TABLES,
    "points": (".csv", ".geojson", ".gpkg", ".shp"),
    "scribbles": IMAGES,
    "coarse": (*IMAGES, ".json", ".geojson", ".gpkg", ".shp"),
}
"""Files that may hold each kind of label."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a reader has to know of the task."""

    kind: Kind
    supervision: Supervision
    names: tuple[str, ...]
    """Classes in order of their number, from 1."""
    values: tuple[int, ...]
    """Numbers of the classes in label images, in the same order."""
    background: int
    """Number of drawn background in scribbles."""
    class_field: str | None = None

    def number(self, name: str, where: str) -> int:
        """Number of a class that a file names; a file that names none means the only one.

        Raises:
            InputError: an unknown class.
        """
        if self.kind == "instance" or (name == DEFAULT_CLASS and len(self.names) == 1):
            return 1
        if name in self.names:
            return self.names.index(name) + 1
        if name.isdigit() and int(name) in self.values:
            return self.values.index(int(name)) + 1
        raise InputError(
            f"{where} is of class {name!r}; known: {', '.join(self.names)}; correct the file or set task.class_names"
        )


def with_weak_files(data: DatasetIndex, config: DataConfig, class_names: Sequence[str] | None) -> DatasetIndex:
    """The index with files of weak labels in the place of masks.

    Args:
        data: Images only.
        config: Where to look.
        class_names: Names of the classes, where the data set does not know them.

    Raises:
        InputError: nothing found, or no case has a label.
    """
    place = find_weak(Path(config.path), config)
    found = {case.id: label_file(case, place, config.supervision) for case in data}
    if not any(found.values()):
        raise InputError(
            f"{place} labels none of the {len(data)} cases of {config.path}, such as {data.cases[0].id!r}; name files "
            "like the cases, or images in the file like those of the data set"
        )
    named = dict(data.classes) or dict(enumerate(class_names or (DEFAULT_CLASS,), start=1))
    cases = tuple(replace(case, label=found[case.id], classes=named) for case in data)
    return replace(data, cases=cases, classes=named)


def find_weak(root: Path, config: DataConfig) -> Path:
    """File or folder of the weak labels of a data set.

    Raises:
        InputError: it is not there.
    """
    wanted, suffixes = config.supervision, SUFFIXES[config.supervision]
    if config.weak is not None:
        if (root / config.weak).exists():
            return root / config.weak
        raise InputError(f"data.weak: {root / config.weak} does not exist; name the file or folder of the {wanted}")
    usual = [root / f"{wanted}{suffix}" for suffix in suffixes] + [root / wanted]
    for path in usual:
        if path.exists():
            return path
    raise InputError(f"{root} has none of {', '.join(path.name for path in usual)}; name the {wanted} with data.weak")


def label_file(case: Case, place: Path, supervision: Supervision) -> Path | None:
    """The file that labels ``case``, or None."""
    suffixes = SUFFIXES[supervision]
    if place.is_dir():
        paths = (place / f"{case.id}{suffix}" for suffix in suffixes)
        return next((path for path in paths if path.is_file()), None)
    if full_suffix(place) == ".csv":
        return place if _table_names(place, _stamp(place)) & names_of(case) else None
    if full_suffix(place) == ".json" and is_coco(read_json(place)):
        known = {Path(image.file_name).stem for image in _coco(place, _stamp(place)).images}
        return place if known & {Path(name).stem for name in names_of(case)} else None
    return place


def names_of(case: Case) -> set[str]:
    """What a file about many images may call a case: its id, or the name of its first file."""
    return {case.id, case.image[0].name}


def read_weak(case: Case, scene: Scene, axis: int | None, wanted: Wanted) -> WeakLabels:
    """Read the weak labels of a case.

    Args:
        case: Its ``label`` is the file.
        scene: Its image.
        axis: Array axis of a volume that becomes slices; None for two dimensions.
        wanted: What is wanted of the file.

    Raises:
        InputError: a damaged file, an unknown class, or objects of a volume without a slice.
        GeometryError: a label image on another grid.
    """
    if case.label is None:
        raise InputError(f"case {case.id} has no {wanted.supervision}; leave it out, or add its file")
    if full_suffix(case.label) in IMAGES:
        drawn = Case(id=case.id, image=case.image, label=case.label, kind="instance").load_label()
        return _from_image(_slices(drawn, axis), wanted, str(case.label))
    if wanted.supervision == "coarse":
        return WeakLabels(kind="coarse", objects=tuple(_outlines(case.label, case, scene, wanted)))
    shape = tuple(n for i, n in enumerate(scene.grid.shape) if i != axis)
    depth = 1 if axis is None else scene.grid.shape[axis]
    found = _detections(case, scene, (shape[0], shape[1]), wanted).within((shape[0], shape[1]))
    return WeakLabels(
        kind=wanted.supervision,
        objects=tuple(_object(one, wanted, case.label, None if axis is None else depth) for one in found.found),
    )


def _detections(case: Case, scene: Scene, shape: tuple[int, int], wanted: Wanted) -> Detections:
    path = case.label
    assert path is not None  # noqa: S101 - read_weak checked it
    field = wanted.class_field
    if full_suffix(path) == ".json" and is_coco(read_json(path)):
        return _coco(path, _stamp(path)).of_file(case.image[0].name, shape)
    if full_suffix(path) != ".csv":
        return read_detections(path, scene.grid, shape, class_field=field)
    for name in sorted(names_of(case), key=lambda name: name != case.image[0].name):
        found = read_detections(path, scene.grid, shape, image=name)
        if found.found:
            return found
    return found


def _object(one: Detection, wanted: Wanted, path: Path, depth: int | None) -> WeakObject:
    """A detection as a weak object; ``depth`` is the number of slices of a volume."""
    where = f"{path}: {one.source}"
    if wanted.supervision == "boxes" and one.box is None:
        raise InputError(f"{where} has no box; data.supervision is 'boxes'; give boxes, or set it to 'points'")
    if wanted.supervision == "points" and not one.points:
        raise InputError(f"{where} has no point; data.supervision is 'points'; give points, or set it to 'boxes'")
    if depth is not None and (one.slice is None or not 0 <= one.slice < depth):
        raise InputError(f"{where} lies on slice {one.slice}; a volume needs a column 'slice' from 0 to {depth - 1}")
    return WeakObject(
        label=wanted.number(one.class_name, where),
        slice=0 if depth is None or one.slice is None else one.slice,
        box=one.box if wanted.supervision == "boxes" else None,
        points=one.points if wanted.supervision == "points" else (),
    )


def _slices(labels: NDArray[Any], axis: int | None) -> NDArray[np.int32]:
    """(n, h, w) of a label array on the grid of its image."""
    return np.ascontiguousarray(labels[None] if axis is None else np.moveaxis(labels, axis, 0)).astype(np.int32)


def _from_image(drawn: NDArray[np.int32], wanted: Wanted, where: str) -> WeakLabels:
    """Scribbles as they are, coarse areas as objects."""
    if wanted.supervision == "scribbles":
        classes = drawn if wanted.kind == "instance" else _classes(drawn, wanted, where, keep=wanted.background)
        known = np.where(drawn == wanted.background, 0, np.where(drawn == 0, IGNORE, classes))
        return WeakLabels(kind="scribbles", drawn=known.astype(np.int32))
    if wanted.supervision != "coarse":
        raise InputError(f"{where} is a label image; data.supervision {wanted.supervision!r} takes {', '.join(TABLES)}")
    objects: list[WeakObject] = []
    areas = drawn if wanted.kind == "instance" else _classes(drawn, wanted, where)
    for index, plane in enumerate(areas):
        objects += [
            WeakObject(label=1 if wanted.kind == "instance" else value, slice=index, region=region)
            for value, region in _regions(plane, split=wanted.kind == "semantic")
        ]
    return WeakLabels(kind="coarse", objects=tuple(objects))


def _classes(drawn: NDArray[np.int32], wanted: Wanted, where: str, *, keep: int = 0) -> NDArray[np.int32]:
    """Numbers of a file as numbers of classes; masks of 0 and 255 hold one class, unless 255 is background."""
    present = set(np.unique(drawn).tolist()) - {0, keep}
    table = {value: number for number, value in enumerate(wanted.values, start=1)}
    if present == {255} and 255 not in table:
        table[255] = 1
    unknown = sorted(present - set(table))
    if unknown:
        raise InputError(f"{where} holds the values {unknown[:10]}; classes are {table}; correct the file")
    found = np.zeros_like(drawn)
    for value, number in table.items():
        found[drawn == value] = number
    return found


def _regions(plane: NDArray[np.int32], *, split: bool) -> Iterator[tuple[int, MaskPrompt]]:
    """Areas of one value; connected ones each by itself with ``split``."""
    for value in (int(v) for v in np.unique(plane) if v > 0):
        inside = plane == value
        parts = ndimage.label(inside)[0] if split else inside.astype(np.int32)
        for number, place in enumerate(ndimage.find_objects(parts), start=1):
            if place is not None:
                yield value, mask_prompt(parts[place] == number, top=place[0].start, left=place[1].start)


def _outlines(path: Path, case: Case, scene: Scene, wanted: Wanted) -> Iterator[WeakObject]:
    """Coarse polygons of a vector or COCO file, filled."""
    if scene.grid.ndim != 2:
        raise InputError(f"{path} has polygons, the image is a volume; give a label image of coarse areas")
    if full_suffix(path) == ".json" and is_coco(read_json(path)):
        drawn: Iterator[tuple[str, NDArray[np.bool_]]] = _coco_areas(path, case, scene.grid.shape)
    else:
        drawn = _vector_areas(path, scene, wanted.class_field)
    for name, inside in drawn:
        if inside.any():
            yield WeakObject(label=wanted.number(name, str(path)), region=mask_prompt(inside))


def _vector_areas(path: Path, scene: Scene, class_field: str | None) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    from samgraft.domains.remote_sensing.vector import rasterise, read_layer

    shape = (scene.grid.shape[0], scene.grid.shape[1])
    for feature in read_layer(path, class_field=class_field).on(scene.grid):
        yield feature.class_name, rasterise([feature], shape) > 0


def _coco_areas(path: Path, case: Case, shape: tuple[int, ...]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Polygons (outer edges, x first) or run lengths of one image of a COCO file."""
    import shapely

    from samgraft.domains.remote_sensing.vector import VectorObject, rasterise

    coco, content = _coco(path, _stamp(path)), read_json(path)
    stems = {Path(name).stem for name in names_of(case)}
    owners = {image.id for image in coco.images if Path(image.file_name).stem in stems}
    entries: list[dict[str, Any]] = content["annotations"] if isinstance(content, dict) else []
    for entry in entries:
        if int(entry.get("image_id", 0)) not in owners:
            continue
        name = coco.categories.get(int(entry.get("category_id", -1)), DEFAULT_CLASS)
        outline = entry.get("segmentation")
        if isinstance(outline, dict):
            yield name, from_rle(outline)
            continue
        if not outline:
            raise InputError(f"{path}: annotation {entry.get('id')} has no polygon; data.supervision is 'coarse'")
        rings = [shapely.Polygon(np.asarray(flat, dtype=float).reshape(-1, 2)) for flat in outline]
        whole = VectorObject(geometry=shapely.union_all(rings), class_name=name, source_id=0)
        yield name, rasterise([whole], (shape[0], shape[1])) > 0


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns


@lru_cache(maxsize=4)
def _coco(path: Path, stamp: int) -> CocoFile:
    """Parsed once for all images; ``stamp`` is the time of its change."""
    del stamp
    return read_coco(path)


@lru_cache(maxsize=4)
def _table_names(path: Path, stamp: int) -> frozenset[str]:
    """Images that a table names.

    Raises:
        ConfigError: it names none, so that nobody knows which image it is about.
    """
    del stamp
    import csv

    from samgraft.domains.detections.table import IMAGE

    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [{str(k).strip().lower(): v for k, v in row.items()} for row in csv.DictReader(file)]
    names = {Path(row[name] or "").name for row in rows for name in IMAGE if row.get(name)}
    if rows and not names:
        raise ConfigError(
            f"{path} is one file for all images and has no column 'image'; add it, or give a file per case"
        )
    return frozenset(names)
