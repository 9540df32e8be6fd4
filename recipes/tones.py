"""Tones: simple changes of an image's values, the same in every window of a scene.

An adapter that was trained on bright cells on a dark ground understands nothing of dark cells on a bright one, but it
may understand their negative. A tone belongs to how an adapter sees images (``InputRecipe.tone``, ``data.tone``), after
the scale and before an alignment.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.errors import ConfigError

PLAIN, GRAY = "plain", "gray"
STRETCH = (0.01, 0.99)
"""Quantiles that become 0 and 1."""
LEAST_SPAN = 1e-3
"""Least distance of the two; what differs less is not blown up further."""


@dataclass(frozen=True, kw_only=True)
class Tone:
    """What is done to values in [0, 1], in this order."""

    gray: bool = False
    """All channels become their mean."""
    stretch: bool = False
    """The quantiles ``STRETCH`` become 0 and 1."""
    negative: bool = False
    """1 minus the value."""
    gamma: float = 1.0
    """Exponent."""


TONES: Mapping[str, Tone] = {
    PLAIN: Tone(),
    GRAY: Tone(gray=True),
    "stretched": Tone(stretch=True),
    "brighter": Tone(gamma=0.6),
    "darker": Tone(gamma=1.7),
    "negative": Tone(negative=True),
    "negative stretched": Tone(stretch=True, negative=True),
    "gray stretched": Tone(gray=True, stretch=True),
    "gray negative stretched": Tone(gray=True, stretch=True, negative=True),
}


def tone_of(name: str) -> Tone:
    """A tone by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in TONES:
        raise ConfigError(f"{name!r} is no tone; expected one of {', '.join(TONES)}")
    return TONES[name]


def toned(image: Tensor, tone: Tone, low: Tensor | float = 0.0, high: Tensor | float = 1.0) -> Tensor:
    """Images (B, 3, ..., H, W) in [0, 1] in a tone: the same shape and range.

    Args:
        image: What is changed.
        tone: How.
        low: Where ``tone.stretch``: the value that becomes 0 (of the gray image where ``tone.gray``); a number, or
            anything that broadcasts.
        high: The value that becomes 1.
    """
    if tone.gray:
        image = image.mean(dim=1, keepdim=True).expand_as(image)
    if tone.stretch:
        span = torch.as_tensor(high - low).clamp_min(LEAST_SPAN)
        image = ((image - low) / span).clamp(0, 1)
    if tone.negative:
        image = 1 - image
    return image if tone.gamma == 1.0 else image.clamp_min(1e-6).pow(tone.gamma)


def toned_alone(image: Tensor, tone: Tone) -> Tensor:
    """The same, each image of the batch stretched by its own quantiles, all channels alike."""
    if not tone.stretch:
        return toned(image, tone)
    flat = (image.mean(dim=1) if tone.gray else image).flatten(1)
    step = max(1, flat.shape[1] // 20_000)
    low, high = (torch.quantile(flat[:, ::step].float(), q, dim=1) for q in STRETCH)
    shape = (-1, *(1,) * (image.ndim - 1))
    return toned(image, tone, low.view(shape), high.view(shape))


@dataclass(frozen=True, kw_only=True)
class FittedTone:
    """A tone for one scene: fixed numbers, so that a pixel has one value wherever it is seen."""

    name: str
    """In ``TONES``."""
    low: float = 0.0
    """The value that becomes 0, where it stretches."""
    high: float = 1.0
    """The value that becomes 1."""

    def apply(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """(3, h, w) in [0, 1] to the same."""
        tensor = torch.from_numpy(np.ascontiguousarray(image))[None]
        changed: NDArray[np.float32] = toned(tensor, tone_of(self.name), self.low, self.high)[0].numpy()
        return changed

    def facts(self) -> dict[str, Any]:
        """Everything that decides about values, as JSON types."""
        return asdict(self)


def ends_of(histogram: NDArray[np.floating]) -> tuple[float, float]:
    """The values at the quantiles ``STRETCH`` of pixels whose histogram (levels,) over [0, 1] is known."""
    total = np.cumsum(histogram) / max(float(np.sum(histogram)), 1e-12)
    levels = len(histogram) - 1
    low, high = (float(np.searchsorted(total, q)) / levels for q in STRETCH)
    return low, max(high, low + LEAST_SPAN)
