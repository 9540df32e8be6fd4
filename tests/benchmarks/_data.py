"""Real images with labels, read with plain readers, for benchmarks only.

The readers here know nothing of samgraft's Scenes, so that a wrong reader there cannot hide behind the same mistake.
Pictures become (H, W, 3) float32 in [0, 1]; volumes (D, H, W) float32 in [0, 1], with D the coarsest axis (the first
array axis k of (k, j, i) where no axis is coarser).
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import rasterio
import rasterio.features
import shapely
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Split = Literal["train", "val"]
Float = NDArray[np.float32]
Int = NDArray[np.int32]

CT_WINDOW = (-160.0, 240.0)
"""Soft-tissue window in HU."""
EAST_FROM = 386694
"""First x tile of the validation block of buildings_banepa."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One image with its label, on the grid of the file."""

    id: str
    """Unit of averaging: a patient, a volume, an image or a chip."""
    name: str
    """Name of the image file."""
    image: Float
    """(H, W, 3) or (D, H, W), in [0, 1]."""
    label: Int
    """(H, W) or (D, H, W): class numbers, or instance numbers where the set says so; 0 is background."""
    spacing: tuple[float, float, float] | None = None
    """Of a volume: mm along (D, H, W)."""


def data_root() -> Path:
    """Folder of the shared data: ``$SAMGRAFT_SHARED/data``, else ``../shared/data`` beside the repository.

    Raises:
        SystemExit: it is not there.
    """
    shared = Path(os.environ.get("SAMGRAFT_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    if not (shared / "data").is_dir():
        raise SystemExit(f"no benchmark data at {shared / 'data'}; set SAMGRAFT_SHARED to the folder that holds data/")
    return shared / "data"


def cases(name: str, split: Split) -> list[Case]:
    """All cases of a split, in file order."""
    return list(iterate(name, split))


def iterate(name: str, split: Split) -> Iterator[Case]:
    """The same, one at a time."""
    return READERS[name](name, split)


def _members(name: str, split: Split) -> list[str]:
    entries = json.loads((data_root() / "medical" / name / "splits.json").read_text())
    return [str(v) for v in entries[0][split]]


def _picture(path: Path) -> Float:
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)
    return pixels / np.float32(255)


def percentile_scale(volume: NDArray[Any], lower: float = 0.5, upper: float = 99.5) -> Float:
    """Map the two percentiles to 0 and 1 and clip."""
    low, high = np.percentile(volume, (lower, upper))
    return np.asarray(np.clip((volume - low) / max(high - low, 1e-6), 0, 1), dtype=np.float32)


def cut_axis(spacing: NDArray[np.floating]) -> int:
    """The axis along which a volume becomes slices: the coarsest, or the first where all are alike."""
    return int(spacing.argmax()) if spacing.max() > 1.2 * spacing.min() else 0


def volume_file(name: str, member: str) -> Path:
    """Image of a case of a volume set."""
    return data_root() / "medical" / name / "imagesTr" / f"{member}_0000.nii.gz"


def _volume_cases(name: str, split: Split) -> Iterator[Case]:
    folder = data_root() / "medical" / name
    for member in _members(name, split):
        file = nib.load(volume_file(name, member))
        mask = nib.load(folder / "labelsTr" / f"{member}.nii.gz")
        volume, label = (np.asarray(f.dataobj).T for f in (file, mask))
        spacing = np.asarray(file.header.get_zooms()[:3])[::-1]
        axis = cut_axis(spacing)
        volume, label = np.moveaxis(volume, axis, 0), np.moveaxis(label, axis, 0)
        first, second, third = (float(mm) for mm in [spacing[axis], *np.delete(spacing, axis)])
        if name.endswith("_ct"):
            low, high = CT_WINDOW
            image = np.clip((volume.astype(np.float32) - low) / (high - low), 0, 1)
        else:
            image = percentile_scale(volume.astype(np.float32))
        classes = np.rint(label).astype(np.int32)
        yield Case(id=member, name=member, image=image, label=classes, spacing=(first, second, third))


def _picture_cases(name: str, split: Split) -> Iterator[Case]:
    folder = data_root() / "medical" / name
    masks = folder / ("instances" if name == "nuclei" else "masks")
    members = _members(name, split)
    for path in sorted((folder / "images").iterdir()):
        stem = path.name.split(".")[0]
        owner = [m for m in members if stem == m or (name == "cardiac_mr" and stem.startswith(f"{m}-IM-"))]
        if not owner:
            continue
        label = np.asarray(Image.open(masks / path.with_suffix(".png").name)).astype(np.int32)
        if name == "cardiac_mr":
            label = (label[..., 0] > 127).astype(np.int32)
        yield Case(id=owner[0], name=path.name, image=_picture(path), label=label)


@lru_cache(maxsize=1)
def _footprints(folder: Path) -> tuple[tuple[Any, ...], Any]:
    collection = json.loads(next(folder.glob("*.geojson")).read_text())
    shapes = tuple(shapely.geometry.shape(f["geometry"]) for f in collection["features"] if f["geometry"])
    return shapes, shapely.STRtree(shapes)


def _building_cases(name: str, split: Split) -> Iterator[Case]:
    folder = data_root() / "geo" / name / "train"
    shapes, tree = _footprints(folder / "osm")
    for path in sorted((folder / "oam").glob("*.tif")):
        if (int(path.stem.split("-")[1]) >= EAST_FROM) != (split == "val"):
            continue
        with rasterio.open(path) as file:
            pixels = np.moveaxis(file.read((1, 2, 3)), 0, -1).astype(np.float32) / np.float32(255)
            hits = sorted(int(i) for i in tree.query(shapely.box(*file.bounds), predicate="intersects"))
            pairs = [(shapes[row], i + 1) for i, row in enumerate(hits)]
            shape = (file.height, file.width)
            label = (
                rasterio.features.rasterize(pairs, shape, transform=file.transform, dtype="int32")
                if pairs
                else np.zeros(shape)
            )
        yield Case(id=path.stem, name=path.name, image=pixels, label=np.asarray(label, dtype=np.int32))


READERS: dict[str, Callable[[str, Split], Iterator[Case]]] = {
    "hippocampus_mr": _volume_cases,
    "cardiac_mr": _picture_cases,
    "nuclei": _picture_cases,
    "nerve_us": _picture_cases,
    "retina_vessels": _picture_cases,
    "sarcoma_ct": _volume_cases,
    "sarcoma_mr": _volume_cases,
    "buildings_banepa": _building_cases,
}
INSTANCE_SETS = ("nuclei", "buildings_banepa")
"""Sets whose label numbers are instances."""


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One 2D picture with the objects to find in it."""

    case: str
    image: Float
    """(H, W, 3) in [0, 1]."""
    masks: list[NDArray[np.bool_]]
    """(H, W) each."""


def picture(shown: Case | View) -> torch.Tensor:
    """(3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(shown.image.transpose(2, 0, 1)))


def views(
    name: str, split: Split = "val", *, max_slices: int = 6, max_objects: int = 12, min_area: int = 20
) -> Iterator[View]:
    """Pictures and objects of a split, subsampled by rank (never at random).

    Volumes give at most ``max_slices`` slices, evenly spaced among those with an object; instance sets at most
    ``max_objects`` per picture; objects under ``min_area`` pixels are left out. nerve_us and retina_vessels give the
    largest component of a class and the whole vessel mask.
    """
    for case in iterate(name, split):
        if case.label.ndim == 2:
            masks = list(_objects(name, case.label, min_area))
            picked = [masks[i] for i in evenly(len(masks), max_objects)]
            yield View(case=case.id, image=case.image, masks=picked)
            continue
        filled = [d for d in range(len(case.label)) if _areas(case.label[d]).max(initial=0) >= min_area]
        for i in evenly(len(filled), max_slices):
            plane = np.repeat(case.image[filled[i], :, :, None], 3, axis=2)
            yield View(case=case.id, image=plane, masks=list(_objects(name, case.label[filled[i]], min_area)))


def evenly(n: int, most: int) -> list[int]:
    """At most ``most`` of the indices 0..n-1, evenly spaced, ends included."""
    return list(range(n)) if n <= most else [int(i) for i in np.linspace(0, n - 1, most).round()]


def _areas(label: Int) -> NDArray[np.int64]:
    return np.bincount(label.ravel())[1:]


def _objects(name: str, label: Int, min_area: int) -> Iterator[NDArray[np.bool_]]:
    for value in np.flatnonzero(_areas(label) >= min_area) + 1:
        mask = label == value
        if name == "nerve_us":
            mask = largest_component(mask)
        yield mask


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest 4-connected component of a mask (the mask itself when empty)."""
    parts, count = ndimage.label(mask)
    return mask if count < 2 else np.asarray(parts == 1 + np.bincount(parts.ravel())[1:].argmax())


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Tight box (x0, y0, x1, y1) of a mask, first and last pixel inside.

    Raises:
        ValueError: the mask is empty.
    """
    if not mask.any():
        raise ValueError("box of an empty mask; leave out empty masks first")
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(cols[0]), int(rows[0]), int(cols[-1]), int(rows[-1])
