"""The shift in words: lines for the terminal, an HTML page, JSON."""

import json
from pathlib import Path
from typing import Any

from samgraft.domains.atomic import atomic_path, full_suffix
from samgraft.errors import ConfigError
from samgraft.recipes.report import Report, versions, write_text
from samgraft.recipes.shift.advice import Advice, advise
from samgraft.recipes.shift.figure import draw_shift
from samgraft.recipes.shift.measure import FeatureShift, Measured
from samgraft.recipes.shift.seen import SetSummary

SUFFIXES = (".html", ".json", ".png")
"""Files that :func:`write_shift` can write."""
_MARKS = {"try": "try", "perhaps": "maybe", "no": "no"}


def shift_json(found: Measured) -> dict[str, Any]:
    """All figures and the advice, plain JSON types."""
    advice = [{"lever": a.lever, "worth": a.worth, "why": a.why, "how": a.how} for a in advise(found)]
    return {**found.to_json(), "advice": advice}


def shift_text(found: Measured) -> str:
    """The same for a terminal."""
    lines = [f"source  {_set_words(found.source)}", f"target  {_set_words(found.target)}", ""]
    width = max(len(name) for name, _, _ in figures(found))
    lines += [f"{name:<{width}}  {value:>14}  {meaning}" for name, value, meaning in figures(found)]
    lines += ["", "levers"]
    for one in advise(found):
        lines += [f"  {_MARKS[one.worth]:<5} {one.lever:<11} {one.why}", f"  {'':<17} -> {one.how}"]
    lines += [f"note: {note}" for note in remarks(found)]
    return "\n".join(lines)


def write_shift(found: Measured, path: Path) -> None:
    """Write the page, the figures or the picture, by suffix.

    Raises:
        ConfigError: another suffix.
        OutputError: the file cannot be written; nothing half written stays.
    """
    suffix = check_suffix(path)
    if suffix == ".json":
        write_text(path, json.dumps(shift_json(found), indent=1, allow_nan=False) + "\n")
    elif suffix == ".png":
        with atomic_path(path) as temporary:
            temporary.write_bytes(draw_shift(found))
    else:
        _page(found).save(path)


def check_suffix(path: Path) -> str:
    """Suffix of an output.

    Raises:
        ConfigError: none of ``SUFFIXES``.
    """
    suffix = full_suffix(path)
    if suffix not in SUFFIXES:
        raise ConfigError(f"{path.name}: suffix {suffix!r}; expected one of {', '.join(SUFFIXES)}")
    return suffix


def figures(found: Measured) -> list[tuple[str, str, str]]:
    """(name, value, how to read it) of everything that was measured."""
    c = found.comparison
    rows = [
        (
            "Jensen-Shannon",
            _each(c.jensen_shannon, "{:.2f}"),
            "histograms per channel: 0 the same, 1 nothing in common",
        ),
        ("Wasserstein", _each(c.wasserstein, "{:.3f}"), "how far values would move, share of the range"),
        ("mean", _each(c.mean_shift, "{:+.3f}"), "target minus source, share of the range"),
        ("contrast", _each(c.contrast_ratio, "{:.2f}"), "standard deviation, target over source"),
        (
            "skewness",
            f"{c.skewness[0]:.1f}, {c.skewness[1]:.1f}",
            "source, target: > 0 bright on dark, < 0 dark on bright",
        ),
        ("colour", f"{c.colour_difference:.1f}", "distance of mean a and b, CIELAB"),
        ("lightness", f"{c.lightness_difference:+.1f}", "target minus source, CIELAB"),
        ("spectra", _maybe(c.spectral_distance, "{:.1f} dB"), "root mean square over frequencies"),
        ("sharpness", _maybe(c.sharpness_shift, "{:+.1f} dB"), "fine against coarse structure; negative: blurred"),
        ("file pixels", "-" if found.file_ratio is None else _each(found.file_ratio, "{:.2f}"), "target over source"),
        ("network pixels", _maybe(found.zoom, "{:.2f}"), "ground or body per pixel of the input, target over source"),
    ]
    if c.stain_angle is not None and c.stain_ratio is not None:
        rows.append(("stains", f"{c.stain_angle:.0f} deg", f"strengths {_each(c.stain_ratio, '{:.2f}')}-fold"))
    if found.features is not None:
        rows += _feature_rows(found.features)
    return rows + [
        (
            f"after {t.name}",
            f"{t.standardised:.2f} sd",
            "feature shift" + ("" if t.auc is None else f"; AUC {t.auc:.2f}"),
        )
        for t in found.trials
    ]


def _feature_rows(f: FeatureShift) -> list[tuple[str, str, str]]:
    rows = [
        (
            "feature shift",
            f"{f.standardised:.2f} sd",
            f"{f.standardised_chance:.2f} by chance; {f.backbone}, {f.size} px",
        ),
        (
            "Frechet",
            f"{f.frechet:.3g}",
            "of independent features" if f.frechet_chance is None else f"{f.frechet_chance:.3g} by chance",
        ),
    ]
    if f.mmd is not None and f.mmd_p is not None and f.smallest_p is not None:
        rows.append(("MMD squared", f"{f.mmd:.4f}", f"p = {f.mmd_p:.3g} (at least {f.smallest_p:.2g}), by {f.unit}"))
    if f.probe is not None:
        p = f.probe
        rows.append(
            (
                "linear probe",
                f"AUC {p.auc:.2f}",
                f"+- {p.deviation:.2f} over draws; {p.folds} folds of {p.unit}; 0.5: alike",
            )
        )
    return rows


def remarks(found: Measured) -> list[str]:
    """Everything that was remarked on the way."""
    own = [f"{one.title}: {note}" for one in (found.source, found.target) for note in one.notes]
    return [*found.notes, *own]


def _page(found: Measured) -> Report:
    advice = advise(found)
    subtitle = f"{_set_words(found.source)}  |  {_set_words(found.target)}"
    report = Report(f"Shift from {found.source.title} to {found.target.title}", subtitle=subtitle)
    report.table("What is worth trying", ["lever", "worth", "why", "how"], [_advice_row(one) for one in advice])
    report.figure("What differs", draw_shift(found), caption=_caption(found))
    report.table("Figures", ["figure", "value", "how to read it"], figures(found))
    for note in remarks(found):
        report.text("Remark", note)
    report.table("Versions", ["what", "version"], list(versions().items()))
    return report


def _advice_row(one: Advice) -> tuple[str, str, str, str]:
    return one.lever, _MARKS[one.worth], one.why, one.how


def _caption(found: Measured) -> str:
    if found.source.remembered:
        return "The source is what the adapter remembers: it has no images to show and no features per image."
    return "Views as the network sees them; a point in the plane of features is one view."


def _set_words(one: SetSummary) -> str:
    if one.remembered:
        return f"{one.title} (memory of {one.statistics.count} images)"
    groups = len(set(one.groups))
    return f"{one.title}: {one.files} images, {one.statistics.count} views, {groups} groups by {one.grouped_by}"


def _each(values: tuple[float, ...], form: str) -> str:
    """One value where all look the same."""
    words = [form.format(v) for v in values]
    return words[0] if len(set(words)) == 1 else " ".join(words)


def _maybe(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
