"""From a folder on disk to training and validation cases, for all layouts; pixels are read when a case is loaded.

How intensities become [0, 1] is decided by ``samgraft.recipes.look.look_at``, the very function that
``samgraft segment`` uses.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.datasets.image_mask import read_image_mask
from samgraft.domains.datasets.index import Case, DatasetIndex, Split
from samgraft.domains.datasets.nnunet import read_nnunet
from samgraft.domains.datasets.raster_vector import read_raster_vector, split_by_number
from samgraft.domains.medical.intensity import (
    PERCENTILES,
    IntensityRule,
    ct_window,
    fit_intensity,
    modality_of_channel,
)
from samgraft.domains.scene import Scene
from samgraft.errors import ConfigError, InputError
from samgraft.recipes.alignment import in_tone
from samgraft.recipes.band_names import common_bands
from samgraft.recipes.config import DataConfig, Kind
from samgraft.recipes.data.cases import CaseArrays, CaseRef, DataIndex, choose_cases, small_labels, to_bytes
from samgraft.recipes.data.rasters import index_rasters
from samgraft.recipes.data.samples import index_samples
from samgraft.recipes.ground import common_gsd
from samgraft.recipes.look import Look, fixed_look, look_at, stretch_recipe
from samgraft.recipes.prompting import coarsest_axis
from samgraft.recipes.weak_labels.partial import read_annotated, require_annotated
from samgraft.recipes.weak_labels.reading import Wanted, read_weak, with_weak_files

VALIDATION_SHARE = 0.2
"""Share of cases that validate where the data set has no split of its own."""


def index_data(config: DataConfig, kind: Kind, class_names: Sequence[str] | None = None) -> DataIndex:
    """Find the cases of a data set.

    Args:
        config: Layout, place and options.
        kind: "instance" wants object numbers, "semantic" class numbers.
        class_names: Names of the foreground classes, where the data set does not know them.

    Raises:
        InputError: the folder is not in that layout.
        ConfigError: options that contradict each other.
    """
    if config.layout == "mosaic":
        return index_rasters(config, kind, class_names)
    if config.layout == "samples":
        return index_samples(config, kind, class_names)
    if not config.path:
        raise ConfigError("data.path is empty; name the folder of the data set (--data PATH)")
    data = _READERS[config.layout](config, kind, class_names)
    if not _masks(config):
        data = with_weak_files(data, config, class_names)
    if kind == "semantic" and not data.classes:
        data = data.scan_classes()
    if kind == "semantic" and not data.classes:
        raise InputError(f"{config.path}: no label has a value above 0, so there is nothing to learn")
    split = _split(data, config)
    values = sorted(data.classes) if kind == "semantic" else [1]
    modality = config.modality or modality_of_channel(next(iter(data.channel_names), ""))
    names = {i: str(data.classes.get(v, "object")) for i, v in enumerate(values, start=1)}
    labelled = [c for c in data if c.label is not None]
    known = read_annotated(config, kind, names, [c.id for c in labelled]) if config.partial else {}
    task = CaseTask(kind=kind, values=tuple(values), names=tuple(names.values()), modality=modality)
    refs = {
        c.id: CaseRef(id=c.id, read=partial(read_case, c, config=config, task=task, annotated=known.get(c.id)))
        for c in labelled
    }
    train = choose_cases([refs[i] for i in split.train if i in refs], config.cases, config.seed)
    val = tuple(refs[i] for i in sorted(split.val) if i in refs)
    rasters = config.layout == "raster_vector"
    measured = stretch_recipe() if rasters and config.intensity is None else None
    scenes = [c.load_image() for c in data if c.id in split.train] if rasters else []
    return DataIndex(
        train=train,
        val=val,
        classes=names,
        values=task.values,
        modality=modality,
        intensity=measured or _recorded_scale(config, modality),
        gsd=common_gsd(scenes),
        band_names=common_bands(scenes, config.bands),
    )


@dataclass(frozen=True, kw_only=True)
class CaseTask:
    """What the cases of a data set have in common."""

    kind: Kind
    """Which labels are wanted."""
    values: tuple[int, ...]
    """File values of the classes, in order; they become 1, 2, ..."""
    names: tuple[str, ...] = ()
    """Names of the classes, in the same order."""
    modality: str | None = None
    """"CT", "MR", ... or None."""


def _masks(config: DataConfig) -> bool:
    """Whether labels are masks; if not, no mask is looked at."""
    return config.supervision == "masks"


def _nnunet(config: DataConfig, kind: Kind, class_names: Sequence[str] | None) -> DatasetIndex:
    del class_names
    if kind == "instance":
        raise ConfigError(
            "task.kind 'instance' works on pictures and rasters; volumes in nnU-Net layout take 'semantic'"
        )
    return read_nnunet(config.path, labels=_masks(config))


def _image_mask(config: DataConfig, kind: Kind, class_names: Sequence[str] | None) -> DatasetIndex:
    named = dict(enumerate(class_names, start=1)) if class_names and kind == "semantic" else None
    return read_image_mask(config.path, label_folder=config.labels, classes=named, masks=_masks(config))


def _raster_vector(config: DataConfig, kind: Kind, class_names: Sequence[str] | None) -> DatasetIndex:
    root = Path(config.path)
    rasters = _folder(root, config.images, ("images", "rasters", "oam"))
    vectors = _folder(root, config.labels, ("labels", "vectors", "osm", "geojson")) if _masks(config) else None
    if vectors is None and config.class_field is not None and not class_names:
        raise ConfigError("data.class_field is set and no mask is read; name the classes with task.class_names")
    split: Path | Callable[[str], str | None] | None = None
    if config.split_pattern is not None:
        if config.split_last_train is None:
            raise ConfigError("data.split_pattern needs data.split_last_train: the largest number that still trains")
        split = split_by_number(config.split_pattern, config.split_last_train)
    elif (root / "splits.json").is_file():
        split = root / "splits.json"
    return read_raster_vector(
        rasters,
        vectors,
        kind=kind,
        split=split,
        class_field=config.class_field,
        classes=class_names if config.class_field else None,
    )


_READERS: Mapping[str, Callable[[DataConfig, Kind, Sequence[str] | None], DatasetIndex]] = {
    "nnunet": _nnunet,
    "image_mask": _image_mask,
    "raster_vector": _raster_vector,
}


def _folder(root: Path, named: str | None, usual: Sequence[str]) -> Path:
    if named is not None:
        return root / named
    found = next((root / name for name in usual if (root / name).exists()), None)
    if found is None:
        raise InputError(f"{root} has none of {', '.join(usual)}; name the folder with data.images or data.labels")
    return found


def _split(data: DatasetIndex, config: DataConfig) -> Split:
    """The data set's own fold, or one fifth of the groups: the east of rasters, else the last in order of name."""
    if data.splits:
        if not 0 <= config.fold < len(data.splits):
            raise ConfigError(f"data.fold is {config.fold}; the data set has folds 0 to {len(data.splits) - 1}")
        return data.splits[config.fold]
    labelled = [c for c in data if c.label is not None]
    place: dict[str, Any] = {}
    for case in labelled:
        east = float(case.load_image().grid.corners().mean(axis=0)[0]) if config.layout == "raster_vector" else 0.0
        place[case.group] = max(place.get(case.group, (east, case.group)), (east, case.group))
    groups = sorted(place, key=lambda g: place[g])
    if len(groups) < 2:
        raise InputError(
            f"{config.path} has {len(groups)} labelled cases or patients; training and validation need one each"
        )
    chosen = set(groups[-max(1, round(VALIDATION_SHARE * len(groups))) :])
    return Split(
        train=tuple(c.id for c in labelled if c.group not in chosen),
        val=tuple(c.id for c in labelled if c.group in chosen),
    )


def _recorded_scale(config: DataConfig, modality: str | None) -> Mapping[str, Any] | None:
    """Scale for the adapter's header where it is fixed; None means: chosen per image, as ``look_at`` does."""
    if config.intensity is not None:
        return {"kind": "range", "lower": config.intensity[0], "upper": config.intensity[1], "note": "data.intensity"}
    rule = intensity_rule(config, modality)
    if rule is not None:
        return rule.to_dict()
    return ct_window("soft").to_dict() if modality == "CT" else None


def intensity_rule(config: DataConfig, modality: str | None) -> IntensityRule | None:
    """How a scale is measured on every volume, or None where it is fixed or left to the file."""
    kind = config.normalise
    if kind is None:
        return IntensityRule() if modality == "MR" and config.intensity is None else None
    low, high = config.normalise_range or (PERCENTILES if kind == "percentile" else (-3.0, 3.0))
    return IntensityRule(kind=kind, low=low, high=high)


def choose_look(scene: Scene, config: DataConfig, modality: str | None) -> Look:
    """Channels, scale and tone of a scene: ``look_at``, with a fixed window or a known modality where there is one."""
    look = _scaled_look(scene, config, modality)
    return in_tone(config.tone, scene, look, axis=config.slice_axis, window=config.window)


def _scaled_look(scene: Scene, config: DataConfig, modality: str | None) -> Look:
    look = look_at(scene, config.bands)
    if config.intensity is not None:
        return fixed_look(look, lower=config.intensity[0], upper=config.intensity[1])
    rule = intensity_rule(config, modality)
    if (modality is not None or rule is not None) and scene.kind == "volume":
        scale = fit_intensity(scene, modality, rule=rule)
        return fixed_look(look, lower=scale.lower, upper=scale.upper)
    return look


def read_case(case: Case, *, config: DataConfig, task: CaseTask, annotated: frozenset[int] | None = None) -> CaseArrays:
    """Read a case as slices.

    Args:
        case: Entry of a data set index.
        config: How to cut and scale, and what the labels are.
        task: Which labels are wanted.
        annotated: Classes that were annotated in it; None for all.

    Raises:
        InputError: a damaged file, or labels that do not fit.
        GeometryError: image and label lie on different grids.
    """
    scene = case.load_image()
    look = choose_look(scene, config, task.modality)
    labels: NDArray[np.integer] = np.zeros(scene.grid.shape, np.int8)
    if _masks(config):
        labels = _wanted_labels(case, task.kind, task.values)
        require_annotated(case.id, labels, annotated, task.names)
    raw = scene.read(None, look.channels)
    axis = None
    if scene.grid.ndim == 3:
        axis = coarsest_axis(scene.grid) if config.slice_axis is None else config.slice_axis
        raw, labels = np.moveaxis(raw, axis + 1, 1), np.moveaxis(labels, axis, 0)
    else:
        raw, labels = raw[:, None], labels[None]
    image = np.stack([_bytes(look, raw[:, i]) for i in range(raw.shape[1])])  # (n, C, h, w)
    known: NDArray[np.bool_] | None = None
    if scene.kind == "raster":
        known = scene.valid()[None]
        image *= known[:, None].astype(np.uint8)
    wanted = Wanted(
        kind=task.kind,
        supervision=config.supervision,
        names=task.names,
        values=task.values,
        background=config.scribble_background,
        class_field=config.class_field,
    )
    return CaseArrays(
        id=case.id,
        group=case.group,
        image=image,
        labels=small_labels(np.ascontiguousarray(labels), known),
        grid=scene.grid,
        axis=axis,
        neighbours=config.neighbours,
        weak=None if _masks(config) else read_weak(case, scene, axis, wanted),
        annotated=annotated,
    )


def _bytes(look: Look, raw: NDArray[Any]) -> NDArray[np.uint8]:
    """One slice (C, h, w) of raw values to bytes; one channel stays one."""
    seen = look.apply(raw)
    return to_bytes(seen[:1] if len(look.channels) == 1 else seen)


def _wanted_labels(case: Case, kind: Kind, values: tuple[int, ...]) -> NDArray[np.integer]:
    labels = case.load_label().astype(np.int32)
    if kind == "instance":
        return _components(labels) if case.kind == "semantic" else labels
    if case.kind == "instance":
        return (labels > 0).astype(np.int32)
    if values == tuple(range(1, len(values) + 1)):
        return labels
    table = np.zeros(max(int(labels.max(initial=0)), *values) + 1, dtype=np.int32)
    table[list(values)] = np.arange(1, len(values) + 1)
    mapped: NDArray[np.integer] = table[labels]
    return mapped


def _components(labels: NDArray[np.int32]) -> NDArray[np.integer]:
    """Objects of a mask: connected foreground."""
    from scipy import ndimage

    found: NDArray[np.integer] = ndimage.label(labels > 0)[0]
    return found
