"""Rasters with polygons, boxes or points: a folder of GeoTIFFs, and GeoJSON, GeoPackage or shapefiles.

Takes the two folders (or one vector file for all rasters); gives an index whose labels are drawn on each raster's grid,
by window.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from samgraft.domains.datasets.index import Case, DatasetIndex, LabelKind, list_files, make_splits
from samgraft.domains.remote_sensing.raster import RasterScene
from samgraft.domains.remote_sensing.vector import (
    DEFAULT_CLASS,
    VectorLayer,
    VectorObject,
    rasterise,
    rasterise_classes,
    read_layer,
)
from samgraft.domains.scene import Array, Scene, Window, label_dtype
from samgraft.errors import InputError

RASTERS = (".tif", ".tiff", ".vrt", ".jp2")
"""Raster files that are looked for."""
VECTORS = (".geojson", ".gpkg", ".shp", ".json")
"""Vector files that are looked for."""


@dataclass(frozen=True, kw_only=True)
class RasterVectorCase(Case):
    """A raster whose label is a vector file."""

    class_field: str | None = None
    """Field of the vector file that holds the class, or None for one class."""
    layer: str | None = None
    """Layer of the vector file, where it has several."""
    point_radius: float = 0.0
    """Radius in pixels of the disc drawn for a point."""
    nodata: float | None = None
    """Nodata value for rasters that do not say so."""
    bands: tuple[int, ...] | None = None
    """GDAL band numbers (from 1) to use, or None for all."""

    def load_image(self) -> Scene:
        """Open the raster, lazily; see :meth:`Case.load_image`."""
        return RasterScene(self.image[0], bands=self.bands, nodata=self.nodata)

    def load_objects(self) -> tuple[VectorObject, ...]:
        """Read the features that touch the raster, in its pixel coordinates; object i has label i + 1.

        Raises:
            InputError: no vector file, a damaged one, or a feature of an unknown class.
            GeometryError: only one of raster and vector file has a CRS.
        """
        if self.label is None:
            raise InputError(f"case {self.id} has no vector file; leave it out, or add it")
        stamp = self.label.stat().st_mtime_ns if self.label.exists() else 0
        objects = _cached_layer(self.label, self.class_field, self.layer, stamp).on(self.load_image().grid)
        unknown = sorted({o.class_name for o in objects} - set(self.classes.values()))
        if unknown:
            raise InputError(
                f"{self.label}: features of {self.id} have the classes {unknown}; known: {dict(self.classes)}"
            )
        return objects

    def load_label(self, window: Window | None = None) -> Array:
        """Draw the features on the raster's grid; see :meth:`Case.load_label`."""
        objects = self.load_objects()
        height, width = self.load_image().grid.shape
        if self.kind == "instance":
            drawn = rasterise(objects, (height, width), window=window, point_radius=self.point_radius)
        else:
            labels = {name: label for label, name in self.classes.items()}
            drawn = rasterise_classes(objects, (height, width), labels, window=window, point_radius=self.point_radius)
        return drawn.astype(label_dtype(max([len(objects), *self.classes])))

    def object_classes(self) -> Mapping[int, int]:
        """Object id -> class label; see :meth:`Case.object_classes`."""
        labels = {name: label for label, name in self.classes.items()}
        return {i: labels[o.class_name] for i, o in enumerate(self.load_objects(), start=1)}

    def check(self, *, pixels: bool = True) -> None:
        """Open the raster and read its features; see :meth:`Case.check`."""
        image = self.load_image()
        if self.label is not None:
            self.load_objects()
        if pixels:
            rows, cols = image.grid.shape
            image.read((slice(rows - 1, rows), slice(cols - 1, cols)))


def read_raster_vector(
    rasters: Path | str,
    vectors: Path | str | None,
    *,
    class_field: str | None = None,
    classes: Sequence[str] | None = None,
    kind: LabelKind = "instance",
    layer: str | None = None,
    match: Callable[[str], str] | None = None,
    point_radius: float = 0.0,
    nodata: float | None = None,
    bands: Sequence[int] | None = None,
    split: Path | Callable[[str], str | None] | None = None,
) -> DatasetIndex:
    """Index rasters and their vector labels.

    Args:
        rasters: A folder of rasters, or one raster.
        vectors: A folder with one vector file per raster, or a single file that covers all of them (also as the only
            file of a folder); None takes the rasters only.
        class_field: Field that holds the class; None makes one class, "object".
        classes: Class names in label order from 1; None collects the values of ``class_field``, sorted.
        kind: Whether labels are drawn per object or per class.
        layer: Layer of the vector files, where they have several.
        match: Raster name (without suffix) -> name of its vector file (without suffix); None expects the same name.
        point_radius: Radius in pixels of the disc drawn for a point.
        nodata: Nodata value for rasters that do not say so.
        bands: GDAL band numbers (from 1) to use as channels; None takes all but alpha.
        split: Split file, or function such as :func:`split_by_number`; None looks for ``splits.json`` in the folder.

    Returns:
        Cases sorted by id, the raster's name without suffix. One without a vector file becomes a case without a label.

    Raises:
        InputError: missing folders or files, no raster with labels, an unknown name in the split.
    """
    rasters = Path(rasters)
    files = (rasters,) if rasters.is_file() else list_files(rasters, RASTERS)
    root = rasters.parent if rasters.is_file() else rasters
    found = _vector_files(rasters, Path(vectors), files, match) if vectors is not None else {}
    used = {p for p in found.values() if p}
    names = list(classes) if classes is not None else _class_names(used, class_field, layer)
    table = {label: name for label, name in enumerate(names, start=1)}
    cases: list[Case] = [
        RasterVectorCase(
            id=path.stem,
            image=(path,),
            label=found.get(path.stem),
            kind=kind,
            classes=table,
            class_field=class_field,
            layer=layer,
            point_radius=point_radius,
            nodata=nodata,
            bands=tuple(bands) if bands is not None else None,
        )
        for path in files
    ]
    grouped, splits = make_splits(root, cases, split)
    return DatasetIndex(root=root, name=root.name, kind=kind, cases=grouped, classes=table, splits=splits)


def _vector_files(
    rasters: Path, vectors: Path, files: Sequence[Path], match: Callable[[str], str] | None
) -> dict[str, Path | None]:
    """Name of a raster -> its vector file, or the one that covers all of them."""
    labels = {p.stem: p for p in ((vectors,) if vectors.is_file() else list_files(vectors, VECTORS))}
    wanted = {path.stem: match(path.stem) if match else path.stem for path in files}
    alone = len(labels) == 1 and (vectors.is_file() or not set(wanted.values()) & set(labels))
    shared = next(iter(labels.values())) if alone else None
    found: dict[str, Path | None] = {stem: labels.get(name, shared) for stem, name in wanted.items()}
    if not any(found.values()):
        raise InputError(f"no raster of {rasters} has a vector file of its name in {vectors}; give match=")
    return found


def split_by_number(pattern: str, last_train: float) -> Callable[[str], str | None]:
    r"""Make a block split: cases whose number is at most ``last_train`` train, the others validate.

    Neighbouring tiles look alike, so tiles are split by place and not by chance.

    Args:
        pattern: Regular expression whose first group is the number, such as a tile column: ``r"OAM-(\d+)-"``.
        last_train: Largest number that still trains.

    Returns:
        A function for ``split=``; names without a match are left out.
    """
    compiled = re.compile(pattern)

    def side(case_id: str) -> str | None:
        match = compiled.search(case_id)
        if match is None:
            return None
        return "train" if float(match[1]) <= last_train else "val"

    return side


@lru_cache(maxsize=16)
def _cached_layer(path: Path, class_field: str | None, layer: str | None, stamp: int) -> VectorLayer:
    """Read a vector file once for all rasters that it covers; ``stamp`` is its time of change."""
    return read_layer(path, class_field=class_field, layer=layer)


def _class_names(paths: set[Path], class_field: str | None, layer: str | None) -> list[str]:
    """All values of the class field, sorted."""
    if class_field is None:
        return [DEFAULT_CLASS]
    layers = (_cached_layer(p, class_field, layer, p.stat().st_mtime_ns) for p in sorted(paths))
    names = np.unique([name for found in layers for name in found.class_names])
    return [str(name) for name in names]
