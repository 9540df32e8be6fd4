"""Grafts that add a linear change to slices of the fused q/k/v projection, which its weight can take over."""

from typing import Protocol, cast

from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.grafts.base import GraftConfig, SiteGraft, site_list
from samgraft.adapters.grafts.peft_linear import MergedWeights
from samgraft.adapters.grafts.targets import block_linear


class LinearSlices(Protocol):
    """A module for the site "qkv" that is linear in its input."""

    def delta_weight(self) -> Tensor:
        """(3D, D): what it adds to the fused weight."""


class FusedGraft(SiteGraft):
    """Modules at the site "qkv" that merge into the weight of the projection."""

    def __init__(self, config: GraftConfig) -> None:
        """Start empty; call :meth:`place_slices` for every block."""
        super().__init__(config)
        self._fused: dict[int, nn.Linear] = {}
        self._merged = MergedWeights()

    def place_slices(self, backbone: Backbone, block: int, module: nn.Module) -> None:
        """Plan ``module``, a :class:`LinearSlices`, for ``block``; ``backbone`` is only read."""
        site_list(backbone, block, "qkv")
        self.place(block, "qkv", module)
        self._fused[block] = block_linear(backbone, block, "qkv")[1]

    def merge(self, backbone: Backbone) -> None:
        """Add each change to its frozen weight; the parts step aside."""
        for block, _, module in self.placements():
            self._merged.add(self._fused[block], cast(LinearSlices, module).delta_weight())
        self.remove(backbone)

    def unmerge(self, backbone: Backbone) -> None:
        """Put the original weights and the parts back."""
        if len(self._merged):
            self._merged.restore()
            self.install(backbone)
