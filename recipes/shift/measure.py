"""Measure the shift between two sets: statistics of what is seen, and distances of frozen features.

SOURCE (images, or an adapter that remembers them) + TARGET (images) -> views -> statistics, features -> Measured
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from samgraft.adapters.backbones import load_backbone
from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.bundle import BundleMeta, read_header, read_meta
from samgraft.domains.shift.compare import Comparison, compare_statistics
from samgraft.errors import ConfigError
from samgraft.recipes.shift import distances
from samgraft.recipes.shift.distances import FEWEST, Labelled
from samgraft.recipes.shift.features import Encoder, Moments
from samgraft.recipes.shift.probe import Probe, linear_probe
from samgraft.recipes.shift.seen import SetSummary, Track, labelled, remembered_set, see_set, viewer_of
from samgraft.recipes.shift.sets import ImageSet, find_set
from samgraft.recipes.shift.trials import Aligner, Trial, try_alignments
from samgraft.recipes.shift.views import set_views

FRECHET_RELABELLINGS = 100
"""Relabellings behind the Frechet distance that chance gives; each one costs two eigenvalue problems."""


@dataclass(frozen=True, kw_only=True)
class ShiftOptions:
    """How the shift is measured."""

    views: int = 128
    """Views of each set, about."""
    size: int | None = None
    """Side of the network input for features; None takes the adapter's, else the backbone's (at most 512)."""
    group: str | None = None
    """Regular expression that finds the patient or scene in a file's name; see ``sets.find_set``."""
    features: bool = True
    """Encode views with the frozen backbone; False measures pixels only."""
    permutations: int = 999
    """Relabellings behind the p-value of MMD."""
    seed: int = 0
    """Of relabellings and folds."""

    def __post_init__(self) -> None:
        """Check numbers."""
        if self.views < FEWEST or self.permutations < 1:
            raise ConfigError(
                f"views is {self.views}, permutations {self.permutations}; expected at least {FEWEST} and 1"
            )


@dataclass(frozen=True, kw_only=True)
class FeatureShift:
    """How far apart the frozen features of two sets are."""

    backbone: str
    """Its name."""
    size: int
    """Side of the network input."""
    standardised: float
    """Root mean square shift of a feature's mean, in standard deviations."""
    standardised_chance: float
    """What as many images of one domain would give on average."""
    frechet: float
    """Frechet distance in squared units of the features; of independent features where only moments are known."""
    frechet_chance: float | None = None
    """Mean of the same under relabelling; None where only moments are known, as all that follows."""
    mmd: float | None = None
    """Squared maximum mean discrepancy of scaled features."""
    mmd_p: float | None = None
    """Its p-value."""
    smallest_p: float | None = None
    """The smallest p-value that so few patients or scenes allow."""
    unit: str | None = None
    """What was exchanged for it: "groups" or "views"."""
    probe: Probe | None = None
    """How well a linear probe tells the sets apart."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """All figures; the advice, the figure and the report are made of them."""

    source: SetSummary
    target: SetSummary
    comparison: Comparison
    """Of what the network sees."""
    features: FeatureShift | None = None
    """None where features were not asked for, or the source has none."""
    adapter: str | None = None
    """Name of the adapter that decided how both sets are seen."""
    trials: tuple[Trial, ...] = ()
    """Alignments of the input that were tried, the nearest first."""
    notes: tuple[str, ...] = ()
    """Remarks about the measurement."""
    data: Labelled | None = field(default=None, repr=False)
    """Features of both sets with labels and groups."""

    @property
    def zoom(self) -> float | None:
        """Ground or body per pixel of the network input, target over source; None where one is unknown."""
        one, two = self.source.network_pixel, self.target.network_pixel
        return None if one is None or two is None else two / one

    @property
    def file_ratio(self) -> tuple[float, float] | None:
        """Pixel size (row, column) of the target's files over that of the source's; None where one is unknown."""
        one, two = self.source.file_spacing, self.target.file_spacing
        return None if one is None or two is None else (two[0] / one[0], two[1] / one[1])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "source": self.source.to_json(),
            "target": self.target.to_json(),
            "adapter": self.adapter,
            "comparison": self.comparison.to_json(),
            "file_spacing_ratio": self.file_ratio,
            "network_pixel_ratio": self.zoom,
            "features": None if self.features is None else asdict(self.features),
            "trials": [one.to_json() for one in self.trials],
            "notes": list(self.notes),
        }


def measure_shift(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    adapter: str | PathLike[str] | None = None,
    backbone: str | PathLike[str] | Backbone | None = None,
    aligners: Mapping[str, Aligner] | None = None,
    options: ShiftOptions | None = None,
    track: Track | None = None,
) -> Measured:
    """Measure how ``target`` differs from ``source``; no label is opened.

    Args:
        source: Images (see ``sets.find_set``), or an adapter file (``.graft``) that remembers its training images.
        target: Images.
        adapter: Both sets are seen as this adapter sees images; its backbone gives the features. An adapter as source
            is its own.
        backbone: Name, folder, file or backbone without grafts; None takes the adapter's, else graft-tiny.
        aligners: Alignments of the input that are tried on the target's views, by name.
        options: How.
        track: Shows progress.

    Raises:
        InputError: a set that cannot be found or seen.
        CheckpointError: an adapter that is damaged, or remembers no training images although it is the source.
        ConfigError: two different adapters.
    """
    chosen = options or ShiftOptions()
    header = _header(source, adapter)
    meta = None if header is None else read_meta(header)
    images = find_set(target, group=chosen.group)
    network = _network(header, backbone) if chosen.features else None
    encoders = [_encoder(network, meta, chosen) for _ in range(2)]
    if meta is not None and _is_adapter(source):
        one = remembered_set(Path(source).name, meta, encoders[0])
    else:
        one = see_set(find_set(source, group=chosen.group), meta, encoders[0], chosen.views, track)
    two = see_set(images, meta, encoders[1], chosen.views, track)
    rows = labelled(one, two)
    trials, missed = _trials(images, meta, (one, two), encoders[1], aligners or {}, chosen, track)
    return Measured(
        source=one,
        target=two,
        comparison=compare_statistics(one.statistics, two.statistics),
        features=None if encoders[1] is None else _feature_shift(one, two, rows, encoders[1], chosen),
        adapter=None if header is None else header.name,
        trials=trials,
        notes=(*_remarks(one, two, rows), *missed),
        data=rows,
    )


def _is_adapter(source: str | PathLike[str]) -> bool:
    return Path(source).suffix == ".graft"


def _header(source: str | PathLike[str], adapter: str | PathLike[str] | None) -> Path | None:
    """The adapter that decides how images are seen."""
    if not _is_adapter(source):
        return None if adapter is None else Path(adapter)
    if adapter is not None and Path(adapter).resolve() != Path(source).resolve():
        raise ConfigError(f"source is the adapter {source}; leave --adapter {adapter} out, or give source images")
    return Path(source)


def _trials(
    images: ImageSet,
    meta: BundleMeta | None,
    sets: tuple[SetSummary, SetSummary],
    encoder: Encoder | None,
    aligners: Mapping[str, Aligner],
    chosen: ShiftOptions,
    track: Track | None,
) -> tuple[tuple[Trial, ...], tuple[str, ...]]:
    """Read the target's views once more, and try alignments on them."""
    if encoder is None or not aligners:
        return (), ()
    views = set_views(images, viewer_of(images, meta), chosen.views)
    shown = views if track is None else track(views, f"{images.title}, aligned", chosen.views)
    return try_alignments(shown, *sets, encoder, aligners, seed=chosen.seed)


def _network(header: Path | None, backbone: str | PathLike[str] | Backbone | None) -> Backbone:
    if isinstance(backbone, Backbone):
        return backbone
    return load_backbone(backbone or ("graft-tiny" if header is None else read_header(header)["backbone"]["name"]))


def _encoder(network: Backbone | None, meta: BundleMeta | None, chosen: ShiftOptions) -> Encoder | None:
    if network is None:
        return None
    own = None if meta is None or meta.input_size is None else max(meta.input_size)
    return Encoder(network, chosen.size or own)


def _feature_shift(
    source: SetSummary, target: SetSummary, rows: Labelled | None, encoder: Encoder, chosen: ShiftOptions
) -> FeatureShift | None:
    """Distances of rows, or of moments where the source is an adapter's memory."""
    one, two = source.moments, target.moments
    if one is None or two is None:
        return None
    means, variances = (one.mean, two.mean), (one.variance, two.variance)
    name = encoder.backbone.spec.name
    shift = distances.standardised_shift(means, variances)
    if rows is None:
        return FeatureShift(
            backbone=name,
            size=encoder.size,
            standardised=shift,
            standardised_chance=_chance(one, two, len(set(target.groups))),
            frechet=distances.diagonal_frechet(means, variances),
        )
    dealt = distances.relabel(rows, chosen.permutations, chosen.seed)
    values, _ = distances.kernel(rows.scaled)
    observed = float(distances.mmd(values, rows.target[None])[0])
    fewer = dealt.target[:FRECHET_RELABELLINGS]
    chance = [distances.frechet(rows.features[~label], rows.features[label]) for label in fewer]
    shifts = [_shift_of(rows.features[~label], rows.features[label]) for label in fewer]
    return FeatureShift(
        backbone=name,
        size=encoder.size,
        standardised=shift,
        standardised_chance=float(np.mean(shifts)),
        frechet=distances.frechet(*rows.sides()),
        frechet_chance=float(np.mean(chance)),
        mmd=observed,
        mmd_p=distances.p_value(observed, distances.mmd(values, dealt.target)),
        smallest_p=dealt.smallest_p,
        unit=dealt.unit,
        probe=linear_probe(rows, seed=chosen.seed),
    )


def _shift_of(first: distances.Floats, second: distances.Floats) -> float:
    one, two = Moments.of_rows(first), Moments.of_rows(second)
    return distances.standardised_shift((one.mean, two.mean), (one.variance, two.variance))


def _chance(source: Moments, target: Moments, groups: int) -> float:
    """Expected shift of means of independent images of one domain, in standard deviations."""
    return float(np.sqrt(1 / max(source.count, 1) + 1 / max(min(groups, target.count), 1)))


def _remarks(source: SetSummary, target: SetSummary, rows: Labelled | None) -> list[str]:
    found = []
    if source.remembered:
        found.append("the source is an adapter's memory: MMD and the linear probe need its images")
        if source.moments is None and target.moments is not None:
            found.append("the adapter does not remember the features of its training images: pixels only")
    elif rows is None and source.features is not None:
        found.append(f"fewer than {FEWEST} views in one set: no distance of features")
    few = [one.title for one in (source, target) if one.groups and len(set(one.groups)) < 2]
    if few:
        found.append(
            f"{' and '.join(few)}: a single patient or scene, so the probe and the p-value say that these images "
            "differ, not that the domains do"
        )
    return found
