"""Looks: simple changes of an image's values under which the source adapter may understand the target better.

An adapter that was trained on bright cells on a dark ground has nothing to teach on dark cells on a bright one, but it
has on their negative. The look is chosen once, by criteria without labels, and only where it is clearly better; the
source adapter then labels tiles seen through it, while the student learns the tiles as they are, as they will be used.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Look = Callable[[Tensor], Tensor]
"""Images (B, 3, [D,] H, W) in [0, 1] -> the same shape and range."""
PLAIN = "plain"
STRETCH = (0.01, 0.99)
"""Quantiles of an image that become 0 and 1."""


def _stretched(image: Tensor) -> Tensor:
    """Each image on its own, all channels alike."""
    flat = image.flatten(1)
    step = max(1, flat.shape[1] // 20_000)
    low, high = (torch.quantile(flat[:, ::step].float(), q, dim=1) for q in STRETCH)
    shape = (-1, *(1,) * (image.ndim - 1))
    span = (high - low).clamp_min(1e-3).view(shape)
    return ((image - low.view(shape)) / span).clamp(0, 1)


def _gray(image: Tensor) -> Tensor:
    return image.mean(dim=1, keepdim=True).expand_as(image)


LOOKS: Mapping[str, Look] = {
    PLAIN: lambda image: image,
    "stretched": _stretched,
    "brighter": lambda image: image.clamp_min(1e-6).pow(0.6),
    "darker": lambda image: image.pow(1.7),
    "negative": lambda image: 1 - image,
    "negative stretched": lambda image: 1 - _stretched(image),
    "gray stretched": lambda image: _stretched(_gray(image)),
    "gray negative stretched": lambda image: 1 - _stretched(_gray(image)),
}
"""Name -> look; each depends on the image alone, so a tile has one look wherever it is seen."""
