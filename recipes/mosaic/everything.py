"""Everything mode on a tile: all masks of its window, painted into one map, where the smaller one is on top."""

from dataclasses import asdict
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samgraft.adapters.backbones import load_backbone
from samgraft.adapters.backbones.base import Backbone
from samgraft.errors import ConfigError
from samgraft.recipes.engine.everything import EverythingConfig, automatic_masks
from samgraft.recipes.look import Look
from samgraft.recipes.mosaic.found import TileObjects
from samgraft.recipes.mosaic.gather import numbered
from samgraft.recipes.mosaic.infer import Source, TileInfer
from samgraft.recipes.mosaic.plan import Tile

Pixels = tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]
"""(3, h, w) in [0, 1]; where there is data; where there is data inside the area."""


class EverythingInfer(TileInfer):
    """Every object of a tile's window, without prompts and without an adapter.

    Args:
        source: The raster.
        look: Channels and scale, the same for the whole raster.
        backbone: Name, folder or file; or a backbone in memory, which cannot travel.
        config: What is asked and kept.
        size: Network size; None takes the native one.
        options: As for :class:`TileInfer`.

    Raises:
        ConfigError: a filter by form, which would judge parts of objects at seams.
    """

    def __init__(
        self,
        source: Source,
        look: Look,
        *,
        backbone: str | PathLike[str] | Backbone = "graft-tiny",
        config: EverythingConfig | None = None,
        size: int | None = None,
        **options: Any,
    ) -> None:
        """Load nothing yet."""
        super().__init__(source, **options)
        self.look, self.config, self.size = look, config or EverythingConfig(), size
        if self.config.shapes is not None:
            raise ConfigError(
                "objects of a mosaic are complete only after their tiles are joined; filter by form in the written "
                "file, or cut the raster"
            )
        self.backbone = backbone if isinstance(backbone, Backbone) else str(backbone)
        self._network: Backbone | None = None

    @property
    def network(self) -> Backbone:
        """The backbone, loaded once per process."""
        if self._network is None:
            self._network = self.backbone if isinstance(self.backbone, Backbone) else load_backbone(self.backbone)
        return self._network

    def describe(self) -> dict[str, Any]:
        """See :meth:`TileInfer.describe`."""
        return {
            "mode": "everything",
            "backbone": self.network.weights_hash(),
            "config": asdict(self.config),
            "size": self.size,
            "look": self.look.facts(),
        }

    def read(self, tile: Tile) -> Pixels | None:
        """Pixels of the window; None where nothing can be found."""
        raw, valid = self.scene.read_valid(tile.window, self.look.channels)
        known = self.known(tile.window, valid)
        if not known.any():
            return None
        seen = np.ascontiguousarray(self.look.apply(raw) * valid[None], dtype=np.float32)
        return seen, valid, known

    def find(self, tile: Tile, content: Pixels) -> TileObjects | None:
        """All masks, the smaller one on top."""
        pixels, valid, known = content
        image = torch.from_numpy(pixels)
        masks = automatic_masks(self.network, image, config=self.config, size=self.size, valid=valid, depth=0)
        scores = np.array([one.iou for one in masks.found], dtype=np.float32)
        return numbered(masks.labels(known).astype(np.int32), np.ones(len(scores), dtype=np.int32), scores)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was loaded.

        Raises:
            TypeError: the backbone is in memory and not in a file.
        """
        if isinstance(self.backbone, Backbone):
            raise TypeError("the backbone was given in memory")
        return super().__getstate__() | {"_network": None}
