"""Layout "mosaic": from rasters and label files to windows that train and blocks that validate.

    rasters -> one mosaic -> look        label file -> LabelSource
    blocks on the ground -> some validate -> windows at a distance from them train

Only headers, label files and a sample of the pixels are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.labels.blocks import Blocks, block_parts, draw_blocks
from samgraft.domains.labels.files import RASTER_SUFFIXES, LabelChoice, read_labels, read_mask
from samgraft.domains.labels.source import LabelSource, Windows, window_of
from samgraft.domains.remote_sensing.area import read_area
from samgraft.domains.remote_sensing.geo_scene import GeoScene
from samgraft.domains.remote_sensing.georeference import ground_step
from samgraft.domains.remote_sensing.opener import RasterOptions, open_raster
from samgraft.domains.remote_sensing.sensor import common_name
from samgraft.domains.scene import Window
from samgraft.errors import ConfigError, InputError
from samgraft.recipes.alignment import in_tone
from samgraft.recipes.config import DataConfig, Kind
from samgraft.recipes.data.cases import CaseRef, DataIndex
from samgraft.recipes.data.draws import group_rates
from samgraft.recipes.data.fit import window_starts
from samgraft.recipes.data.raster_windows import BlockRef, RasterSource, RasterWindows, read_block, touches_all
from samgraft.recipes.ground import common_gsd
from samgraft.recipes.look import Look, fixed_look, look_at, stretch_recipe

BLOCK_WINDOWS = 4
"""Windows along the side of a block, where nothing is said; fewer on a raster that has not three such blocks."""
MOST_WINDOWS = 1_000_000
"""Windows that are kept; of more, so many are drawn by the seed."""
MOST_SIDE = 2048
"""Longest side of a block in pixels: one that validates is read as a whole."""
_USUAL = ("labels.gpkg", "labels.geojson", "labels.fgb", "labels.parquet", "labels.tif", "labels.json")


def index_rasters(config: DataConfig, kind: Kind, class_names: Sequence[str] | None = None) -> DataIndex:
    """Find windows and blocks.

    Args:
        config: With ``layout: mosaic``.
        kind: "instance" tells objects apart, "semantic" learns classes.
        class_names: Foreground classes, in label order; None takes those of the label file.

    Raises:
        InputError: a missing or damaged file, or nothing labelled on the raster.
        GeometryError: files that cannot be laid on each other.
        ConfigError: options that contradict each other, or leave nothing to train on.
    """
    if config.window is None:
        raise ConfigError("data.window is not set; rasters are learned in windows: give their side in pixels")
    if config.cases is not None:
        raise ConfigError(
            f"data.cases is {config.cases}; a mosaic has no cases: name a smaller data.aoi, or leave it out"
        )
    scene = open_raster(raster_files(config), RasterOptions(**config.reading))
    look = _look(scene, config)
    labels = _labels(scene, config, kind, class_names)
    areas, known = _areas(scene, config)
    inside = None if config.val_area is None else read_area(below(config, config.val_area), scene.grid)
    source = RasterSource(
        scene=scene,
        look=look,
        labels=labels,
        kind=kind,
        known=known,
        val_only=() if inside is None else (inside.mask,),
    )
    blocks = _blocks(config, source, areas, inside)
    windows = _windows(config, source, blocks, areas)
    if config.fixed_stretch or config.intensity is None:
        scale = stretch_recipe(look if config.fixed_stretch else None)
    else:
        scale = {"kind": "range", "lower": config.intensity[0], "upper": config.intensity[1], "note": "data.intensity"}
    return DataIndex(
        train=(),
        val=_val_refs(source, blocks),
        classes=_learned(labels, kind, class_names),
        modality=config.modality,
        intensity=scale,
        gsd=common_gsd([scene]),
        bands=look.channels,
        windows=windows,
    )


def raster_files(config: DataConfig) -> list[Path]:
    """Files of the mosaic, each once, in the order given; those of a folder or a ``*`` by name.

    Raises:
        InputError: there is none.
        ConfigError: nothing says where.
    """
    given = [config.rasters] if isinstance(config.rasters, str) else list(config.rasters)
    others: set[Path] = set()
    if not given:
        if not config.path:
            raise ConfigError(
                "no raster named; add --data PATH (a raster, or a folder of them), or --data.rasters FILES"
            )
        given = [config.path] if Path(config.path).is_file() else [f"*{suffix}" for suffix in RASTER_SUFFIXES]
        named = [name for name in (config.labels, config.labelled_area) if name is not None]
        others = {below(config, name).resolve() for name in (*_USUAL, *named)}
    found: list[Path] = []
    for one in given:
        path = below(config, one)
        found += sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
    files = [path for path in dict.fromkeys(found) if path.resolve() not in others]
    if not files:
        raise InputError(
            f"{config.path or 'data.rasters'}: no raster there ({', '.join(RASTER_SUFFIXES)}); name them with "
            "data.rasters"
        )
    return files


def below(config: DataConfig, name: str) -> Path:
    """A path of the configuration: below ``data.path`` where that is a folder and the file lies there."""
    root = Path(config.path)
    path = Path(name).expanduser()
    if path == root or path.is_absolute() or not config.path or not root.is_dir():
        return path
    inside = root / path
    return inside if inside.exists() or "*" in path.name or not path.exists() else path


def _look(scene: GeoScene, config: DataConfig) -> Look:
    """Channels and scale of the whole raster."""
    bands = config.bands
    if config.band_names is not None:
        if bands is not None:
            raise ConfigError("data.bands and data.band_names both choose bands; give one of them")
        known = [common_name(name) for name in scene.channel_names]
        missing = [name for name in config.band_names if common_name(name) not in known]
        if missing:
            raise InputError(
                f"{scene.path.name} has no band {', '.join(missing)}; it has {', '.join(scene.channel_names)}; set "
                "data.reading.sensor, or name bands by number with data.bands (from 0)"
            )
        bands = tuple(known.index(common_name(name)) for name in config.band_names)
    look = look_at(scene, bands)
    if config.intensity is not None:
        look = fixed_look(look, lower=config.intensity[0], upper=config.intensity[1])
    return in_tone(config.tone, scene, look, window=config.window)


def _labels(scene: GeoScene, config: DataConfig, kind: Kind, class_names: Sequence[str] | None) -> LabelSource:
    """The label file, or the usual one beside the rasters."""
    if config.labels is None:
        path = next((one for name in _USUAL if (one := below(config, name)).is_file()), None)
        if path is None:
            raise InputError(
                "no label file named; add data.labels: .gpkg, .geojson, .fgb, .parquet, COCO .json or .tif"
            )
    else:
        path = below(config, config.labels)
    wanted = config.label_classes or (tuple(class_names) if class_names and kind == "semantic" else None)
    choice = LabelChoice(
        kind=kind,
        class_field=config.class_field,
        classes=wanted,
        layer=config.label_layer,
        point_m=config.point_m,
        boxes_as=config.boxes_as,
        least_visible=config.least_visible,
    )
    return read_labels(path, scene, choice)


def _learned(labels: LabelSource, kind: Kind, class_names: Sequence[str] | None) -> dict[int, str]:
    """Classes of the network: those of the labels, or one, since objects are told apart and not what they are."""
    if kind == "semantic":
        return dict(labels.names)
    only = next(iter(labels.names.values())) if len(labels.names) == 1 else "object"
    return {1: class_names[0] if class_names else only}


@dataclass(frozen=True, eq=False)
class _MaskArea:
    """Where a raster is not 0."""

    scene: GeoScene

    def mask(self, window: Window) -> NDArray[np.bool_]:
        array, valid = self.scene.read_valid(window, [0])
        return np.asarray(valid & (array[0] != 0))

    def touches(self, window: Window) -> bool:
        return bool(self.mask(window).any())


def _areas(scene: GeoScene, config: DataConfig) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Areas that a window has to touch, and what says of each pixel whether its label counts."""
    areas: list[Any] = []
    for name in (config.aoi, config.labelled_area):
        if name is None:
            continue
        path = below(config, name)
        raster = path.suffix.lower() in RASTER_SUFFIXES
        areas.append(_MaskArea(read_mask(path, scene)) if raster else read_area(path, scene.grid))
    return tuple(areas), tuple(area.mask for area in areas)


def _blocks(config: DataConfig, source: RasterSource, areas: tuple[Any, ...], inside: Any) -> Blocks:
    """Which blocks validate."""
    scene = source.scene
    rows, cols = scene.grid.shape
    window = int(config.window or 0)
    usual = max(window, min(BLOCK_WINDOWS * window, max(rows, cols) // 3))
    side = tuple(round(_pixels(scene, config.block_m, "block_m", axis, usual)) for axis in (0, 1))
    buffer = tuple(int(np.ceil(_pixels(scene, config.buffer_m, "buffer_m", axis, window))) for axis in (0, 1))
    if min(buffer) < window:
        step = ground_step(scene.grid) or (1.0, 1.0)
        raise ConfigError(
            f"data.buffer_m is {config.buffer_m} m, which is {min(buffer)} pixels; a window has {window}: give "
            f"{window * max(step):.6g} m at least"
        )
    side = tuple(max(1, min(MOST_SIDE, length)) for length in side)
    shape, block = (rows, cols), (side[0], side[1])
    parts = block_parts(shape, block)
    usable = touches_all(scene, areas, parts)
    if inside is not None:
        val = usable & np.array([inside.touches(window_of(part)) for part in parts.tolist()], dtype=np.bool_)
        if not val.any():
            raise InputError(f"{config.val_area}: no polygon lies where {scene.path.name} was labelled")
    else:
        pixels = (parts[:, 1] - parts[:, 0]) * (parts[:, 3] - parts[:, 2])
        density = source.labels.area(parts) / pixels[:, None]
        val = draw_blocks(density, usable, share=config.val_share, most=config.val_blocks, seed=config.seed)
    grid = -(-rows // block[0]), -(-cols // block[1])
    return Blocks(shape=shape, side=block, buffer=(buffer[0], buffer[1]), val=val.reshape(grid))


def _pixels(scene: GeoScene, metres: float | None, name: str, axis: int, default: int) -> float:
    """Metres as pixels along an axis."""
    if metres is None:
        return default
    step = ground_step(scene.grid)
    if step is None:
        raise ConfigError(f"data.{name} is in metres, and {scene.path.name} has no CRS with a known unit; leave it out")
    return metres / step[axis]


def _windows(config: DataConfig, source: RasterSource, blocks: Blocks, areas: tuple[Any, ...]) -> RasterWindows:
    """Windows that train."""
    scene, window = source.scene, int(config.window or 0)
    found = _lattice(blocks.shape, window, config.overlap)
    found = found[blocks.trains(found)]
    if len(found) > MOST_WINDOWS:
        found = found[np.sort(np.random.default_rng(config.seed).permutation(len(found))[:MOST_WINDOWS])]
    usable = partial(touches_all, scene, areas)
    found = found[usable(found)]
    presence = source.labels.presence(found)
    if not presence.any():
        raise ConfigError(
            f"no window of {window} pixels that keeps {max(blocks.buffer)} pixels away from the {int(blocks.val.sum())}"
            f" of {blocks.val.size} blocks that validate shows a label; choose smaller windows or blocks "
            "(data.window, data.block_m), fewer blocks that validate (data.val_share), or name them (data.val_area)"
        )
    names = tuple(source.labels.names[number] for number in sorted(source.labels.names))
    hidden = source.labels.touching(blocks.val_parts()) if source.kind == "instance" else None
    stride = int(window * (1 - config.overlap)) // 2 if config.jitter else 0
    return RasterWindows(
        source=source,
        windows=found,
        presence=presence,
        blocks=blocks,
        size=config.size,
        hidden=hidden,
        rates=group_rates(presence, names, foreground=config.foreground, rates=config.rates),
        jitter=(stride, stride),
        usable=usable,
    )


def _lattice(shape: tuple[int, int], window: int, overlap: float) -> Windows:
    """The network windows that use has, row by row."""
    spans = []
    for length in shape:
        starts = np.array(window_starts(length, window, overlap), dtype=np.int64)
        spans.append((starts, np.minimum(starts + window, length)))
    top, left = np.meshgrid(spans[0][0], spans[1][0], indexing="ij")
    bottom, right = np.meshgrid(spans[0][1], spans[1][1], indexing="ij")
    return np.stack([top, bottom, left, right], axis=-1).reshape(-1, 4)


def _val_refs(source: RasterSource, blocks: Blocks) -> tuple[CaseRef, ...]:
    """Blocks that validate, those with most labels first, so that ``train.val_cases`` takes blocks with something."""
    parts = blocks.val_parts()
    order = np.argsort(-source.labels.area(parts).sum(axis=1), kind="stable")
    refs = []
    for number in order.tolist():
        top, bottom, left, right = (int(value) for value in parts[number])
        name = f"block-{top // blocks.side[0]}-{left // blocks.side[1]}"
        read = partial(read_block, source, (top, bottom, left, right), name, validates=True)
        refs.append(BlockRef(id=name, read=read))
    return tuple(refs)
