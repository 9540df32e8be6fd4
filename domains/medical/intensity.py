"""Intensity scales: from HU, MR units or counts to the [0, 1] that a backbone takes.

Takes arrays in real-world values, gives float32 in [0, 1]. The scale is a small frozen object that is stored with an
adapter, so that training and use agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.scene import Array, Scene
from samgraft.errors import ConfigError, InputError

Kind = Literal["ct_window", "percentile", "zscore", "range"]
Measure = Literal["percentile", "zscore"]

CT_WINDOWS: dict[str, tuple[float, float]] = {"soft": (400.0, 40.0), "lung": (1500.0, -160.0), "brain": (80.0, 40.0)}
"""Name -> (width, level) in HU."""

MR_NAMES = ("T1", "T2", "FLAIR", "T1W", "T2W", "ADC")
"""Names of MR channels that do not say MR."""
PERCENTILES = (0.5, 99.5)
"""Percentiles of the non-zero voxels that become 0 and 1 for MR, 16-bit pictures and anything unknown."""

CT_LIKE_BELOW = -200.0
"""Values under this in data of unknown modality mean Hounsfield units (air is -1000)."""

_SAMPLE = 4_000_000
_KINDS = ("ct_window", "percentile", "zscore", "range")
_MEASURES = ("percentile", "zscore")
NO_HU = "no Hounsfield units"
"""Name of the finding that values cannot be those of a CT."""


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """A linear scale: ``lower`` becomes 0, ``upper`` becomes 1, values beyond are clipped."""

    kind: Kind
    """Where the bounds come from."""
    lower: float
    """Value that becomes 0."""
    upper: float
    """Value that becomes 1; equal bounds are widened by ``apply`` so that constant images give 0."""
    note: str = ""
    """Why this scale was chosen, for reports."""

    def __post_init__(self) -> None:
        """Check kind and bounds."""
        if self.kind not in _KINDS:
            raise ConfigError(f"intensity kind is {self.kind!r}; expected one of {', '.join(_KINDS)}")
        if not (np.isfinite([self.lower, self.upper]).all() and self.lower <= self.upper):
            raise ConfigError(f"intensity bounds are {self.lower} and {self.upper}; expected finite, lower <= upper")

    def apply(self, array: Array) -> NDArray[np.float32]:
        """Scale an array of any shape to float32 in [0, 1]; a constant image gives zeros, never NaN.

        Raises:
            InputError: NaN in the array.
        """
        values = np.asarray(array, dtype=np.float32)
        span = self.upper - self.lower
        scaled = (values - np.float32(self.lower)) / np.float32(span if span > 0 else 1.0)
        if np.isnan(scaled).any():
            raise InputError('values hold NaN; open the scene with nan="fill" or repair the file')
        return np.asarray(np.clip(scaled, 0.0, 1.0), dtype=np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"kind": self.kind, "lower": self.lower, "upper": self.upper, "note": self.note}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Intensity":
        """Inverse of ``to_dict``.

        Raises:
            ConfigError: missing or unknown keys, or bad values.
        """
        unknown = set(values) - {"kind", "lower", "upper", "note"}
        missing = {"kind", "lower", "upper"} - set(values)
        if unknown or missing:
            raise ConfigError(f"intensity: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}")
        try:
            lower, upper = float(values["lower"]), float(values["upper"])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"intensity bounds {values['lower']!r}, {values['upper']!r}; expected numbers") from error
        return cls(kind=values["kind"], lower=lower, upper=upper, note=str(values.get("note", "")))


@dataclass(frozen=True, kw_only=True)
class IntensityRule:
    """How a scale is measured on every image anew; stored with an adapter, where bounds are not fixed."""

    kind: Measure = "percentile"
    """"percentile" of the non-zero values, or "zscore": standard deviations around their mean."""
    low: float = PERCENTILES[0]
    """What becomes 0: a percentile, or a number of standard deviations (negative: below the mean)."""
    high: float = PERCENTILES[1]
    """What becomes 1."""

    def __post_init__(self) -> None:
        """Check kind and order."""
        if self.kind not in _MEASURES:
            raise ConfigError(f"intensity rule is {self.kind!r}; expected one of {', '.join(_MEASURES)}")
        ends = (0.0, 100.0) if self.kind == "percentile" else (-np.inf, np.inf)
        if not ends[0] <= self.low < self.high <= ends[1] or not np.isfinite([self.low, self.high]).all():
            raise ConfigError(
                f"intensity rule {self.kind} from {self.low} to {self.high}; expected low < high"
                + (", both within 0 to 100" if self.kind == "percentile" else "")
            )

    def fit(self, source: Scene | Array) -> Intensity:
        """Measure the scale of one image on its finite, valid, non-zero values."""
        values = _sample(source)
        used = values[values != 0].astype(np.float64)
        if used.size == 0:
            return Intensity(kind=self.kind, lower=0.0, upper=0.0, note="no non-zero value: constant image")
        if self.kind == "zscore":
            mean, deviation = float(used.mean()), float(used.std())
            lower, upper = mean + self.low * deviation, mean + self.high * deviation
            note = f"{self.low:g} to {self.high:g} standard deviations around the mean of non-zero values"
        else:
            lower, upper = (float(v) for v in np.percentile(used, (self.low, self.high)))
            note = f"percentiles {self.low:g} and {self.high:g} of non-zero values"
        if not upper > lower:
            lower, upper = float(values.min()), float(values.max())
        return Intensity(kind=self.kind, lower=lower, upper=upper, note=note)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"kind": self.kind, "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "IntensityRule":
        """Inverse of ``to_dict``.

        Raises:
            ConfigError: missing or unknown keys, or bad values.
        """
        if set(values) != {"kind", "low", "high"}:
            raise ConfigError(f"intensity rule has the keys {sorted(values)}; expected kind, low, high")
        try:
            return cls(kind=values["kind"], low=float(values["low"]), high=float(values["high"]))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"intensity rule {dict(values)!r}: {error}") from error


def modality_of_channel(name: str) -> str | None:
    """Tell "CT" or "MR" from the name of a channel, such as "T1w" in ``dataset.json``; None for another one."""
    upper = name.upper()
    if upper.startswith("CT"):
        return "CT"
    return "MR" if "MR" in upper or upper in MR_NAMES else None


def require_hu(scene: Scene) -> None:
    """Refuse a volume whose values cannot be Hounsfield units: 8-bit, or without a negative value.

    Air is -1000 HU and fat about -100, so a CT has negative values; a picture of one has not. Nothing is read if header
    and dtype already exclude negative values, and one slice if that has them.

    Raises:
        InputError: names the range, and the way to use the file all the same.
    """
    if scene.trusted:
        return
    lowest = scene.value_range[0] if scene.value_range is not None else -np.inf
    if lowest < 0 and _has_negative(scene):
        return
    found = "8-bit gray values" if scene.dtype == np.uint8 else f"{scene.dtype} without a negative value"
    raise InputError(
        f"{scene.path}: {NO_HU}: {found}, and the adapter was trained on CT, where air is -1000; convert the original "
        "DICOM with its rescale slope and intercept. If the values are right all the same: add --trust-values, or call "
        "scene.trust_values()"
    )


def _has_negative(scene: Scene) -> bool:
    """Look at the middle slice, then at a sample of all."""
    middle = scene.grid.shape[0] // 2
    rest = tuple(slice(0, n) for n in scene.grid.shape[1:])
    return bool((scene.read((slice(middle, middle + 1), *rest)) < 0).any()) or bool((_sample(scene) < 0).any())


def ct_window(name_or_width: str | float, level: float | None = None) -> Intensity:
    """CT window by name ("soft", "lung", "brain") or by width and level in HU.

    Raises:
        ConfigError: unknown name, missing level or width not positive.
    """
    if isinstance(name_or_width, str):
        if name_or_width not in CT_WINDOWS:
            raise ConfigError(f"CT window {name_or_width!r} is unknown; choose from {', '.join(CT_WINDOWS)}")
        width, centre = CT_WINDOWS[name_or_width]
        note = f"CT window {name_or_width} ({width:g}/{centre:g} HU)"
    else:
        if level is None or not name_or_width > 0:
            raise ConfigError(f"CT window width {name_or_width}, level {level}; expected width > 0 and a level in HU")
        width, centre, note = float(name_or_width), float(level), f"CT window {name_or_width:g}/{level:g} HU"
    return Intensity(kind="ct_window", lower=centre - width / 2, upper=centre + width / 2, note=note)


def fit_intensity(
    source: Scene | Array, modality: str | None = None, *, window: str = "soft", rule: IntensityRule | None = None
) -> Intensity:
    """Choose a scale for a scene or array.

    CT takes a fixed window; uint8 takes 0..255; everything else takes percentiles of its finite, valid, non-zero
    values. Data of unknown modality with values below -200 count as CT, and the note says so.

    Args:
        source: Scene (its pixels are read, sampled if large) or array in real-world values.
        modality: "CT", "MR", ...; None takes the scene's, or decides from the values.
        window: which CT window.
        rule: measure the scale by this rule, whatever the modality; None decides as above.
    """
    if rule is not None:
        return rule.fit(source)
    known = modality or (source.modality if isinstance(source, Scene) else None)
    if known is not None and known.upper() == "CT":
        return ct_window(window)
    dtype = source.dtype
    if dtype in (np.uint8, np.bool_):
        top = 1.0 if dtype == np.bool_ else 255.0
        return Intensity(kind="range", lower=0.0, upper=top, note=f"{dtype} range")
    values = _sample(source)
    if known is None and values.size and float(values.min()) < CT_LIKE_BELOW:
        chosen = ct_window(window)
        return Intensity(
            kind=chosen.kind,
            lower=chosen.lower,
            upper=chosen.upper,
            note=f"{chosen.note}; taken for CT because values reach {float(values.min()):g}",
        )
    return _percentiles(values)


def _percentiles(values: Array) -> Intensity:
    """Percentile scale of the non-zero values; degenerate data get equal bounds, which ``apply`` survives."""
    return IntensityRule().fit(values)


def _sample(source: Scene | Array) -> Array:
    """Finite, valid values, one-dimensional; evenly spread slabs of large scenes."""
    if not isinstance(source, Scene):
        values = np.asarray(source).ravel()
        values = values[:: max(1, values.size // _SAMPLE)]
        return values[np.isfinite(values)] if values.dtype.kind == "f" else values
    first, rest = source.grid.shape[0], source.grid.shape[1:]
    rows = max(1, min(first, _SAMPLE // max(1, int(np.prod(rest)) * source.channels)))
    picked = sorted({int(i) for i in np.linspace(0, first - 1, rows)})
    runs = [slice(0, first)] if len(picked) == first else [slice(i, i + 1) for i in picked]
    parts = []
    for run in runs:
        box = (run, *(slice(0, n) for n in rest))
        pixels, valid = source.read(box), source.valid(box)
        parts.append(pixels[:, valid].ravel())
    values = np.concatenate(parts)
    return values[np.isfinite(values)] if values.dtype.kind == "f" else values
