"""Two kinds of made-up images with known truth: a CT-like abdomen, and a village seen from above.

Everything is drawn from a seed; no real image is used. ``samgraft demo``, the README and the tests read these files.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from scipy import ndimage

from samgraft.domains.atomic import atomic_path
from samgraft.domains.medical.nifti import write_nifti, write_nifti_image
from samgraft.domains.remote_sensing.georeference import grid_of
from samgraft.domains.segmentation import InstanceRecord, Segmentation
from samgraft.grid import Grid

Rng = np.random.Generator
Floats = NDArray[np.float32]

ABDOMEN_CLASSES = {1: "liver", 2: "kidney"}
AIR, FAT, MUSCLE, BONE, LIVER, KIDNEY, VESSEL, STOMACH = -1000.0, -95.0, 50.0, 420.0, 105.0, 165.0, 210.0, 15.0
"""Typical values in HU, with contrast medium."""
CRS = "EPSG:32633"
PIXEL = 0.5
"""Side of a scene's pixel in metres."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Abdomen:
    """A volume and its truth."""

    image: NDArray[np.int16]
    """(D, H, W) HU."""
    labels: NDArray[np.uint8]
    """(D, H, W): ``ABDOMEN_CLASSES``."""
    grid: Grid
    """Anisotropic and oblique, RAS, mm."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Village:
    """A scene and its truth."""

    image: NDArray[np.uint8]
    """(3, H, W) red, green, blue."""
    buildings: NDArray[np.int32]
    """(H, W): 0 or the number of a building."""
    grid: Grid
    """``PIXEL`` metres, ``CRS``."""


def make_abdomen(seed: int, *, shape: tuple[int, int, int] = (24, 128, 128)) -> Abdomen:
    """Draw a CT-like abdomen: body, spine, ribs, liver, kidneys, aorta, stomach with gas.

    Args:
        seed: Decides anatomy, contrast and noise.
        shape: (D, H, W); slices are 5 mm apart, pixels 2.4 mm at 128.
    """
    rng = np.random.default_rng([seed, 7])
    z, y, x = _places(rng, shape)
    image, labels = np.full(shape, AIR, np.float32), np.zeros(shape, np.uint8)
    wide, deep = rng.uniform(0.78, 0.88), rng.uniform(0.58, 0.68)
    body = (x / wide) ** 2 + (y / deep) ** 2
    image[body < 1] = FAT
    inside = body < rng.uniform(0.74, 0.84)
    image[inside] = (MUSCLE - 30 + 28 * _bumps(rng, shape, 5))[inside]  # bowel and muscle together
    _bones(image, rng, (z, y, x), (wide, deep))
    image[_ball((z, y, x), (0, 0.18, 0.08), (9, 0.055, 0.055))] = VESSEL
    stomach = _ball((z, y, x), (0.35, -0.2, 0.38), (0.55, 0.2, 0.24))
    image[stomach] = STOMACH
    image[stomach & (y < -0.27)] = AIR + 60
    shift, grow = rng.normal(0, 0.03, 3), rng.uniform(0.92, 1.08)
    liver = _ball(
        (z, y, x), (0.25 + shift[0], -0.1 + shift[1], -0.36 + shift[2]), (0.78 * grow, 0.36 * grow, 0.36 * grow)
    )
    liver |= _ball((z, y, x), (0.3 + shift[0], -0.26 + shift[1], -0.05 + shift[2]), (0.5 * grow, 0.16, 0.3 * grow))
    liver &= (body < 0.78) & ~stomach
    kidneys = np.zeros(shape, dtype=bool)
    for side in (-1, 1):
        at = (-0.3 + rng.normal(0, 0.06), 0.26 + rng.normal(0, 0.02), side * (0.34 + rng.normal(0, 0.02)))
        kidney = _ball((z, y, x), at, (0.55, 0.125, 0.1))
        pelvis = _ball((z, y, x), (at[0], at[1], at[2] - side * 0.09), (0.2, 0.05, 0.06))
        kidneys |= kidney & ~pelvis
    liver &= ~kidneys
    image[liver], image[kidneys] = LIVER + rng.normal(0, 8), KIDNEY + rng.normal(0, 10)
    image[liver & (_bumps(rng, shape, 2.5) > 1.9)] = VESSEL - 40
    labels[liver], labels[kidneys] = 1, 2
    image = ndimage.gaussian_filter(image, (0.4, 0.7, 0.7))
    image += ndimage.gaussian_filter(rng.normal(0, 1, shape), (0, 0.6, 0.6)).astype(np.float32) * rng.uniform(28, 40)
    return Abdomen(
        image=np.clip(np.round(image), -1024, 3071).astype(np.int16), labels=labels, grid=_oblique_grid(rng, shape)
    )


def _places(rng: Rng, shape: tuple[int, int, int]) -> tuple[Floats, Floats, Floats]:
    """(z, y, x) of every voxel in [-1, 1], bent by a smooth random field."""
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return z, y + 0.03 * _bumps(rng, shape, 14), x + 0.03 * _bumps(rng, shape, 14)


def _bumps(rng: Rng, shape: tuple[int, ...], width: float) -> Floats:
    """Smooth noise of standard deviation 1; ``width`` in pixels of the last axes, a quarter of that between slices."""
    widths = (width / 4, width, width) if len(shape) == 3 else (width, width)
    steps = [max(1.0, w / 2) for w in widths]  # wide noise is drawn on a coarse grid and enlarged
    coarse = [int(np.ceil(n / step)) + 8 for n, step in zip(shape, steps, strict=True)]
    sigma = [w / step for w, step in zip(widths, steps, strict=True)]
    noise = ndimage.gaussian_filter(rng.standard_normal(coarse).astype(np.float32), sigma)
    noise = ndimage.zoom(noise, steps, order=1)
    spare = [(have - want) // 2 for have, want in zip(noise.shape, shape, strict=True)]
    noise = noise[tuple(slice(s, s + n) for s, n in zip(spare, shape, strict=True))]
    return np.asarray((noise - noise.mean()) / (noise.std() + 1e-9), dtype=np.float32)


def _ball(
    at: tuple[Floats, Floats, Floats], centre: tuple[float, float, float], radii: tuple[float, float, float]
) -> NDArray[np.bool_]:
    total = sum(((a - c) / r) ** 2 for a, c, r in zip(at, centre, radii, strict=True))
    return np.asarray(total < 1)


def _bones(image: Floats, rng: Rng, at: tuple[Floats, Floats, Floats], body: tuple[float, float]) -> None:
    """Spine with canal, and ribs as blobs along the wall."""
    z, y, x = at
    image[_ball(at, (0, 0.36, 0), (9, 0.1, 0.12))] = BONE
    image[_ball(at, (0, 0.5, 0), (9, 0.045, 0.05))] = 30
    image[_ball(at, (0, 0.58, 0), (9, 0.05, 0.03))] = BONE
    for number in range(9):
        angle = np.pi * (0.12 + 0.095 * number) + rng.normal(0, 0.02)
        for side in (-1, 1):
            turn = angle + 0.35 * z
            dx, dy = x - side * 0.9 * body[0] * np.sin(turn), y - 0.9 * body[1] * np.cos(turn)
            image[dx**2 + dy**2 < 0.028**2] = BONE - 80


def _oblique_grid(rng: Rng, shape: tuple[int, int, int]) -> Grid:
    """Slices 5 mm apart, in-plane 2.4 mm at 128 pixels, turned by about ten degrees about two axes."""
    a, b = rng.uniform(0.1, 0.25, 2)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    step = 2.4 * 128 / shape[2]
    # columns for (D, H, W): up, towards the back, towards the left of the patient
    axes = np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]], dtype=float) * np.array([5.0, step, step])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_y @ axes
    affine[:3, 3] = rng.uniform(-150, -100, 3)
    single = affine.astype(np.float32).astype(np.float64)  # what a NIfTI header can hold
    return Grid(shape=shape, affine=single, world="RAS")


def make_village(seed: int, *, shape: tuple[int, int] = (512, 512)) -> Village:
    """Draw a scene of fields, roads, trees and buildings with shadows, from above.

    Args:
        seed: Decides place, layout and light.
        shape: (H, W) in pixels of ``PIXEL`` metres.
    """
    rng = np.random.default_rng([seed, 11])
    image = _ground(rng, shape)
    rows, cols = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    turn = rng.uniform(0, np.pi / 2)
    along, across = cols * np.cos(turn) + rows * np.sin(turn), rows * np.cos(turn) - cols * np.sin(turn)
    block = rng.uniform(75, 100)
    road = _roads(image, rng, (along, across), block)
    buildings, heights = _place_buildings(rng, shape, turn, block, road)
    _shade(image, buildings, heights)
    _roofs(image, rng, buildings, (rows, cols))
    _trees(image, rng, (rows, cols), forbidden=(buildings > 0) | road)
    image = ndimage.gaussian_filter(image, (0, 0.7, 0.7)) + rng.normal(0, 4.0, image.shape)
    corner = (400_000 + 1000.0 * (seed % 97), 5_500_000 + 1000.0 * (seed % 89))
    transform = Affine(PIXEL, 0, corner[0], 0, -PIXEL, corner[1])
    grid = grid_of(transform, rasterio.crs.CRS.from_string(CRS), shape)
    return Village(image=np.clip(image, 0, 255).astype(np.uint8), buildings=buildings, grid=grid)


def _ground(rng: Rng, shape: tuple[int, int]) -> Floats:
    """(3, H, W): fields of different green and brown, with texture."""
    fields = np.digitize(_bumps(rng, shape, 45), [-0.7, 0.0, 0.7])
    colours = np.array([[112, 128, 78], [138, 132, 92], [96, 118, 70], [150, 140, 108]], dtype=np.float32)
    colours = colours[rng.permutation(4)] + rng.normal(0, 6, (4, 3)).astype(np.float32)
    image = colours[fields].transpose(2, 0, 1)
    texture = 7 * _bumps(rng, shape, 1.5) + 5 * _bumps(rng, shape, 8)
    return np.ascontiguousarray(image + texture, dtype=np.float32)


def _roads(image: Floats, rng: Rng, at: tuple[Floats, Floats], block: float) -> NDArray[np.bool_]:
    """A grid of roads, every ``block`` pixels, slightly bent; drawn into ``image``."""
    bend = 4 * _bumps(rng, image.shape[1:], 60)
    road = np.zeros(image.shape[1:], dtype=bool)
    for place, width in zip(at, (4.5, 3.5), strict=True):
        phase = (place + bend) % block
        road |= np.minimum(phase, block - phase) < width
    image[:, road] = rng.uniform(120, 165) + 4 * _bumps(rng, image.shape[1:], 2)[road]
    return road


def _place_buildings(
    rng: Rng, shape: tuple[int, int], turn: float, block: float, road: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], Floats]:
    """Rectangles and L-shapes beside roads: numbers (H, W), and the height of each in pixels of shadow."""
    buildings, heights = np.zeros(shape, dtype=np.int32), [0.0]
    distance = ndimage.distance_transform_edt(~road)
    for _ in range(int(shape[0] * shape[1] / 700)):
        centre = rng.uniform(0, 1, 2) * shape
        near = distance[int(centre[0]), int(centre[1])]
        if near < 9 or near > block / 2.6:
            continue
        window = tuple(slice(max(0, int(c) - 40), min(n, int(c) + 40)) for c, n in zip(centre, shape, strict=True))
        angle = turn + rng.choice([0, np.pi / 2]) + rng.normal(0, 0.04)
        mask = _footprint(rng, centre, angle, (window[0], window[1]))
        grown = ndimage.binary_dilation(mask, iterations=3)
        if mask.sum() < 60 or road[window][grown].any() or buildings[window][grown].any():
            continue
        buildings[window][mask] = len(heights)
        heights.append(rng.uniform(3, 8))
    return buildings, np.array(heights, dtype=np.float32)


def _footprint(rng: Rng, centre: NDArray[np.float64], angle: float, window: tuple[slice, slice]) -> NDArray[np.bool_]:
    rows, cols = np.mgrid[window]
    y, x = rows - centre[0], cols - centre[1]
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    length, width = rng.uniform(9, 19), rng.uniform(6, 10)
    mask = (abs(u) < length) & (abs(v) < width)
    if rng.random() < 0.3:
        mask |= (abs(u - length + width * 0.7) < width * 0.7) & (v > 0) & (v < width * rng.uniform(1.6, 2.2))
    return np.asarray(mask)


def _shade(image: Floats, buildings: NDArray[np.int32], heights: Floats) -> None:
    """Shadows to the lower right, as long as the building is high."""
    shadow = np.zeros(buildings.shape, dtype=bool)
    for step in range(1, 9):
        moved = np.zeros_like(buildings)
        moved[step:, step:] = buildings[:-step, :-step]
        shadow |= (moved > 0) & (heights[moved] >= step)
    shadow &= buildings == 0
    image[:, shadow] *= 0.5


def _roofs(image: Floats, rng: Rng, buildings: NDArray[np.int32], at: tuple[Floats, Floats]) -> None:
    """Red, gray or bright roofs; one half lighter, as gables are."""
    palette = np.array(
        [[176, 92, 70], [150, 80, 62], [128, 124, 122], [188, 184, 176], [104, 92, 88]], dtype=np.float32
    )
    for number, place in enumerate(ndimage.find_objects(buildings), start=1):
        own = buildings[place] == number
        colour = palette[rng.choice(5, p=[0.35, 0.2, 0.2, 0.15, 0.1])] + rng.normal(0, 8, 3)
        rows, cols = at[0][place], at[1][place]
        angle = rng.uniform(0, np.pi)
        side = (rows - rows[own].mean()) * np.cos(angle) + (cols - cols[own].mean()) * np.sin(angle) > 0
        light = np.where(side, 1.1, 0.88) + rng.normal(0, 0.02, own.shape)
        for channel in range(3):
            image[channel][place][own] = (colour[channel] * light)[own]


def _trees(image: Floats, rng: Rng, at: tuple[Floats, Floats], *, forbidden: NDArray[np.bool_]) -> None:
    """Round crowns, singly and in rows, not on roads and roofs."""
    rows, cols = at
    for _ in range(rows.size // 2200):
        y, x, radius = rng.uniform(0, rows.shape[0]), rng.uniform(0, rows.shape[1]), rng.uniform(3, 8)
        place = (slice(max(0, int(y - 10)), int(y + 10)), slice(max(0, int(x - 10)), int(x + 10)))
        distance = np.hypot(rows[place] - y, cols[place] - x)
        crown = (distance < radius) & ~forbidden[place]
        light = 1.15 - 0.05 * distance[crown] + rng.normal(0, 0.08, int(crown.sum()))
        for channel, value in enumerate((54, 84, 46)):
            image[channel][place][crown] = value * light


def write_abdomen(found: Abdomen, image: Path, labels: Path | None = None) -> None:
    """Write the volume as .nii.gz, and its truth if a path is given.

    Raises:
        OutputError: a folder is missing or not writable.
    """
    write_nifti_image(image, found.image, found.grid)
    if labels is not None:
        write_nifti(labels, found.labels, found.grid)


def write_village(found: Village, image: Path, buildings: Path | None = None) -> None:
    """Write the scene as a tiled GeoTIFF, and its buildings as polygons if a path is given.

    Raises:
        OutputError: a folder is missing or not writable.
    """
    columns = found.grid.affine[:, [1, 0, 2]]  # (row, col) order to GDAL's (col, row)
    height, width = found.grid.shape
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": height, "width": width, "photometric": "RGB"}
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "predictor": 2}
    transform = Affine(*columns[:2].ravel())
    with atomic_path(image) as temporary:
        with rasterio.open(temporary, "w", crs=CRS, transform=transform, **profile, **layout) as target:
            target.write(found.image)
    if buildings is not None:
        truth(found).save(buildings)


def truth(found: Village) -> Segmentation:
    """The buildings of a village as a result with score 1."""
    records = []
    for number, place in enumerate(ndimage.find_objects(found.buildings), start=1):
        rows, cols = place
        box = (float(cols.start), float(rows.start), float(cols.stop - 1), float(rows.stop - 1))
        records.append(InstanceRecord(id=number, class_id=1, score=1.0, box=box))
    return Segmentation(
        labels=found.buildings,
        grid=found.grid,
        kind="instance",
        classes={1: "building"},
        instances=tuple(records),
        from_ground_truth=True,
    )
