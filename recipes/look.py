"""How values of a file become [0, 1] in three channels: the same for training and for use.

Takes raw values of the chosen channels; gives (3, H, W) float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.medical.intensity import fit_intensity
from samgraft.domains.scene import Array, Scene
from samgraft.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Look:
    """Which channels are seen, and which of their values become 0 and 1."""

    channels: tuple[int, ...]
    """One channel, shown as gray, or three as red, green, blue; counted from 0."""
    lower: tuple[float, ...]
    """Per channel, the value that becomes 0."""
    upper: tuple[float, ...]
    """Per channel, the value that becomes 1."""

    def apply(self, array: Array) -> NDArray[np.float32]:
        """Scale (c, h, w) raw values of ``channels`` to (3, h, w) float32 in [0, 1]; NaN becomes 0."""
        low = np.array(self.lower, dtype=np.float32)[:, None, None]
        span = np.array(self.upper, dtype=np.float32)[:, None, None] - low
        span = np.where(span > 0, span, 1).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # nodata may be the largest float there is
            scaled: NDArray[np.float32] = np.asarray((array - low) / span, dtype=np.float32)
        np.nan_to_num(np.clip(scaled, 0.0, 1.0, out=scaled), copy=False, nan=0.0)
        return np.broadcast_to(scaled, (3, *scaled.shape[1:])) if len(scaled) == 1 else scaled


def look_at(scene: Scene, bands: Sequence[int] | None = None) -> Look:
    """Choose channels and scale for a scene that nothing is recorded about.

    CT takes the soft-tissue window, 8-bit pictures their full range, rasters the percentiles 2 and 98 of each band over
    the whole raster, everything else percentiles of its values.

    Args:
        scene: Any scene.
        bands: One or three channel indices; None takes red, green, blue where they are known, else the first three.

    Raises:
        InputError: channels that the scene does not have, or another number of them.
    """
    channels = shown_channels(scene, bands)
    if scene.kind != "raster":
        fitted = fit_intensity(scene)
        return Look(channels=channels, lower=(fitted.lower,) * len(channels), upper=(fitted.upper,) * len(channels))
    from samgraft.domains.remote_sensing.bands import full_range, stretch

    fixed = full_range(scene) if scene.dtype == np.uint8 else None
    scale = fixed or stretch(scene)
    return Look(
        channels=channels,
        lower=tuple(scale.lower[c] for c in channels),
        upper=tuple(scale.upper[c] for c in channels),
    )


def shown_channels(scene: Scene, bands: Sequence[int] | None = None) -> tuple[int, ...]:
    """Indices of the channels that :func:`look_at` shows: one, or three as red, green, blue.

    Raises:
        InputError: as :func:`look_at`.
    """
    default: tuple[int, ...] = tuple(range(3)) if scene.channels >= 3 else (0,)
    if scene.kind == "raster" and bands is None:
        from samgraft.domains.remote_sensing.bands import rgb_channels

        default = rgb_channels(scene)
    chosen = default if bands is None else tuple(int(b) for b in bands)
    wrong = [c for c in chosen if not 0 <= c < scene.channels]
    if wrong or len(chosen) not in (1, 3):
        raise InputError(
            f"{scene.path.name}: channels {list(chosen)} asked; name one or three of 0..{scene.channels - 1}"
        )
    return chosen[:1] if scene.kind == "raster" and len(set(chosen)) == 1 else chosen


def look_within(scene: Scene, bands: Sequence[int] | None = None, *, lower: float, upper: float) -> Look:
    """The channels that :func:`look_at` chooses, with a given scale; no pixel is read.

    Raises:
        InputError: as :func:`look_at`.
    """
    channels = shown_channels(scene, bands)
    return Look(channels=channels, lower=(lower,) * len(channels), upper=(upper,) * len(channels))


def fixed_look(look: Look, *, lower: float, upper: float) -> Look:
    """The same channels with one scale for all."""
    count = len(look.channels)
    return replace(look, lower=(lower,) * count, upper=(upper,) * count)
