"""The shift as one picture: a few views of each set, their histograms, their spectra, and their features in a plane."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.shift.compare import on_source_rings
from samgraft.domains.shift.spectra import ring_frequencies
from samgraft.domains.shift.statistics import LEVELS
from samgraft.recipes.data.cases import to_bytes
from samgraft.recipes.shift.distances import Labelled
from samgraft.recipes.shift.measure import Measured
from samgraft.recipes.shift.seen import EXAMPLES, SetSummary
from samgraft.recipes.shift.views import View

SOURCE, TARGET = "#1f6fb4", "#d9541e"
"""Colours of the two sets."""
CHANNELS = ("red", "green", "blue")
THUMBNAIL = 220
"""Pixels per side, at most."""


def draw_shift(found: Measured) -> bytes:
    """PNG of the shift."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sets = [one for one in (found.source, found.target) if one.examples]
    figure = Figure(figsize=(11.5, 3.5 + 1.95 * len(sets)), layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(len(sets) + 1, 1, height_ratios=[*[1.95] * len(sets), 3.5])
    for part, one in zip(parts, sets, strict=False):
        _examples(part, one, SOURCE if one is found.source else TARGET)
    with_features = found.data is not None
    panels = parts[-1].subplots(1, 3 if with_features else 2)
    _histograms(panels[0], found)
    _spectra(panels[1], found)
    if found.data is not None:
        _features(panels[2], found, found.data)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def plane(features: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Rows (n, d) on the two directions in which they vary most: (n, 2), and the share of the variance that they have.

    The sign is such that the largest entry of each direction is positive.
    """
    centred = features - features.mean(axis=0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    axes = np.zeros((2, features.shape[1]))
    axes[: min(2, len(directions))] = directions[:2]
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])
    total = float((values**2).sum())
    return centred @ (axes * np.where(signs == 0, 1, signs)[:, None]).T, float(
        (values[:2] ** 2).sum() / total
    ) if total else 0.0


def thumbnail(view: View) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 of at most 220 pixels per side, averaged; missing pixels are white."""
    from PIL import Image

    image = to_bytes(np.nan_to_num(view.image, nan=1.0))
    picture = Image.fromarray(np.moveaxis(image, 0, -1))
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(picture, dtype=np.uint8)


def _examples(part: Any, one: SetSummary, colour: str) -> None:
    axes = part.subplots(1, EXAMPLES)
    files = f"{one.files} image{'' if one.files == 1 else 's'}"
    part.suptitle(f"{one.title}: {files}, {one.statistics.count} views", color=colour, fontsize=11, fontweight="bold")
    for place in axes:
        place.axis("off")
    for place, view in zip(axes, one.examples, strict=False):
        place.imshow(thumbnail(view))
        place.set_title(_short(view.name), fontsize=7, color="#444444")


def _histograms(axes: Any, found: Measured) -> None:
    """Shares per value; per channel where either set has colours."""
    values = (np.arange(LEVELS) + 0.5) / LEVELS
    gray = found.source.statistics.gray and found.target.statistics.gray
    for one, colour in ((found.source, SOURCE), (found.target, TARGET)):
        shares = one.statistics.histogram
        title = _short(one.title)
        if gray:
            axes.fill_between(values, 100 * _smoothed(shares[0]), color=colour, alpha=0.25, linewidth=0)
            axes.plot(values, 100 * _smoothed(shares[0]), color=colour, linewidth=1.4, label=title)
            continue
        style = "-" if one is found.source else "--"
        for row, name in zip(shares, CHANNELS, strict=True):
            axes.plot(values, 100 * _smoothed(row), style, color=name, linewidth=1.2, alpha=0.85)
        axes.plot([], [], style, color="#444444", label=title)
    moved = max(found.comparison.wasserstein)
    axes.set_title(f"values: {moved:.3f} of the range apart", fontsize=10)
    axes.set_xlabel("value seen by the network")
    axes.set_ylabel("pixels, % per 1/256 (log)")
    axes.set_yscale("log")
    axes.set_ylim(bottom=1e-3)
    _finish(axes)


def _spectra(axes: Any, found: Measured) -> None:
    """Power over frequency of the source's pixels."""
    frequencies = ring_frequencies()
    ratio = found.comparison.spacing_ratio
    zoom = 1.0 if ratio is None else float(np.sqrt(ratio[0] * ratio[1]))
    one, two = found.source.statistics.spectrum, found.target.statistics.spectrum
    shared, moved = on_source_rings(two, zoom)
    if one.any():
        axes.plot(
            frequencies, _decibel(one, one[shared].sum()), color=SOURCE, linewidth=1.4, label=_short(found.source.title)
        )
    if two.any() and shared.any():
        axes.plot(
            frequencies[shared],
            _decibel(moved, moved.sum()),
            color=TARGET,
            linewidth=1.4,
            label=_short(found.target.title),
        )
    distance, sharpness = found.comparison.spectral_distance, found.comparison.sharpness_shift
    words = (
        "not comparable"
        if distance is None or sharpness is None
        else f"{distance:.1f} dB apart, fine {sharpness:+.1f} dB"
    )
    axes.set_title(f"spectra: {words}", fontsize=10)
    axes.set_xlabel("cycles per pixel" + ("" if ratio is None else " of the source"))
    axes.set_ylabel("power, dB")
    _finish(axes)


def _features(axes: Any, found: Measured, data: Labelled) -> None:
    places, share = plane(data.scaled)
    for side, one, colour in ((False, found.source, SOURCE), (True, found.target, TARGET)):
        rows = places[data.target == side]
        axes.scatter(rows[:, 0], rows[:, 1], s=14, color=colour, alpha=0.6, linewidths=0, label=_short(one.title))
    probe = None if found.features is None else found.features.probe
    words = "" if probe is None else f": AUC {probe.auc:.2f}"
    axes.set_title(f"frozen features{words}", fontsize=10)
    axes.set_xlabel(f"first two principal components ({100 * share:.0f} % of the variance)")
    _finish(axes)


def _finish(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False)


def _smoothed(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Three bins averaged: stretched 8-bit images leave every other one empty."""
    padded = np.pad(shares, 1, mode="edge")
    smooth: NDArray[np.float64] = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    return smooth


def _decibel(power: NDArray[np.float64], total: float) -> NDArray[np.float64]:
    level: NDArray[np.float64] = 10 * np.log10(np.maximum(power / max(total, 1e-30), 1e-10))
    return level


def _short(text: str, limit: int = 30) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2 - 1]}...{text[-(limit // 2 - 2) :]}"
