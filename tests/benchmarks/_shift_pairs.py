"""The pairs of domains: which cases are the source, which the target, and which of the target are scored.

No patient, and no block of ground, of the scored cases stands in the training cases of either side.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from PIL import Image

from tests.benchmarks._data import EAST_FROM, Split, data_root
from tests.benchmarks._shift_camera import draw
from tests.benchmarks._shift_folders import Item, truth

COLOURFUL = 0.02
"""Least mean difference of the largest and the smallest channel, of a stained picture of nuclei."""
BRIGHT = 0.5
"""Least mean brightness of a grey picture that is no fluorescence."""
SCORED_DARK = 14
"""Fluorescence pictures that are scored. The data set's own split has them all in training."""
BLOCK = 150
"""Side in pixels of the blocks of training ground."""
LEAST_DATA = 0.25
"""Share of a block that holds data; blocks with less are left out."""
RIO_SCORED = (9, 10)
"""Scenes of Rio that are scored: the last two of the seven with buildings; names follow the ground."""
RIO_TRAIN = (4, 5, 6, 7, 8)


@dataclass(frozen=True, kw_only=True)
class Sides:
    """The cases of a pair."""

    source: tuple[Item, ...]
    """Trains the source adapter, with masks."""
    target: tuple[Item, ...]
    """Training cases of the target."""
    scored: tuple[Item, ...]
    """Validation cases of the target; read for nothing but the figures."""

    def __post_init__(self) -> None:
        """Check that nobody who is scored was seen.

        Raises:
            ValueError: a patient or block of ground on both sides.
        """
        seen = {item.patient for item in (*self.source, *self.target)}
        both = sorted(seen & {item.patient for item in self.scored})
        if both:
            raise ValueError(f"{both[:5]} are scored and were trained on; a patient belongs to one side")

    def first(self, source: int, target: int, scored: int) -> "Sides":
        """Only the first few cases of each, for a trial."""
        return Sides(source=self.source[:source], target=self.target[:target], scored=self.scored[:scored])


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A source domain and a target domain, and how networks are trained on them."""

    name: str
    source: str
    """Name of the source domain; pairs that share it share the source adapters."""
    recipe: str
    """The shipped recipe that all of them follow."""
    metric: str
    """"dice" (mean over patients) or "ap50" (all scored images together)."""
    sides: Callable[[int], Sides]
    """Seed -> cases; only the retina camera depends on the seed."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Settings of ``data.*`` on both sides."""
    target_data: Mapping[str, Any] = field(default_factory=dict)
    """Further settings on the target side, such as windows of the same ground in other pixels."""
    modality: str | None = None
    """What the target is, where the source adapter has to be told (see ``samgraft rescale``)."""
    second_observer: bool = False
    """There are masks of a second person, whose agreement with the first is the ceiling."""


def _volumes(name: str, split: Split) -> tuple[Item, ...]:
    folder = data_root() / "medical" / name
    return tuple(
        Item(
            id=member,
            patient=member,
            image=folder / "imagesTr" / f"{member}_0000.nii.gz",
            label=folder / "labelsTr" / f"{member}.nii.gz",
            layout="nnunet",
        )
        for member in _members(folder, split)
    )


def _members(folder: Path, split: Split) -> list[str]:
    return [str(name) for name in json.loads((folder / "splits.json").read_text())[0][split]]


def sarcoma(source: str, target: str) -> Sides:
    """CT and MR of the same 14 patients: ten train on both sides, the other four are scored on the target."""
    return Sides(source=_volumes(source, "train"), target=_volumes(target, "train"), scored=_volumes(target, "val"))


def staining(image: Path) -> str:
    """ "stained", "fluorescence" or "gray" (bright without colour), by colour and brightness of the whole picture."""
    pixels = np.asarray(Image.open(image).convert("RGB"), dtype=np.float32) / 255
    if float((pixels.max(axis=2) - pixels.min(axis=2)).mean()) >= COLOURFUL:
        return "stained"
    return "gray" if float(pixels.mean()) >= BRIGHT else "fluorescence"


@cache
def nuclei_by_staining() -> dict[str, dict[Split, tuple[Item, ...]]]:
    """Staining -> split -> pictures of nuclei. Fluorescence, which has no validation picture, gives its last 14."""
    folder = data_root() / "medical" / "nuclei"
    found: dict[str, dict[Split, tuple[Item, ...]]] = {}
    for part in ("train", "val"):
        split: Split = "train" if part == "train" else "val"
        for member in _members(folder, split):
            item = Item(
                id=member,
                patient=member,
                image=folder / "images" / f"{member}.png",
                label=folder / "instances" / f"{member}.png",
                layout="image_mask",
                labels="instances",
            )
            sides = found.setdefault(staining(item.image), {"train": (), "val": ()})
            sides[split] = (*sides[split], item)
    dark = found["fluorescence"]
    if not dark["val"]:
        pictures = tuple(sorted(dark["train"], key=lambda item: item.id))
        found["fluorescence"] = {"train": pictures[:-SCORED_DARK], "val": pictures[-SCORED_DARK:]}
    return found


def nuclei(source: str, target: str) -> Sides:
    """Pictures of one staining and of another; every picture counts as a patient of its own."""
    known = nuclei_by_staining()
    return Sides(source=known[source]["train"], target=known[target]["train"], scored=known[target]["val"])


def retina(seed: int) -> Sides:
    """Three children through the camera of the data set, four others through the camera of the seed, three scored.

    Source and target show different children: a picture of training that is taken again would be known by heart.
    """
    folder = data_root() / "medical" / "retina_vessels"
    camera = draw(seed)

    def items(members: Sequence[str]) -> list[Item]:
        return [
            Item(
                id=member,
                patient=member[:-1],
                image=folder / "images" / f"{member}.jpg",
                label=folder / "masks" / f"{member}.png",
                layout="image_mask",
            )
            for member in members
        ]

    train = items(_members(folder, "train"))
    children = sorted({item.patient for item in train})
    ours = [item for item in train if item.patient in children[:3]]
    theirs = [replace(item, camera=camera) for item in train if item.patient in children[3:]]
    scored = [replace(item, camera=camera) for item in items(_members(folder, "val"))]
    return Sides(source=tuple(ours), target=tuple(theirs), scored=tuple(scored))


def second_observer(item: Item) -> Item:
    """The same picture with the masks of the other person."""
    return replace(item, label=item.label.parent.with_name("masks_second_observer") / item.label.name)


def _banepa() -> tuple[Item, ...]:
    folder = data_root() / "geo" / "buildings_banepa" / "train"
    label = next((folder / "osm").glob("*.geojson"))
    chips = [path for path in sorted((folder / "oam").glob("*.tif")) if int(path.stem.split("-")[1]) < EAST_FROM]
    return tuple(
        Item(id=path.stem, patient=f"banepa {path.stem}", image=path, label=label, layout="raster_vector")
        for path in chips
    )


def blocks(
    image: Path, label: Path, ground: tuple[slice, slice], patient: str, *, side: int | None = BLOCK
) -> list[Item]:
    """A part of a raster in blocks of about ``side`` pixels; blocks with little data are left out.

    Args:
        image: The raster; a pixel that is 0 in all bands holds no data.
        label: Its polygons.
        ground: Rows and columns of the part.
        patient: Name of the ground.
        side: Pixels; blocks share the part evenly. None: one block, whatever it holds.
    """
    with rasterio.open(image) as file:
        known = (file.read() != 0).any(axis=0)
    edges = [_edges(part, side) for part in ground]
    found = []
    for (top, bottom), (left, right) in product(*edges):
        if side is None or known[top:bottom, left:right].mean() >= LEAST_DATA:
            name, block = f"{image.stem}_{top:04d}_{left:04d}", (top, left, bottom - top, right - left)
            item = Item(id=name, patient=patient, image=image, label=label, layout="raster_vector", block=block)
            found.append(item)
    return found


def _edges(part: slice, side: int | None) -> list[tuple[int, int]]:
    count = 1 if side is None else max(1, round((part.stop - part.start) / side))
    cuts = np.linspace(part.start, part.stop, count + 1).round().astype(int).tolist()
    return list(zip(cuts[:-1], cuts[1:], strict=True))


def _shape(image: Path) -> tuple[int, int]:
    with rasterio.open(image) as file:
        return int(file.height), int(file.width)


def _rio(number: int, side: int | None) -> list[Item]:
    folder = data_root() / "geo" / "buildings_rio_8band"
    image = folder / "3band" / f"3band_013022223130_Public_img{number}.tif"
    label = folder / "vectorData" / "geoJson" / f"013022223130_Public_img{number}_Geo.geojson"
    height, width = _shape(image)
    return blocks(image, label, (slice(0, height), slice(0, width)), f"rio {number}", side=side)


def rio() -> Sides:
    """Banepa from the air and Rio from a satellite, both in colour: five scenes of Rio train, two are scored whole."""
    train = [item for number in RIO_TRAIN for item in _rio(number, BLOCK)]
    scored = [item for number in RIO_SCORED for item in _rio(number, None)]
    return Sides(source=_banepa(), target=tuple(train), scored=tuple(scored))


def atlanta() -> Sides:
    """Banepa in colour from the air and Atlanta in grey from a satellite: its west trains, its east is scored."""
    folder = data_root() / "geo" / "buildings_atlanta_pan"
    image, label = folder / "sample_geotiff.tif", folder / "geotiff_labels.geojson"
    height, width = _shape(image)
    west, east = slice(0, width // 2), slice(width // 2, width)
    train = blocks(image, label, (slice(0, height), west), "atlanta west")
    scored = blocks(image, label, (slice(0, height), east), "atlanta east", side=None)
    return Sides(source=_banepa(), target=tuple(train), scored=tuple(scored))


SATELLITE = {"window": 72}
"""Windows of a raster with 0.5 m pixels that show the 36 m that 256 pixels show in Banepa."""
AERIAL = {"size": 128, "window": 256, "batch_size": 4}
CELLS = {"size": 128, "window": 128, "batch_size": 4}
SLICES = {"size": 128, "neighbours": True, "batch_size": 4}
PAIRS = {
    pair.name: pair
    for pair in (
        Pair(
            name="sarcoma_ct_to_mr",
            source="sarcoma_ct",
            recipe="ct_tumour",
            metric="dice",
            sides=lambda seed: sarcoma("sarcoma_ct", "sarcoma_mr"),
            data={**SLICES, "modality": "CT"},
            target_data={"modality": "MR"},
            modality="MR",
        ),
        Pair(
            name="sarcoma_mr_to_ct",
            source="sarcoma_mr",
            recipe="ct_tumour",
            metric="dice",
            sides=lambda seed: sarcoma("sarcoma_mr", "sarcoma_ct"),
            data={**SLICES, "modality": "MR"},
            target_data={"modality": "CT"},
            modality="CT",
        ),
        Pair(
            name="nuclei_fluorescence_to_stained",
            source="nuclei_fluorescence",
            recipe="nuclei",
            metric="ap50",
            sides=lambda seed: nuclei("fluorescence", "stained"),
            data=CELLS,
        ),
        Pair(
            name="nuclei_stained_to_fluorescence",
            source="nuclei_stained",
            recipe="nuclei",
            metric="ap50",
            sides=lambda seed: nuclei("stained", "fluorescence"),
            data=CELLS,
        ),
        Pair(
            name="buildings_banepa_to_rio",
            source="buildings_banepa",
            recipe="aerial_buildings",
            metric="ap50",
            sides=lambda seed: rio(),
            data=AERIAL,
            target_data=SATELLITE,
        ),
        Pair(
            name="buildings_banepa_to_atlanta",
            source="buildings_banepa",
            recipe="aerial_buildings",
            metric="ap50",
            sides=lambda seed: atlanta(),
            data=AERIAL,
            target_data=SATELLITE,
        ),
        Pair(
            name="retina_camera",
            source="retina_vessels",
            recipe="retina_vessels",
            metric="dice",
            sides=retina,
            data={"size": 128, "window": 192, "batch_size": 4},
            second_observer=True,
        ),
    )
}


def few(items: Sequence[Item], images: Mapping[str, Path], count: int, seed: int) -> tuple[Item, ...]:
    """``count`` cases that show an object, as a person would choose them: one per patient in turn, drawn by ``seed``.

    Args:
        items: Training cases of the target.
        images: Id -> image as it was written.
        count: How many; all, if there are fewer.
        seed: Order of the draw.
    """
    filled = [item for item in items if truth(item, images[item.id]).any()]
    seen: dict[str, int] = {}
    ranked = []
    for place, index in enumerate(np.random.default_rng(seed).permutation(len(filled))):
        item = filled[index]
        turn = seen[item.patient] = seen.get(item.patient, -1) + 1
        ranked.append((turn, place, int(index)))
    return tuple(filled[index] for _, _, index in sorted(ranked)[:count])
