"""Folders on disk for the benchmark of domain shift, in the layouts that ``samgraft fit`` reads.

A target domain becomes ``images/`` (the training images alone, which is all that a method without labels is told of),
and beside it data sets whose images are links into that folder: ``all/`` and ``five/`` with masks, ``boxes/`` and
``points/`` with weak labels. No link leads from images to labels. What is scored lies in none of them.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import rasterio
import rasterio.features
import shapely
from numpy.typing import NDArray
from PIL import Image
from rasterio.windows import Window

from tests.benchmarks._shift_camera import Camera

Layout = Literal["nnunet", "image_mask", "raster_vector"]
Int = NDArray[np.int32]
IMAGES: Mapping[Layout, str] = {"nnunet": "imagesTr", "image_mask": "images", "raster_vector": "images"}
LAST = "last_"
"""Begins the name of the copy of the first training case that stands on the validation side.

``fit`` wants a case there. It is validated once, at the end, so it chooses nothing; target cases are left alone."""
FEATURES = "objects.geojson"
"""Polygons of all rasters of a data set."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image with its label file."""

    id: str
    patient: str
    """Patient, or block of ground: it never stands on both sides."""
    image: Path
    label: Path
    """NIfTI on the grid of the image, PNG of its size, or GeoJSON in its CRS."""
    layout: Layout
    labels: str = "masks"
    """image_mask: name of the folder of labels, ``masks`` or ``instances``."""
    block: tuple[int, int, int, int] | None = None
    """raster_vector: top, left, height and width of the part that is cut out; None takes the file as it is."""
    camera: Camera | None = None
    """image_mask: takes the picture again."""


def image_name(item: Item) -> str:
    """Name of the image file in a data set."""
    if item.layout == "nnunet":
        return f"{item.id}_0000.nii.gz"
    suffix = ".tif" if item.layout == "raster_vector" else ".png" if item.camera else item.image.suffix
    return item.id + suffix


def write_image(item: Item, folder: Path) -> Path:
    """Copy the image into ``folder``, cut or taken again where the item says so; sidecars come along."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / image_name(item)
    if item.block is not None:
        _cut(item.image, item.block, target)
    elif item.camera is not None:
        pixels = np.asarray(Image.open(item.image).convert("RGB"), dtype=np.float32) / np.float32(255)
        taken = item.camera.shoot(pixels, item.id)
        Image.fromarray(np.round(taken * 255).astype(np.uint8)).save(target)
    else:
        shutil.copyfile(item.image, target)
        sidecar = Path(f"{item.image}.aux.xml")
        if sidecar.is_file():
            shutil.copyfile(sidecar, f"{target}.aux.xml")
    return target


def _cut(source: Path, block: tuple[int, int, int, int], target: Path) -> None:
    """A part of a raster at its place; 0 in all bands is nodata, which these files do not say."""
    top, left, height, width = block
    window = Window(left, top, width, height)  # type: ignore[call-arg]  # attrs, which mypy does not see
    with rasterio.open(source) as file:
        place = {"transform": file.window_transform(window), "crs": file.crs}
        size = {"count": file.count, "height": height, "width": width, "dtype": file.dtypes[0]}
        with rasterio.open(target, "w", driver="GTiff", nodata=0, compress="deflate", **size, **place) as written:
            written.write(file.read(window=window))


def truth(item: Item, image: Path) -> Int:
    """Labels on the grid of ``image``, which was written for ``item``, by readers that know nothing of samgraft.

    Classes, or instance numbers; (D, H, W) or (H, W).
    """
    if item.layout == "nnunet":
        volume = np.asarray(nib.load(item.label).dataobj)
        return np.asarray(np.rint(volume).T, dtype=np.int32)
    if item.layout == "image_mask":
        return np.asarray(Image.open(item.label)).astype(np.int32)
    with rasterio.open(image) as file:
        near = shapely.box(*file.bounds)
        shapes = [shape for shape in map(_shape, features(item.label)) if shape.intersects(near)]
        pairs = [(shape, number) for number, shape in enumerate(shapes, start=1)]
        size = (file.height, file.width)
        if not pairs:
            return np.zeros(size, dtype=np.int32)
        drawn = rasterio.features.rasterize(pairs, size, transform=file.transform, dtype="int32")
        known = file.dataset_mask() > 0  # an object where the file holds no data can be found by nobody
        return np.asarray(np.where(known, drawn, 0), dtype=np.int32)


def features(path: Path) -> list[dict[str, Any]]:
    """Features with a geometry of a GeoJSON file."""
    return [f for f in json.loads(path.read_text())["features"] if f["geometry"]]


def _shape(feature: Mapping[str, Any]) -> shapely.Geometry:
    return shapely.geometry.shape(feature["geometry"])


def write_labels(items: Sequence[Item], images: Sequence[Path], root: Path) -> None:
    """Label files of a data set ``root``, as its layout has them.

    Args:
        items: What is labelled.
        images: Their images, as they were written.
        root: Folder of the data set.
    """
    first = items[0]
    if first.layout == "nnunet":
        for item in items:
            _copy(item.label, root / "labelsTr" / f"{item.id}.nii.gz")
        describe(first, root)
    elif first.layout == "image_mask":
        for item in items:
            _copy(item.label, root / item.labels / f"{item.id}.png")
    else:
        _write_features(items, images, root / "labels" / FEATURES)


def describe(item: Item, root: Path) -> None:
    """dataset.json of nnU-Net's layout: the set's own, without the number of cases."""
    known = json.loads((item.image.parent.parent / "dataset.json").read_text())
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps({k: v for k, v in known.items() if k != "numTraining"}, indent=1))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write_features(items: Sequence[Item], images: Sequence[Path], target: Path) -> None:
    """The polygons that touch one of ``images``, and no other: those of scored ground stay away."""
    collection = json.loads(items[0].label.read_text())
    kept: list[dict[str, Any]] = []
    for label in dict.fromkeys(item.label for item in items):
        grounds = [_ground(path) for item, path in zip(items, images, strict=True) if item.label == label]
        whole = shapely.union_all(grounds)
        kept += [feature for feature in features(label) if _shape(feature).intersects(whole)]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({**collection, "features": kept}))


def _ground(image: Path) -> shapely.Geometry:
    with rasterio.open(image) as file:
        return shapely.box(*file.bounds)


def unlabelled(items: Iterable[Item], root: Path) -> list[Path]:
    """Write the images alone; where they are."""
    return [write_image(item, root / IMAGES[item.layout]) for item in items]


LabelWriter = Callable[[Sequence[Item], Sequence[Path], Path], None]


def data_set(
    items: Sequence[Item], images: Mapping[str, Path], root: Path, *, labels: LabelWriter = write_labels
) -> Path:
    """A data set that trains on all ``items``.

    Args:
        items: Its cases.
        images: Id -> image file, which is linked to.
        root: Folder to make.
        labels: Writes the labels of cases, given these, their images and ``root``.
    """
    again = replace(items[0], id=LAST + items[0].id)
    folder = root / IMAGES[again.layout]
    folder.mkdir(parents=True, exist_ok=True)
    linked = []
    for item in [*items, again]:
        source = images[item.id.removeprefix(LAST)]
        own = folder / (LAST + source.name if item is again else source.name)
        _link(source, own)
        linked.append(own)
    labels([*items, again], linked, root)
    split = [{"train": [item.id for item in items], "val": [again.id]}]
    (root / "splits.json").write_text(json.dumps(split, indent=1))
    return root


def _link(source: Path, target: Path) -> None:
    """A relative link, and one to the sidecar of ``source`` if it has one."""
    for path, link in ((source, target), (Path(f"{source}.aux.xml"), Path(f"{target}.aux.xml"))):
        if path.is_file() and not link.is_symlink():
            link.symlink_to(os.path.relpath(path.resolve(), link.parent.resolve()))
