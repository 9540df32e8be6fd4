"""How values of a file become [0, 1] in three channels: the same for training and for use.

Takes raw values of the chosen channels; gives (3, H, W) float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.medical.intensity import fit_intensity
from samgraft.domains.scene import Array, Scene
from samgraft.domains.shift.alignment import Alignment, facts_of
from samgraft.errors import CheckpointError, InputError
from samgraft.recipes.tones import FittedTone

PERCENTILES = (2.0, 98.0)
"""Percentiles of each band of a whole raster that become 0 and 1."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """Which channels are seen, and which of their values become 0 and 1."""

    channels: tuple[int, ...]
    """One channel, shown as gray, or three as red, green, blue; counted from 0."""
    lower: tuple[float, ...]
    """Per channel, the value that becomes 0."""
    upper: tuple[float, ...]
    """Per channel, the value that becomes 1."""
    how: str = field(default="", compare=False)
    """Where the values come from, in words."""
    tone: FittedTone | None = field(default=None, compare=False)
    """What is done to scaled values first; None for nothing."""
    alignment: Alignment | None = field(default=None, compare=False)
    """What moves scaled values towards those of an adapter's training set; see ``samgraft.recipes.alignment``."""

    def facts(self) -> dict[str, Any]:
        """Everything that decides about values, as JSON types."""
        scale: dict[str, Any] = {"channels": self.channels, "lower": self.lower, "upper": self.upper, "how": self.how}
        scale |= {} if self.tone is None else {"tone": self.tone.facts()}
        return scale | ({} if self.alignment is None else {"alignment": facts_of(self.alignment)})

    def describe(self, scene: Scene) -> dict[str, str]:
        """Say what was seen of a scene, for the meta of a result."""
        names = [scene.channel_names[c] for c in self.channels]
        ranges = zip(names, self.lower, self.upper, strict=True)
        scale = {"channels": ", ".join(names), "stretch": ", ".join(f"{n} {a:.6g} to {b:.6g}" for n, a, b in ranges)}
        return scale | ({"stretch_from": self.how} if self.how else {})

    def apply(self, array: Array) -> NDArray[np.float32]:
        """Scale (c, h, w) raw values of ``channels`` to (3, h, w) float32 in [0, 1]; NaN becomes 0."""
        low = np.array(self.lower, dtype=np.float32)[:, None, None]
        span = np.array(self.upper, dtype=np.float32)[:, None, None] - low
        span = np.where(span > 0, span, 1).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # nodata may be the largest float there is
            scaled: NDArray[np.float32] = np.asarray((array - low) / span, dtype=np.float32)
        np.nan_to_num(np.clip(scaled, 0.0, 1.0, out=scaled), copy=False, nan=0.0)
        three = np.broadcast_to(scaled, (3, *scaled.shape[1:])) if len(scaled) == 1 else scaled
        three = three if self.tone is None else self.tone.apply(three)
        return three if self.alignment is None else self.alignment.apply(three)


def look_at(
    scene: Scene, bands: Sequence[int] | None = None, *, percentiles: tuple[float, float] = PERCENTILES
) -> Look:
    """Choose channels and scale for a scene that nothing is recorded about.

    CT takes the soft-tissue window, 8-bit pictures their full range, rasters percentiles of each band, measured once
    over the whole raster, everything else percentiles of its values.

    Args:
        scene: Any scene.
        bands: One or three channel indices; None takes red, green, blue where they are known, else the first three.
        percentiles: Rasters of more than 8 bits: which percentiles become 0 and 1.

    Raises:
        InputError: channels that the scene does not have, or another number of them.
    """
    channels = shown_channels(scene, bands)
    if scene.kind != "raster":
        fitted = fit_intensity(scene)
        count = len(channels)
        return Look(channels=channels, lower=(fitted.lower,) * count, upper=(fitted.upper,) * count, how=fitted.note)
    from samgraft.domains.remote_sensing.bands import full_range, stretch

    fixed = full_range(scene) if scene.dtype == np.uint8 else None
    scale = fixed or stretch(scene, *percentiles)
    return Look(
        channels=channels,
        lower=tuple(scale.lower[c] for c in channels),
        upper=tuple(scale.upper[c] for c in channels),
        how=scale.how,
    )


def stretch_recipe(look: Look | None = None) -> dict[str, Any]:
    """What an adapter's header says about rasters: percentiles of every raster, or the fixed values of one look.

    Args:
        look: Fixed scale for all rasters, or None to measure each one.
    """
    if look is None:
        return {"kind": "stretch", "percentiles": list(PERCENTILES)}
    return {"kind": "stretch", "lower": list(look.lower), "upper": list(look.upper), "note": look.how}


def look_as_recorded(scene: Scene, bands: Sequence[int] | None, recipe: Mapping[str, Any]) -> Look:
    """Inverse of :func:`stretch_recipe`, for a raster.

    Raises:
        CheckpointError: the recipe holds neither percentiles nor one lower and upper value per channel.
        InputError: as :func:`look_at`.
    """
    pair: Any = recipe.get("percentiles")
    lower: Any = recipe.get("lower")
    upper: Any = recipe.get("upper")
    if isinstance(pair, Sequence) and len(pair) == 2:
        return look_at(scene, bands, percentiles=(float(pair[0]), float(pair[1])))
    channels = shown_channels(scene, bands)
    lists = isinstance(lower, Sequence) and isinstance(upper, Sequence)
    low, high = (tuple(lower), tuple(upper)) if lists else ((), ())
    if not len(low) == len(high) == len(channels):
        raise CheckpointError(
            f"the adapter's header has the stretch {dict(recipe)!r}; expected two percentiles, or lower and upper "
            f"values of {len(channels)} channels"
        )
    return Look(
        channels=channels,
        lower=tuple(float(v) for v in low),
        upper=tuple(float(v) for v in high),
        how="fixed by the adapter",
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
