"""Looks: tones under which the source adapter may understand the target better, tried on single tiles.

The look is chosen once, by criteria without labels, and only where it is clearly better; from then on tiles are seen in
that tone, and so is every image by the adapted bundle (``samgraft.recipes.tones``).
"""

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from samgraft.recipes.tones import GRAY, PLAIN, TONES, toned_alone

Look = Callable[[Tensor], Tensor]
"""Images (B, 3, [D,] H, W) in [0, 1] -> the same shape and range."""
LOOKS: Mapping[str, Look] = {name: partial(toned_alone, tone=tone) for name, tone in TONES.items() if name != GRAY}
"""Name -> look; each depends on the image alone."""
__all__ = ["LOOKS", "PLAIN", "Look"]
