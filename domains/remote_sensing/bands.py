"""Radiometry of rasters: one fixed stretch per raster, and three channels in [0, 1] for a backbone.

Takes raw values of any dtype; gives float32 RGB. The stretch is measured once for the whole raster, so a pixel has the
same value in every tile that shows it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.remote_sensing.geo_scene import GeoScene, Sample
from samgraft.domains.remote_sensing.sensor import DISPLAYS, common_name
from samgraft.domains.scene import Array, Scene
from samgraft.errors import ConfigError, ShapeError


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Linear map of each channel to [0, 1]."""

    lower: tuple[float, ...]
    """Value of each channel that becomes 0."""
    upper: tuple[float, ...]
    """Value of each channel that becomes 1; above ``lower``."""
    samples: int = 0
    """Valid pixels it was measured on; 0 when the raster has none, and for a stretch that was set by hand."""
    how: str = field(default="", compare=False)
    """How it was measured, in words; empty for a stretch that was set by hand."""

    def __post_init__(self) -> None:
        """Check that every channel has a positive, finite width."""
        if len(self.lower) != len(self.upper) or not self.lower:
            raise ConfigError(
                f"stretch has {len(self.lower)} lower and {len(self.upper)} upper values; one per channel each"
            )
        for low, high in zip(self.lower, self.upper, strict=True):
            if not (np.isfinite(low) and np.isfinite(high) and high > low):
                raise ConfigError(f"stretch from {low} to {high}: expected two finite values, the second one larger")

    def apply(self, array: Array) -> NDArray[np.float32]:
        """Map (C, H, W) to float32 in [0, 1], clipped; NaN becomes 0.

        Raises:
            ShapeError: another number of channels.
        """
        if array.ndim != 3 or array.shape[0] != len(self.lower):
            raise ShapeError(f"array is {array.shape}; the stretch expects ({len(self.lower)}, H, W)")
        low = np.array(self.lower, dtype=np.float64)[:, None, None]
        width = np.array(self.upper, dtype=np.float64)[:, None, None] - low
        scaled = np.clip((array - low) / width, 0.0, 1.0)
        return np.nan_to_num(scaled, nan=0.0).astype(np.float32)

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "Stretch":
        """Inverse of :meth:`to_dict`.

        Raises:
            ConfigError: a key is missing, unknown, or of the wrong type.
        """
        lower, upper, samples = values.get("lower"), values.get("upper"), values.get("samples", 0)
        unknown = set(values) - {"lower", "upper", "samples", "how"}
        if (
            unknown
            or not isinstance(lower, Sequence)
            or not isinstance(upper, Sequence)
            or not isinstance(samples, int)
        ):
            raise ConfigError(f"stretch {dict(values)}: expected lists 'lower' and 'upper' and a number 'samples'")
        return cls(
            lower=tuple(float(v) for v in lower),
            upper=tuple(float(v) for v in upper),
            samples=samples,
            how=str(values.get("how", "")),
        )


def stretch(scene: Scene, lower: float = 2.0, upper: float = 98.0, *, samples: int = 1_000_000) -> Stretch:
    """Measure per-channel percentiles of a whole raster once, without its missing pixels.

    Of a large raster its overviews are looked at, or blocks that are spread evenly; the same ones on every call, so
    that the result depends on the file alone.

    Args:
        scene: A raster or any other two-dimensional scene.
        lower: Percentile that becomes 0.
        upper: Percentile that becomes 1.
        samples: Largest number of pixels to look at, about.

    Returns:
        A stretch with one pair per channel. A raster without any valid pixel gives 0 to 1 and ``samples == 0``; a
        constant channel gets a width of 1.

    Raises:
        ConfigError: the percentiles are not 0 <= lower < upper <= 100.
        InputError: the file is damaged.
    """
    if not 0 <= lower < upper <= 100:
        raise ConfigError(f"percentiles {lower} and {upper}: expected 0 <= lower < upper <= 100")
    if isinstance(scene, GeoScene):
        sample = scene.sample(samples)
    else:
        sample = Sample(values=scene.read()[:, scene.valid()], how="every pixel")
    channels, count = sample.values.shape
    if not count:
        return Stretch(lower=(0.0,) * channels, upper=(1.0,) * channels, how=f"no valid pixel ({sample.how})")
    values = sample.values.astype(np.float64)
    low, high = np.percentile(values, [lower, upper], axis=1)
    flat = high <= low  # mostly one value: take the extremes, so that the rest is still seen
    low, high = np.where(flat, values.min(axis=1), low), np.where(flat, values.max(axis=1), high)
    high = np.where(high <= low, low + np.maximum(1.0, np.abs(low) * 1e-6), high)
    how = f"percentiles {lower:g} and {upper:g} of {count:,} pixels ({sample.how})"
    return Stretch(lower=tuple(low.tolist()), upper=tuple(high.tolist()), samples=count, how=how)


def full_range(scene: Scene) -> Stretch | None:
    """Stretch over all values that the dtype allows (0 to 255 for uint8), or None where the header sets no range."""
    if scene.value_range is None:
        return None
    low, high = scene.value_range
    return Stretch(lower=(low,) * scene.channels, upper=(high,) * scene.channels, how="all values of the dtype")


def rgb_channels(scene: Scene) -> tuple[int, int, int]:
    """Channel indices to show as red, green and blue.

    Names, then colours decide where the header has them: red, green and blue, or VV, VH and VV of a radar, or a
    panchromatic band. Otherwise the first three channels; one or two channels repeat the first.
    """
    names = [common_name(name) for name in scene.channel_names]
    colors = [common_name(color) for color in scene.color] if isinstance(scene, GeoScene) else []
    for table in (names, colors):
        for display in DISPLAYS:
            if all(name in table for name in display):
                found = [table.index(name) for name in display]
                return (found[0], found[1], found[2]) if len(found) == 3 else (found[0],) * 3
    return (0, 1, 2) if scene.channels >= 3 else (0, 0, 0)


def to_rgb(
    array: Array, bands: Sequence[int] | None, stretch: Stretch, *, valid: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Turn raw channels into what a backbone takes.

    Args:
        array: (C, H, W), any real dtype, from ``Scene.read``.
        bands: Three channel indices for red, green, blue (see :func:`rgb_channels`), or one to repeat. None: the first
            three, or the only one repeated.
        stretch: The raster's stretch, with C channels.
        valid: (H, W); other pixels become 0.

    Returns:
        float32 (3, H, W) in [0, 1].

    Raises:
        ShapeError: other shapes than these, or a channel that is not there.
    """
    scaled_for = range(len(array)) if array.ndim == 3 else ()
    chosen = tuple(bands) if bands is not None else ((0, 1, 2) if len(scaled_for) >= 3 else (0,))
    if len(chosen) not in (1, 3) or any(b not in scaled_for for b in chosen):
        raise ShapeError(f"bands {list(chosen)} of an array {array.shape}: expected one or three channels of (C, H, W)")
    if len(stretch.lower) != len(scaled_for):
        raise ShapeError(f"array is {array.shape}; the stretch has {len(stretch.lower)} channels")
    order = list(chosen) * (3 // len(chosen))
    part = Stretch(lower=tuple(stretch.lower[b] for b in order), upper=tuple(stretch.upper[b] for b in order))
    rgb = part.apply(array[order])
    if valid is not None:
        if valid.shape != rgb.shape[1:]:
            raise ShapeError(f"valid is {valid.shape}; the array has {rgb.shape[1:]}")
        rgb *= valid
    return rgb
