"""Which lever is worth trying against a shift: rules with stated limits, and the figures behind each answer.

The limits are rules of thumb. Those of the features were set between the halves of one set and sets of another scanner
or stain (docs/shift.md has the figures); none of them promises a gain in Dice.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from samgraft.recipes.shift.measure import FeatureShift, Measured

Worth = Literal["try", "perhaps", "no"]

SIZE = 1.2
"""Objects up to so many times larger or smaller are covered by augmentation in training (``augment.scale``)."""
VALUES = 0.05
"""Mean distance of histograms, in units of [0, 1] (13 gray levels), from which on values are aligned."""
COLOUR = 5.0
"""Distance in CIELAB, of a and b or of lightness, from which on colours are aligned."""
STAIN_ANGLE, STAIN_STRENGTH = 8.0, 1.3
"""Degrees between stains, and ratio of their strengths, from which on stains are aligned."""
SHARPNESS = 3.0
"""dB between fine and coarse structure from which on blur or noise counts."""
SKEWED = 0.4
"""Skewness of gray values from which on an image counts as bright on dark, or dark on bright."""
TOLD_APART = 0.65
"""Area under the curve of the linear probe up to which the sets look alike."""
SIGNIFICANT = 0.05
NEARER = 0.2
"""Share of the features' shift that an alignment has to take away in a trial to be worth trying."""
HOW_TO_ALIGN = "samgraft segment ... --align {0}; compare a few masks with --align none"
FAR = 1.0
"""Shift of the features in standard deviations, beyond chance, from which on pseudo-labels are mostly wrong."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One lever."""

    lever: str
    """"nothing", "resample", the name of an alignment, "augment", "no labels" or "weak labels"."""
    worth: Worth
    why: str
    """The figures, and the limit that they are compared with."""
    how: str
    """What to do."""


def advise(found: Measured) -> tuple[Advice, ...]:
    """Every lever that says something about this shift; those worth trying first."""
    same = looks_alike(found.features)
    values = [_tried(one, found) for one in (*_values(found), *_other_trial(found))]
    if same:  # what the backbone does not see need not be aligned
        values = [replace(one, worth="perhaps" if one.worth == "try" else one.worth) for one in values]
    listed = [*_nothing(found, same), *_resample(found), *values, *_augment(found), *_labels(found, same)]
    order: tuple[Worth, ...] = ("try", "perhaps", "no")
    return tuple(sorted(listed, key=lambda one: order.index(one.worth)))


def looks_alike(features: FeatureShift | None) -> bool | None:
    """Whether the frozen backbone sees one domain; None where features were not compared."""
    if features is None:
        return None
    if features.probe is None or features.mmd_p is None or features.smallest_p is None:
        return features.standardised <= 1.5 * features.standardised_chance
    significant = features.mmd_p <= SIGNIFICANT or features.smallest_p > SIGNIFICANT
    return not (features.probe.auc > TOLD_APART and significant)


def beyond_chance(features: FeatureShift) -> float:
    """Shift of the features in standard deviations, without what chance gives."""
    return float(np.sqrt(max(features.standardised**2 - features.standardised_chance**2, 0.0)))


def inverted(found: Measured) -> bool:
    """Whether one set is bright on dark and the other dark on bright."""
    one, two = found.comparison.skewness
    return one * two < 0 and min(abs(one), abs(two)) > SKEWED


def _tried(one: Advice, found: Measured) -> Advice:
    """An alignment as its trial judges it; all else as it is."""
    trial = next((t for t in found.trials if t.name == one.lever), None)
    if trial is None or found.features is None:
        return one
    before = beyond_chance(found.features)
    left = float(np.sqrt(max(trial.standardised**2 - found.features.standardised_chance**2, 0.0)))
    gain = 1 - left / before if before > 0 else 0.0
    why = f"tried: the features' shift beyond chance goes from {before:.2f} to {left:.2f} standard deviations"
    worth: Worth = one.worth
    if gain < 0:
        worth = "no"
    elif gain < NEARER and worth == "try":
        worth = "perhaps"
    return replace(one, worth=worth, why=f"{one.why}; {why}" if one.why else why)


def _other_trial(found: Measured) -> Iterator[Advice]:
    """The alignment that came nearest, where the rules name another one."""
    named = {one.lever for one in _values(found)}
    if found.trials and found.trials[0].name not in named:
        name = found.trials[0].name
        yield Advice(lever=name, worth="try", why="", how=HOW_TO_ALIGN.format(name))


def _nothing(found: Measured, same: bool | None) -> Iterator[Advice]:
    if same:
        yield Advice(
            lever="nothing",
            worth="try",
            why=f"the frozen backbone does not tell the sets apart ({_feature_words(found.features)})",
            how="use the adapter as it is; look at a few masks",
        )


def _resample(found: Measured) -> Iterator[Advice]:
    zoom, files = found.zoom, found.file_ratio
    if zoom is None:
        return
    seen = f"a pixel of the network input covers {zoom:.2f} times as much as in the source (limit {SIZE:g})"
    if max(zoom, 1 / zoom) > SIZE:
        yield Advice(
            lever="resample",
            worth="try",
            why=seen,
            how=_to_size(found, zoom),
        )
    elif files is not None and max(*files, *(1 / f for f in files)) > SIZE:
        yield Advice(
            lever="resample",
            worth="no",
            why=f"pixels of the files differ by {files[0]:.2f} x {files[1]:.2f}, but {seen}",
            how="nothing to do: the adapter's input recipe already brings both to one size",
        )


def _to_size(found: Measured, zoom: float) -> str:
    spacing = found.target.statistics.spacing
    wanted = "" if spacing is None else f" of {float(np.mean(spacing)) / zoom:.3g}"
    return (
        f"bring the target to pixels{wanted} (rasters: --gsd), or its windows to a field of view "
        f"{1 / zoom:.2f} times as wide (data.window)"
    )


def _values(found: Measured) -> Iterator[Advice]:
    """Alignment of values, colours or stains."""
    c, one, two = found.comparison, found.source.statistics, found.target.statistics
    moved = max(c.wasserstein)
    words = f"values lie {moved:.3f} of the range apart (limit {VALUES:g}), Jensen-Shannon {max(c.jensen_shannon):.2f}"
    if c.stain_angle is not None and c.stain_ratio is not None:
        strength = max(max(r, 1 / max(r, 1e-6)) for r in c.stain_ratio)
        stained = f"stains are {c.stain_angle:.0f} degrees apart, strengths differ {strength:.2f}-fold"
        limits = f"(limits {STAIN_ANGLE:g} and {STAIN_STRENGTH:g})"
        yield Advice(
            lever="macenko",
            worth="try" if c.stain_angle > STAIN_ANGLE or strength > STAIN_STRENGTH else "no",
            why=f"both sets are stained tissue; {stained} {limits}",
            how=HOW_TO_ALIGN.format("macenko"),
        )
        return
    if inverted(found) or one.gray != two.gray:
        kinds = "one set is gray and the other coloured" if one.gray != two.gray else "bright and dark are exchanged"
        yield Advice(
            lever="histogram",
            worth="no" if inverted(found) else "perhaps",
            why=f"{kinds} (skewness {c.skewness[0]:.1f} and {c.skewness[1]:.1f}); {words}",
            how="an alignment keeps the order of values, so it cannot undo that",
        )
        return
    colours = max(c.colour_difference, abs(c.lightness_difference))
    if one.gray:
        yield Advice(
            lever="histogram", worth="try" if moved > VALUES else "no", why=words, how=HOW_TO_ALIGN.format("histogram")
        )
        return
    yield Advice(
        lever="reinhard",
        worth="try" if c.colour_difference > COLOUR or (colours > COLOUR and moved > VALUES) else "no",
        why=f"mean colours are {c.colour_difference:.1f} apart in CIELAB, lightness {c.lightness_difference:+.1f} "
        f"(limit {COLOUR:g}); {words}",
        how=HOW_TO_ALIGN.format("reinhard"),
    )


def _augment(found: Measured) -> Iterator[Advice]:
    """What only training on the source can cover."""
    c = found.comparison
    if inverted(found):
        yield Advice(
            lever="augment",
            worth="perhaps",
            why=f"bright and dark change places (skewness {c.skewness[0]:.1f}, {c.skewness[1]:.1f}; limit {SKEWED:g})",
            how="where the source can be trained again: augment.invert 0.5",
        )
    if c.sharpness_shift is not None and abs(c.sharpness_shift) > SHARPNESS:
        blurred = c.sharpness_shift < 0
        kind = "less" if blurred else "more"
        yield Advice(
            lever="augment",
            worth="perhaps",
            why=f"the target has {abs(c.sharpness_shift):.1f} dB {kind} fine structure (limit {SHARPNESS:g})",
            how=f"no alignment mends that; where the source can be trained again: a larger "
            f"{'augment.blur' if blurred else 'augment.noise'}",
        )


def _labels(found: Measured, same: bool | None) -> Iterator[Advice]:
    """Adaptation of the weights."""
    if same is None or found.features is None:
        return
    why = (
        f"the frozen backbone {'does not tell' if same else 'tells'} the sets apart ({_feature_words(found.features)})"
    )
    no_labels = "samgraft adapt: self-training on target images; it keeps the source adapter where it does harm"
    weak = "boxes or points on 10 to 20 target images: data.supervision with train.start_from"
    if same:
        yield Advice(lever="no labels", worth="no", why=why, how=no_labels)
        return
    apart = beyond_chance(found.features)
    far = apart > FAR or inverted(found) or found.source.statistics.gray != found.target.statistics.gray
    size = f"; features lie {apart:.2f} standard deviations apart beyond chance (limit {FAR:g})"
    yield Advice(lever="no labels", worth="perhaps" if far else "try", why=why + size, how=no_labels)
    yield Advice(lever="weak labels", worth="try" if far else "perhaps", why=why + size, how=weak)


def _feature_words(features: FeatureShift | None) -> str:
    if features is None:
        return "features were not compared"
    if features.probe is None:
        return f"shift {features.standardised:.2f} standard deviations, {features.standardised_chance:.2f} by chance"
    return f"linear probe AUC {features.probe.auc:.2f}, limit {TOLD_APART:g}; MMD p = {features.mmd_p:.3g}"
