"""One set, as the network sees it: statistics of its views, their frozen features, and a few of them to look at."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.adapters.bundle import BundleMeta
from samgraft.domains.shift.statistics import ImageStatistics, StatisticsSums, median_pair
from samgraft.errors import CheckpointError
from samgraft.recipes.alignment import evenly
from samgraft.recipes.shift.distances import FEWEST, Labelled
from samgraft.recipes.shift.features import Encoder, Moments
from samgraft.recipes.shift.sets import ImageSet
from samgraft.recipes.shift.views import View, Viewer, recorded_input, set_views

KEY = "source"
"""Of ``BundleMeta.extra``: :class:`ImageStatistics` of the training images."""
EXAMPLES = 6
"""Views of each set that are kept for the figure."""

Pair = tuple[float, float]
Track = Callable[[Iterable[View], str, int], Iterable[View]]
"""Views, the set's title, and about how many there are -> the same views; shows how far it is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SetSummary:
    """One set, as it was seen."""

    title: str
    """Name of the folder, list or adapter."""
    statistics: ImageStatistics
    """Of the views; their spacing is that of what the network sees."""
    file_spacing: Pair | None = None
    """Median pixel size (row, column) in the files."""
    files: int = 0
    """Images that were found; 0 for an adapter's memory."""
    groups: tuple[str, ...] = ()
    """Patient or scene of each view."""
    modality: str | None = None
    """"CT" or "MR" where it is known."""
    grouped_by: str = ""
    """Where groups come from, in words."""
    features: NDArray[np.float64] | None = None
    """(n, C) of the views."""
    moments: Moments | None = None
    """Mean and variance of the features."""
    network_pixel: float | None = None
    """Millimetres or metres per pixel of the network input; None where a size is unknown."""
    raster: bool = False
    """Whether sizes are metres on the ground; else millimetres."""
    examples: tuple[View, ...] = ()
    """Views for the figure."""
    notes: tuple[str, ...] = ()
    """Remarks."""

    @property
    def remembered(self) -> bool:
        """Whether this is an adapter's memory, without images."""
        return self.files == 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, without features and pictures."""
        seen = self.statistics
        return {
            "title": self.title,
            "files": self.files,
            "views": seen.count,
            "groups": len(set(self.groups)),
            "grouped_by": self.grouped_by,
            "modality": self.modality,
            "file_spacing": self.file_spacing,
            "seen_spacing": seen.spacing,
            "seen_shape": seen.shape,
            "network_pixel": self.network_pixel,
            "mean": seen.mean.tolist(),
            "std": seen.std.tolist(),
            "lab_mean": seen.lab_mean.tolist(),
            "gray": seen.gray,
            "stained": seen.stain is not None,
            "notes": list(self.notes),
        }


def see_set(
    images: ImageSet, meta: BundleMeta | None, encoder: Encoder | None, limit: int, track: Track | None = None
) -> SetSummary:
    """Read the views of a set once, and measure them on the way.

    Args:
        images: The set.
        meta: Header of the adapter that decides how images are seen, or None.
        encoder: Empty; gives the features, or None for none.
        limit: About how many views.
        track: Shows progress.

    Raises:
        InputError: no image can be seen.
    """
    viewer = viewer_of(images, meta)
    sums, groups = StatisticsSums(), []
    spacings: list[Pair] = []
    kept: list[View] = []
    views = set_views(images, viewer, limit)
    for view in views if track is None else track(views, images.title, limit):
        sums.add(view.image, view.spacing)
        groups.append(view.group)
        if view.file_spacing is not None:
            spacings.append(view.file_spacing)
        if encoder is not None:
            encoder.add(view.image)
        kept.append(view)
        if len(kept) > 4 * EXAMPLES:
            kept = kept[::2]
    rows = None if encoder is None else encoder.rows()
    statistics = sums.result()
    return SetSummary(
        title=images.title,
        statistics=statistics,
        file_spacing=median_pair(spacings),
        files=len(images.members),
        groups=tuple(groups),
        grouped_by=images.grouped_by,
        modality=images.modality,
        features=rows,
        moments=None if rows is None else Moments.of_rows(rows),
        network_pixel=network_pixel(statistics, None if encoder is None else encoder.size),
        raster=kept[-1].raster,
        examples=tuple(kept[i] for i in evenly(len(kept), EXAMPLES)),
        notes=tuple(viewer.notes),
    )


def viewer_of(images: ImageSet, meta: BundleMeta | None) -> Viewer:
    """How the images of a set are seen: as the adapter of ``meta`` sees them, or each by its own scale."""
    return Viewer(recorded=None if meta is None else recorded_input(meta), modality=images.modality)


def remembered_set(title: str, meta: BundleMeta, encoder: Encoder | None) -> SetSummary:
    """The source as its adapter remembers it; there is no image.

    Args:
        title: Name of the adapter.
        meta: Its header.
        encoder: Its backbone, if features are wanted.

    Raises:
        CheckpointError: it remembers nothing, or what this version cannot read.
    """
    stored = meta.extra.get(KEY)
    if stored is None:
        raise CheckpointError(
            f"{title} does not remember its training images (an older samgraft wrote it); give the images as SOURCE "
            f"and the adapter as --adapter, or train it again"
        )
    statistics = ImageStatistics.from_json(stored)
    moments = None if encoder is None else Moments.from_meta(meta, encoder.backbone.weights_hash())
    return SetSummary(
        title=title,
        statistics=statistics,
        file_spacing=statistics.spacing,
        modality=meta.modality.upper() or None,
        moments=moments,
        network_pixel=network_pixel(statistics, None if encoder is None else encoder.size),
    )


def network_pixel(seen: ImageStatistics, size: int | None) -> float | None:
    """Millimetres or metres per pixel of a square network input that the median view is fitted into."""
    if seen.spacing is None or seen.shape is None or size is None:
        return None
    return max(seen.spacing[0] * seen.shape[0], seen.spacing[1] * seen.shape[1]) / size


def labelled(source: SetSummary, target: SetSummary) -> Labelled | None:
    """Features of both sets; groups of one name are the same patient. None where one has none, or too few."""
    if source.features is None or target.features is None:
        return None
    if min(len(source.features), len(target.features)) < FEWEST:
        return None
    names = [*source.groups, *target.groups]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return Labelled(
        features=np.concatenate([source.features, target.features]),
        target=np.repeat([False, True], [len(source.features), len(target.features)]),
        groups=np.array([numbers[name] for name in names], dtype=np.int64),
    )
