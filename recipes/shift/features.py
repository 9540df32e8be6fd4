"""Frozen features of views: the neck of the backbone without any graft, averaged over the picture.

Takes views, one at a time; gives one row per view. What an adapter's header remembers of its training images
(``meta.extra["features"]``: mean and variance per channel) stands in for the rows of a source that is not at hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.bundle import BundleMeta
from samgraft.errors import CheckpointError
from samgraft.recipes.data.fit import Fit, round_up

KEY = "features"
"""Of ``BundleMeta.extra``."""
LARGEST = 512
"""Side of the network input, at most, where no adapter says another: enough to compare, and quick on a CPU."""
BATCH = 8

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Mean and variance of each feature over images of a set."""

    mean: Floats
    """(C,)."""
    variance: Floats
    """(C,)."""
    count: int
    """Images behind them."""

    @classmethod
    def of_rows(cls, rows: Floats) -> "Moments":
        """Of features (n, C)."""
        return cls(mean=rows.mean(axis=0), variance=rows.var(axis=0, ddof=1 if len(rows) > 1 else 0), count=len(rows))

    @classmethod
    def from_meta(cls, meta: BundleMeta, backbone: str) -> "Moments | None":
        """What an adapter remembers; None where it remembers none.

        Args:
            meta: Header of the adapter.
            backbone: SHA-256 of the frozen weights that the target is seen with.

        Raises:
            CheckpointError: damaged, or measured with another backbone.
        """
        stored = meta.extra.get(KEY)
        if stored is None:
            return None
        try:
            values: Mapping[str, Any] = stored
            mean, variance = (np.array(values[name], dtype=np.float64) for name in ("mean", "variance"))
            count, own = int(values["images"]), str(values["backbone"])
        except (TypeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"features in the adapter's header cannot be read ({error}); update samgraft"
            ) from error
        if mean.shape != variance.shape or mean.ndim != 1 or not np.isfinite([mean, variance]).all():
            raise CheckpointError(
                f"features in the adapter's header are {mean.shape} and {variance.shape}; copy it again"
            )
        if own != backbone:
            raise CheckpointError(
                f"features in the adapter's header are of backbone {own[:12]}; this one is {backbone[:12]}; leave "
                "--backbone out"
            )
        return cls(mean=mean, variance=variance, count=count)


class Encoder:
    """Collects views and encodes them in small batches.

    Args:
        backbone: Without grafts.
        size: Side of the network input; None takes the backbone's own, at most 512.
    """

    def __init__(self, backbone: Backbone, size: int | None = None) -> None:
        """Nothing collected yet."""
        spec = backbone.spec
        self.backbone = backbone
        self.size = round_up(size or min(spec.native_size, LARGEST), spec.patch_size)
        self._waiting: list[Tensor] = []
        self._rows: list[Floats] = []

    def add(self, image: NDArray[np.float32]) -> None:
        """Add a view (3, h, w) in [0, 1]; missing pixels (NaN) become 0, as in training."""
        shown = torch.from_numpy(np.nan_to_num(image, nan=0.0))
        self._waiting.append(Fit(source=(image.shape[1], image.shape[2]), size=self.size).image(shown))
        if len(self._waiting) == BATCH:
            self._encode()

    def rows(self) -> Floats:
        """(n, C) features of all views so far, in their order."""
        self._encode()
        return np.concatenate(self._rows) if self._rows else np.zeros((0, self.backbone.spec.neck_channels))

    @torch.no_grad()
    def _encode(self) -> None:
        if self._waiting:
            device = next(self.backbone.parameters()).device
            neck = self.backbone.encode(torch.stack(self._waiting).to(device)).neck
            self._rows.append(neck.double().mean(dim=(2, 3)).cpu().numpy())
            self._waiting = []
