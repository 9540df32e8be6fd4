"""What an adapter's header says, so that ``samgraft segment`` treats a new image as training treated its own.

``meta.extra["input"]`` is :class:`InputRecipe` as a mapping: how a file becomes network inputs.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from samgraft.adapters.bundle import BundleMeta
from samgraft.errors import CheckpointError
from samgraft.recipes.alignment import SOURCE
from samgraft.recipes.data.module import SegmentationData
from samgraft.recipes.tasks import SegmentationTask

_TUPLES = ("bands", "gsd", "band_names")


@dataclass(frozen=True, kw_only=True)
class InputRecipe:
    """From pixels of a file to the squares that the network was trained on (see ``samgraft.recipes.data.fit``)."""

    size: int
    """Side of the network input in pixels."""
    window: int | None = None
    """Native side of overlapping windows, or None for whole slices and pictures."""
    overlap: float = 0.25
    """Overlap of windows as a share of their side."""
    slice_axis: int | None = None
    """Array axis along which a volume is cut; None is the coarsest spacing."""
    neighbours: bool = False
    """Channels are the slices before, at and after."""
    slab: int | None = None
    """Slices of a volume that are predicted together, or None for each by itself."""
    slab_overlap: float = 0.5
    """Overlap of neighbouring slabs as a share of their length."""
    bands: tuple[int, ...] | None = None
    """Raster bands (from 0) shown as red, green, blue."""
    min_area: int = 12
    """instance: smallest object in network pixels."""
    gsd: tuple[float, float] | None = None
    """Metres on the ground from row to row and from column to column of the rasters of training; None if not known."""
    spacing: float | None = None
    """Millimetres per network pixel of the volumes of training (median); None if not known."""
    band_names: tuple[str, ...] | None = None
    """Common names of ``bands`` ("red", "nir", ...) where all rasters of training have them; another sensor's bands are
    found by these."""

    tone: str = "plain"
    """Change of scaled values, one of ``samgraft.recipes.tones.TONES``."""

    @classmethod
    def from_meta(cls, meta: BundleMeta) -> "InputRecipe":
        """Read it back from a header.

        Raises:
            CheckpointError: absent, or with a field that this version does not know.
        """
        values = meta.extra.get("input")
        if not isinstance(values, Mapping):
            raise CheckpointError(
                "the adapter's header does not say how images become network inputs; train it with samgraft fit"
            )
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise CheckpointError(f"the adapter's input recipe has unknown fields {unknown}; update samgraft")
        pairs = {name: tuple(given) for name in _TUPLES if (given := values.get(name)) is not None}
        return cls(**{**values, **pairs})


def bundle_meta(
    task: SegmentationTask,
    data: SegmentationData | None,
    *,
    metrics: Mapping[str, float],
    step: int,
    seconds: float,
) -> BundleMeta:
    """Header of the adapter that ``task`` has become."""
    config = task.config
    index = data.index if data is not None else None
    recipe = InputRecipe(
        size=task.size,
        window=config.data.window,
        overlap=config.data.overlap,
        slice_axis=config.data.slice_axis,
        neighbours=config.data.neighbours,
        slab=config.data.slab,
        slab_overlap=config.data.slab_overlap,
        bands=config.data.bands if index is None or index.bands is None else index.bands,
        min_area=config.task.min_area,
        gsd=index.gsd if index is not None else None,
        spacing=data.seen.network_spacing(task.size) if data is not None else None,
        band_names=index.band_names if index is not None else None,
        tone=config.data.tone,
    )
    source = data.seen.statistics() if data is not None else None
    training = {
        "step": step,
        "seconds": round(seconds, 1),
        "seed": config.train.seed,
        "date": time.strftime("%Y-%m-%d"),
        **({k: v for k, v in data.describe().items() if v == v} if data is not None else {}),
    }
    return BundleMeta(
        classes=dict(enumerate(task.class_names, start=1)),
        task=config.task.kind,
        modality=(index.modality if index is not None else config.data.modality) or "",
        intensity=dict(index.intensity) if index is not None and index.intensity is not None else None,
        input_size=(task.size, task.size),
        training=training,
        metrics={k: round(v, 5) for k, v in metrics.items() if v == v},
        extra={"input": asdict(recipe)} | ({} if source is None else {SOURCE: source.to_json()}),
    )
