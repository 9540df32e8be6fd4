"""FacT: one low-rank update for all blocks, of which only a small core belongs to each block and slice.

    dq, dk or dv of block b = s V drop(S (U x))      U (r, d) and V (d, r) shared by all blocks and slices
    form "tt" (tensor train)   S (r, r) learned for every block and slice
    form "tk" (Tucker)         S = sum_k p_k C[:, :, k], core C (r, r, r) shared, p (r,) for every block and slice

V starts at zero, so the output at step 0 is the frozen one. Parameters for n slices and L blocks: 2 d r + n L r^2 (tt),
2 d r + r^3 + n L r (tk); with q and v in all blocks at r = 32, tt has 73,728 in SAM B, 114,688 in L and 147,456 in H.

Source:
    FacT, arXiv:2212.03145, section 3; in SAM on q and v at rank 32 as in MA-SAM, arXiv:2309.08842. Initial
    values of the Tucker form from PETL-ViT, FacT/fact_tk.py; dropout 0.1 and s = 1 from both.
Deviations:
    The projection after attention and the MLP, which FacT also updates, stay frozen, as in MA-SAM. The 3D adapters that
    MA-SAM trains beside it are a method of their own. ``init="published"`` is the same as "identity": V is zero there.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.config import check_choice, check_positive
from samgraft.adapters.grafts.base import SITE_LABELS, GraftConfig, select_blocks
from samgraft.adapters.grafts.fused import FusedGraft
from samgraft.adapters.grafts.targets import SLICES, check_lora


@dataclass(frozen=True, kw_only=True)
class FactConfig(GraftConfig):
    """FacT on the attention input of encoder blocks."""

    method: ClassVar[str] = "fact"
    form: Literal["tt", "tk"] = "tt"
    """"tt": a matrix per block and slice. "tk": a vector per block and slice, and one more tensor shared by all."""
    targets: tuple[str, ...] = ("q", "v")
    """Any of "q", "k", "v"."""
    rank: int = 32
    """Rank r of every update."""
    scale: float = 1.0
    """Factor s on every update."""
    dropout: float = 0.1
    """Probability of dropping an input of V while training, in [0, 1)."""

    def __post_init__(self) -> None:
        """Check choices and numbers."""
        super().__post_init__()
        check_choice(self.method, "form", self.form, ("tt", "tk"))
        check_lora(self.method, self.targets, SLICES, self.rank, None, self.dropout)
        check_positive(self.method, "scale", self.scale)

    def build(self, backbone: Backbone) -> "FactGraft":
        """Create shared and own parts for ``backbone``."""
        return FactGraft(self, backbone)


class SharedFactors(nn.Module):
    """What all blocks and slices have in common.

    Attributes:
        u: Linear d to r, without bias, PyTorch's default initialisation.
        v: Linear r to d, without bias, zero.
        core: (r, r, r) of the Tucker form, Xavier uniform; None for a tensor train.
    """

    core: nn.Parameter | None

    def __init__(self, embed_dim: int, rank: int, *, tucker: bool) -> None:
        """Create the factors."""
        super().__init__()
        self.u = nn.Linear(embed_dim, rank, bias=False)
        self.v = nn.Linear(rank, embed_dim, bias=False)
        nn.init.zeros_(self.v.weight)
        core = nn.init.xavier_uniform_(torch.empty(rank, rank, rank)) if tucker else None
        self.register_parameter("core", None if core is None else nn.Parameter(core))


class FactSlices(nn.Module):
    """The update of one block; a module for the site "qkv". The shared factors are used, not registered.

    Args:
        shared: Factors of all blocks.
        own: Slice -> (r, r) of a tensor train, or (r,) of the Tucker form.
        scale: Factor on the update.
        dropout: Probability of dropping an input of V.
    """

    def __init__(self, shared: SharedFactors, own: dict[str, Tensor], *, scale: float, dropout: float) -> None:
        """Hold the own parts."""
        super().__init__()
        self._shared = (shared,)  # in a tuple: registered in every block, its keys would be stored once per block
        self.own = nn.ParameterDict({name: nn.Parameter(value) for name, value in own.items()})
        self.drop = nn.Dropout(dropout)
        self.scale = scale

    def forward(self, x: Tensor, context: object) -> tuple[Tensor | None, ...]:
        """Deltas (dq, dk, dv) for the attention input ``x`` (..., D); None where a slice has none."""
        del context
        inner = self._shared[0].u(x)
        return tuple(self._delta(name, inner) if name in self.own else None for name in SLICES)

    def _delta(self, name: str, inner: Tensor) -> Tensor:
        delta: Tensor = self._shared[0].v(self.drop(functional.linear(inner, self.middle(name))))
        return delta if self.scale == 1.0 else self.scale * delta

    def middle(self, name: str) -> Tensor:
        """S (r, r) of one slice."""
        own, core = cast(Tensor, self.own[name]), self._shared[0].core
        return own if core is None else core @ own

    def delta_weight(self) -> Tensor:
        """(3D, D): what the slices add to the fused weight; computed in float32 or better."""
        u, v = self._shared[0].u.weight, self._shared[0].v.weight
        wide = torch.promote_types(u.dtype, torch.float32)
        none = u.new_zeros(len(v), len(v), dtype=wide)
        parts = [
            self.scale * (v.to(wide) @ self.middle(name).to(wide) @ u.to(wide)) if name in self.own else none
            for name in SLICES
        ]
        return torch.cat(parts).detach()


class FactGraft(FusedGraft):
    """Shared factors, and a module at the site "qkv" of every chosen block."""

    def __init__(self, config: FactConfig, backbone: Backbone) -> None:
        """Build the parts; ``backbone`` is only read."""
        super().__init__(config)
        like, rank, tucker = next(backbone.parameters()), config.rank, config.form == "tk"
        chosen = select_blocks(config.blocks, backbone.spec.num_blocks)
        slices = [name for name in SLICES if name in config.targets]
        shape = (rank,) if tucker else (rank, rank)
        bound = math.sqrt(6 / (rank + len(slices) * len(chosen))) if tucker else 1 / math.sqrt(rank)
        with torch.device(like.device):
            self.shared = SharedFactors(backbone.spec.embed_dim, rank, tucker=tucker).to(like.dtype)
        for block in chosen:
            own = {name: like.new_empty(shape).uniform_(-bound, bound) for name in slices}
            part = FactSlices(self.shared, own, scale=config.scale, dropout=config.dropout)
            self.place_slices(backbone, block, part)
        self.points = (SITE_LABELS["qkv"].replace("q/k/v", "/".join(slices)),)
