"""Layout "samples": torchgeo data sets, or any other whose samples are like theirs, as cases.

A sample is a mapping of tensors: ``image`` (C, H, W), and of ``mask`` (H, W) classes, ``mask`` (N, H, W) one object
each, or boxes (N, 4) x0, y0, x1, y1; ``label`` or ``labels`` (N,) say what objects are; ``crs`` with ``bounds`` or
``transform`` says where it lies. A data set is either asked by number, or by place: then a sampler says which places.

torchgeo itself needs torchvision and is not a dependency; only this module would import it, by the class path given.

Source:
    torchgeo/torchgeo 0.7 to 0.10: keys of samples in torchgeo/datasets/geo.py and vhr10.py; bounds are slices
    (x, y, t) with the pixel size as their step, or the tensor of these nine numbers.
"""

import importlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from samgraft.domains.remote_sensing.georeference import grid_of, ground_step
from samgraft.errors import ConfigError, InputError, MissingDependencyError
from samgraft.grid import Grid
from samgraft.recipes.config import DataConfig, Kind
from samgraft.recipes.data.cases import CaseArrays, CaseRef, DataIndex, choose_cases, small_labels, to_bytes
from samgraft.recipes.ground import common_step

_BOXES = ("bbox_xyxy", "boxes", "bbox")
_LABELS = ("label", "labels")
_LOOKED_AT = 16
"""Samples from which the scale of the values is measured."""
_PERCENTILES = (2.0, 98.0)
VAL_SHARE = 5
"""One sample in so many, at the end, validates where no data set does."""


def index_samples(config: DataConfig, kind: Kind, class_names: Sequence[str] | None = None) -> DataIndex:
    """Make cases of a data set's samples.

    The scale of the values is fixed: ``data.intensity``, else the full range of bytes where the first samples hold
    nothing else, else percentiles of them.

    Args:
        config: With ``layout: samples`` and ``dataset``.
        kind: "instance" tells objects apart, "semantic" learns classes.
        class_names: Foreground classes, in label order; None takes ``dataset.classes`` without its background, else one
            class for each label of the first samples.

    Raises:
        ConfigError: no data set named, or one that cannot be made.
        InputError: samples without an image or labels, or too few.
        MissingDependencyError: its package is not installed.
    """
    if not config.dataset:
        raise ConfigError(
            "data.dataset is empty; name a data set: {class_path: torchgeo.datasets.VHR10, init_args: {}}"
        )
    dataset = make(config.dataset, "dataset")
    places = places_of(dataset, config)
    if config.val_dataset:
        judged = make(config.val_dataset, "val_dataset")
        train, val = [(dataset, place) for place in places], [(judged, p) for p in places_of(judged, config)]
    else:
        held = max(1, round(len(places) / VAL_SHARE))
        train, val = ([(dataset, p) for p in some] for some in (places[:-held], places[-held:]))
    if not train or not val:
        raise InputError(f"{len(places)} samples; training and validation need one each")
    return _index(config, kind, class_names, train, val)


def _index(
    config: DataConfig,
    kind: Kind,
    class_names: Sequence[str] | None,
    train: Sequence[tuple[Any, Any]],
    val: Sequence[tuple[Any, Any]],
) -> DataIndex:
    """Cases, classes and scale of samples that are named."""
    step = max(1, len(train) // _LOOKED_AT)
    looked = [dataset[place] for dataset, place in train[::step][:_LOOKED_AT]]
    lower, upper = config.intensity or _scale(looked, config.bands)
    names = _names(train[0][0], looked, kind, class_names)
    read = partial(read_sample, kind=kind, bands=config.bands, lower=lower, upper=upper, classes=len(names))
    refs = [
        [CaseRef(id=f"{side}-{n:06d}", read=partial(read, d, p, f"{side}-{n:06d}")) for n, (d, p) in enumerate(some)]
        for side, some in (("train", train), ("val", val))
    ]
    return DataIndex(
        train=choose_cases(refs[0], config.cases, config.seed),
        val=tuple(refs[1]),
        classes=dict(enumerate(names, start=1)),
        modality=config.modality,
        intensity={"kind": "range", "lower": lower, "upper": upper, "note": "fixed for all samples"},
        gsd=_gsd(looked),
    )


def make(what: Mapping[str, Any], name: str, *first: Any) -> Any:
    """Make the object that {class_path, init_args} names.

    Args:
        what: From the configuration.
        name: Of the field, for messages.
        first: Arguments before ``init_args``.

    Raises:
        ConfigError: no class path, an unknown class, or arguments that it refuses.
        MissingDependencyError: its package is not installed.
    """
    path = str(what.get("class_path", ""))
    module, _, attribute = path.rpartition(".")
    unknown = sorted(set(what) - {"class_path", "init_args"})
    if not module or unknown:
        raise ConfigError(
            f"data.{name} is {dict(what)}; expected class_path such as torchgeo.datasets.VHR10, init_args"
        )
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        extra = "pip install 'samgraft[torchgeo]'" if module.startswith("torchgeo") else f"install {module}"
        raise MissingDependencyError(f"data.{name}: {path} cannot be imported ({error}); {extra}") from error
    except AttributeError as error:
        raise ConfigError(f"data.{name}: {module} has no {attribute}; check class_path") from error
    try:
        return kind(*first, **dict(what.get("init_args") or {}))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"data.{name}: {path} cannot be made: {error}; check init_args") from error


def places_of(dataset: Any, config: DataConfig) -> list[Any]:
    """What a data set is asked for: numbers, or the places that ``data.sampler`` gives."""
    if config.sampler:
        return list(make(config.sampler, "sampler", dataset))
    if hasattr(dataset, "bounds"):
        raise ConfigError(
            f"{type(dataset).__name__} is asked by place; name its places: data.sampler {{class_path: "
            "torchgeo.samplers.GridGeoSampler, init_args: {size: 256, stride: 256}}"
        )
    return list(range(len(dataset)))


def read_sample(
    dataset: Any,
    place: Any,
    name: str,
    *,
    kind: Kind,
    bands: Sequence[int] | None,
    lower: float,
    upper: float,
    classes: int,
) -> CaseArrays:
    """One sample as a case.

    Args:
        dataset: Where it comes from.
        place: What the data set is asked for.
        name: Of the case.
        kind: Which labels are wanted.
        bands: One or three channels; None takes the first three, or the first where there are fewer.
        lower: Value that becomes 0.
        upper: Value that becomes 1.
        classes: Foreground classes; larger labels are unknown, as 255 is in many sets.

    Raises:
        InputError: no image, no labels, or such of other shapes.
    """
    sample = dataset[place]
    image = _image(sample, name, bands)
    labels = _labels(sample, name, kind, (image.shape[1], image.shape[2]), classes)
    seen = to_bytes(np.nan_to_num((image - lower) / (upper - lower), nan=0.0))
    return CaseArrays(id=name, image=seen[None], labels=small_labels(labels)[None], grid=_grid(sample, labels.shape))


def _image(sample: Mapping[str, Any], name: str, bands: Sequence[int] | None) -> NDArray[np.float32]:
    """(1 or 3, H, W) float32."""
    given = sample.get("image")
    array = np.asarray(given, dtype=np.float32) if given is not None else np.zeros(0, dtype=np.float32)
    if array.ndim != 3:
        raise InputError(f"sample {name}: image is {array.shape}; expected (C, H, W) under the key 'image'")
    chosen = tuple(bands) if bands is not None else ((0, 1, 2) if len(array) >= 3 else (0,))
    wrong = [band for band in chosen if not 0 <= band < len(array)]
    if wrong or len(chosen) not in (1, 3):
        raise InputError(f"sample {name}: bands {list(chosen)} asked; name one or three of 0..{len(array) - 1}")
    return np.ascontiguousarray(array[list(chosen)])


def _labels(
    sample: Mapping[str, Any], name: str, kind: Kind, shape: tuple[int, int], classes: int
) -> NDArray[np.integer]:
    """(H, W) classes or object numbers, -1 where unknown."""
    mask = sample.get("mask")
    if mask is not None:
        array = np.asarray(mask)
        array = array[0] if array.ndim == 3 and len(array) == 1 and kind == "semantic" else array
        if array.shape[-2:] != shape or array.ndim not in (2, 3):
            raise InputError(f"sample {name}: mask is {array.shape}; the image is {shape}")
        return _of_map(array, kind, classes) if array.ndim == 2 else _of_objects(array > 0, sample, kind)
    boxes = next((np.asarray(sample[key]) for key in _BOXES if key in sample), None)
    if boxes is None:
        raise InputError(
            f"sample {name} has the keys {', '.join(sorted(sample))}; expected mask or {', '.join(_BOXES)}"
        )
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    inside = [
        (rows + 0.5 >= y0) & (rows + 0.5 < y1) & (cols + 0.5 >= x0) & (cols + 0.5 < x1)
        for x0, y0, x1, y1 in boxes.reshape(-1, 4).tolist()
    ]
    return _of_objects(np.stack(inside) if inside else np.zeros((0, *shape), dtype=np.bool_), sample, kind)


def _of_map(array: NDArray[Any], kind: Kind, classes: int) -> NDArray[np.integer]:
    """A map of classes, as it is or as its connected parts."""
    if kind == "semantic":
        return np.where((array < 0) | (array > classes), -1, array).astype(np.int32)
    from scipy import ndimage

    found: NDArray[np.integer] = ndimage.label(array > 0)[0]
    return found


def _of_objects(masks: NDArray[np.bool_], sample: Mapping[str, Any], kind: Kind) -> NDArray[np.integer]:
    """Objects (N, H, W), small ones on top of large ones."""
    values = np.arange(1, len(masks) + 1)
    if kind == "semantic":
        given = next((np.asarray(sample[key]) for key in _LABELS if key in sample), None)
        values = np.ones(len(masks), dtype=np.int64) if given is None else given.astype(np.int64).ravel()
    drawn = np.zeros(masks.shape[1:], dtype=np.int32)
    for number in np.argsort(-masks.sum(axis=(1, 2)), kind="stable").tolist():
        drawn[masks[number]] = values[number]
    return drawn


def _scale(samples: Sequence[Mapping[str, Any]], bands: Sequence[int] | None) -> tuple[float, float]:
    """Values that become 0 and 1."""
    values = np.concatenate([_image(sample, str(n), bands).ravel()[::7] for n, sample in enumerate(samples)])
    values = values[np.isfinite(values)]
    if not len(values):
        raise InputError("the first samples have no finite value; check the data set")
    if values.min() >= 0 and 1.0 < values.max() <= 255:
        return 0.0, 255.0
    low, high = np.percentile(values.astype(np.float64), _PERCENTILES)
    return float(low), float(high) if high > low else float(low) + 1.0


def _names(
    dataset: Any, samples: Sequence[Mapping[str, Any]], kind: Kind, given: Sequence[str] | None
) -> tuple[str, ...]:
    """Names of the foreground classes."""
    if given:
        return tuple(given)
    if kind == "instance":
        return ("object",)
    known = getattr(dataset, "classes", None)
    if isinstance(known, Sequence) and len(known) > 1:
        named = tuple(str(name) for name in known)
        return named[1:] if named[0].lower() in ("background", "unlabeled", "no data", "nodata") else named
    masks = [np.asarray(sample["mask"]) for sample in samples if "mask" in sample]
    top = max([int(mask[mask < 255].max(initial=1)) for mask in masks], default=1)
    return tuple(f"class {value}" for value in range(1, top + 1))


def _transform(sample: Mapping[str, Any]) -> Affine | None:
    """Where a sample lies, from ``transform`` or from ``bounds`` with a pixel size."""
    given = sample.get("transform")
    if given is not None:
        numbers = np.asarray(given, dtype=np.float64).ravel()
        return Affine(*numbers[:6].tolist()) if len(numbers) >= 6 else None
    bounds = sample.get("bounds")
    if isinstance(bounds, tuple) and len(bounds) >= 2 and all(isinstance(part, slice) for part in bounds[:2]):
        x, y = bounds[:2]
        return None if not (x.step and y.step) else Affine(x.step, 0.0, x.start, 0.0, -y.step, y.stop)
    if isinstance(bounds, torch.Tensor | np.ndarray) and np.size(bounds) >= 6:
        x0, _, dx, _, y1, dy = np.asarray(bounds, dtype=np.float64).ravel()[:6].tolist()
        return Affine(dx, 0.0, x0, 0.0, -dy, y1)
    return None


def _grid(sample: Mapping[str, Any], shape: tuple[int, ...]) -> Grid:
    """Grid of a sample; pixels where it does not say where it lies."""
    place, crs = _transform(sample), sample.get("crs")
    if place is None or crs is None or place.determinant == 0:
        return grid_of(Affine.identity(), None, (shape[0], shape[1]))
    text = crs.to_wkt() if hasattr(crs, "to_wkt") else str(crs)
    return grid_of(place, CRS.from_user_input(text), (shape[0], shape[1]))


def _gsd(samples: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Metres per row and column that the samples have in common, within a tenth."""
    return common_step([ground_step(_grid(sample, np.shape(sample["image"])[-2:])) for sample in samples])
