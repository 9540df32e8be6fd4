"""Neck affine: every channel of the encoder's output is scaled and shifted, nothing else.

    y = (1 + s) * neck(x) + b        s, b: one number per channel (C,), both zero at step 0

2 C parameters (512 with SAM). The last norm of the neck takes it over when merged: its weight becomes (1 + s) w, its
bias (1 + s) b_0 + b. It lies behind all frozen blocks, so the encoder runs once however often it is changed: what
test-time methods move (``samgraft.recipes.test_time``), and a very small graft of its own.

Source:
    A scale and a shift per channel as in SSF, arXiv:2210.08823, section 3, at the one place SSF does not have.
Deviations:
    s is kept as the difference from 1, so that zeros are the frozen model. ``blocks`` has no meaning here and only
    "all" is taken.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.grafts.base import Graft, GraftConfig, select_blocks
from samgraft.adapters.grafts.peft_linear import MergedWeights
from samgraft.errors import ConfigError, NoMatchError

LAST_NORM = "vision_encoder.neck.layer_norm2"
"""End of the path of the norm that the neck ends with."""


@dataclass(frozen=True, kw_only=True)
class NeckAffineConfig(GraftConfig):
    """A scale and a shift per channel of the neck."""

    method: ClassVar[str] = "neck_affine"

    def build(self, backbone: Backbone) -> "NeckAffineGraft":
        """Create the numbers for ``backbone``.

        Raises:
            NoMatchError: the backbone has no insertion point at its neck, or ``blocks`` names a block it does not have.
            ConfigError: ``blocks`` chooses some of the blocks.
        """
        select_blocks(self.blocks, backbone.spec.num_blocks)
        if self.blocks != "all":
            raise ConfigError(f"neck_affine: blocks is {self.blocks!r}, but it lies behind all of them; leave it out")
        return NeckAffineGraft(self, backbone)


class ChannelAffine(nn.Module):
    """What is added to (B, C, h, w) so that each channel is scaled by 1 + ``scale`` and shifted by ``shift``.

    Args:
        channels: C.
        like: A tensor with the dtype and device to use.

    Attributes:
        scale: (C,).
        shift: (C,).
    """

    def __init__(self, channels: int, like: Tensor) -> None:
        """Start at zero."""
        super().__init__()
        self.scale = nn.Parameter(like.new_zeros(channels))
        self.shift = nn.Parameter(like.new_zeros(channels))

    def forward(self, x: Tensor, context: object = None) -> Tensor:
        """The change (B, C, h, w), in the type of ``x``."""
        del context
        return torch.addcmul(self.shift[:, None, None], x, self.scale[:, None, None]).to(x.dtype)


class NeckAffineGraft(Graft):
    """One :class:`ChannelAffine` at I8."""

    def __init__(self, config: NeckAffineConfig, backbone: Backbone) -> None:
        """Build it; ``backbone`` is only read."""
        super().__init__(config, ("I8 neck",))
        self._norms = (_last_norm(backbone),)  # a plain attribute would make it a part of the graft
        self.affine = ChannelAffine(backbone.spec.neck_channels, next(backbone.parameters()))
        self._merged = MergedWeights()

    def claims(self) -> frozenset[str]:
        """Changes at the neck add up, so nothing is claimed."""
        return frozenset()

    def install(self, backbone: Backbone) -> None:
        """Append it to the points of the neck."""
        _points(backbone).append(self.affine)

    def remove(self, backbone: Backbone) -> None:
        """Delete it there."""
        points = _points(backbone)
        for index in [i for i, other in enumerate(points) if other is self.affine]:
            del points[index]

    @torch.no_grad()
    def merge(self, backbone: Backbone) -> None:
        """Fold it into the last norm of the neck, computed in float32 or better."""
        norm = self._norms[0]
        weight, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
        wide = torch.promote_types(weight.dtype, torch.float32)
        factor, shift = 1 + self.affine.scale.to(wide), self.affine.shift.to(wide)
        self._merged.put(norm, {"weight": factor * weight.to(wide), "bias": factor * bias.to(wide) + shift})
        self.remove(backbone)

    def unmerge(self, backbone: Backbone) -> None:
        """Put the norm's own tensors and the graft back."""
        if len(self._merged):
            self._merged.restore()
            self.install(backbone)


def _points(backbone: Backbone) -> nn.ModuleList:
    found = getattr(getattr(backbone, "encoder_sites", None), "neck", None)
    if not isinstance(found, nn.ModuleList):
        raise NoMatchError(f"backbone {backbone.spec.name!r} has no insertion point at its neck; nothing was changed")
    return found


def _last_norm(backbone: Backbone) -> nn.Module:
    _points(backbone)
    found: dict[str, nn.Module] = dict(backbone.named_modules())
    for path, module in found.items():
        if path.endswith(LAST_NORM):
            return module
    raise NoMatchError(f"the neck of {backbone.spec.name!r} does not end with {LAST_NORM!r}; nothing was changed")
