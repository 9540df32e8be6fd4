"""LoRA on the encoder: q/k/v slices of the fused projection, or whole linear layers, through peft.

The weight W of a frozen layer becomes W + s B A with A (r, in), B (out, r), s = alpha / r (alpha / sqrt(r) with
rslora).
B starts at zero, so the output at step 0 is the frozen one. Targets "q" and "v" (SAMed) give each slice its own A; the
target "qkv" adapts the fused matrix with one A, which has as many parameters and spans another subspace.

Source:
    LoRA, arXiv:2106.09685, eq. 3; slices as in SAMed, arXiv:2304.13785; rank-stabilised scale, arXiv:2312.03732.
Deviations:
    ``alpha=None`` means a scale of 1, as in SAMed. AdaLoRA (arXiv:2303.10512) is left out: it takes ranks away on a
    schedule that the training loop would have to drive, and what is left at the end is this method.
"""

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import nn

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.grafts.base import SITE_LABELS, GraftConfig, select_blocks
from samgraft.adapters.grafts.fused import FusedGraft
from samgraft.adapters.grafts.peft_linear import LoraOptions, SliceDeltas, Wrap
from samgraft.adapters.grafts.targets import LINEARS, POINTS, SLICES, block_linear, check_lora, check_targets
from samgraft.adapters.grafts.wrapping import Wrapped
from samgraft.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PeftConfig(GraftConfig):
    """What every method of the family has: layers of peft around linear layers of blocks, or beside slices of them."""

    known: ClassVar[tuple[str, ...]] = (*SLICES, *LINEARS)
    """The targets that the method can have."""
    targets: tuple[str, ...] = ("q", "v")
    """Any of "q", "k", "v" (slices), "qkv" (fused), "proj", "lin1", "lin2". "qkv" excludes the slices."""

    def __post_init__(self) -> None:
        """Check targets."""
        super().__post_init__()
        check_targets(self.method, self.targets, self.known)
        slices = [target for target in self.targets if target in SLICES]
        if slices and "qkv" in self.targets:
            raise ConfigError(
                f"{self.method}: targets {list(self.targets)} adapt {slices} twice; name either 'qkv' or the slices"
            )


@dataclass(frozen=True, kw_only=True)
class LoraConfig(PeftConfig):
    """LoRA on encoder blocks."""

    method: ClassVar[str] = "lora"
    targets: tuple[str, ...] = ("q", "v")
    """Any of "q", "k", "v" (slices), "qkv" (fused), "proj", "lin1", "lin2". "qkv" excludes the slices."""
    rank: int = 4
    """Rank r of every update."""
    alpha: float | None = None
    """Numerator of the scale; None means ``rank``, that is a scale of 1 as in SAMed."""
    dropout: float = 0.0
    """Probability of dropping an input of A while training, in [0, 1)."""
    rslora: bool = False
    """Divide alpha by sqrt(rank) instead of rank."""

    def __post_init__(self) -> None:
        """Check targets and numbers."""
        super().__post_init__()
        check_lora(self.method, self.targets, self.known, self.rank, self.alpha, self.dropout)

    @property
    def options(self) -> LoraOptions:
        """Rank and scale for peft."""
        return lora_options(self.rank, self.alpha, self.dropout, self.rslora)

    def build(self, backbone: Backbone) -> "PeftGraft":
        """Create the low-rank parts for ``backbone``."""
        return PeftGraft(self, backbone, self.options.wrap)


class PeftGraft(FusedGraft):
    """Slices at the site "qkv" plus wrapped linear layers of the same blocks."""

    def __init__(self, config: PeftConfig, backbone: Backbone, wrap: Wrap) -> None:
        """Build the parts; ``backbone`` is only read.

        Args:
            config: Blocks and targets.
            backbone: Where they are.
            wrap: Makes the peft layer around a linear layer.
        """
        super().__init__(config)
        chosen = select_blocks(config.blocks, backbone.spec.num_blocks)
        slices = tuple(target for target in SLICES if target in config.targets)
        if slices:
            like = next(backbone.parameters())
            for block in chosen:
                self.place_slices(backbone, block, SliceDeltas(slices, backbone.spec.embed_dim, wrap, like))
            self.points = (SITE_LABELS["qkv"].replace("q/k/v", "/".join(slices)),)
        wrapped = {}
        for target in (target for target in LINEARS if target in config.targets):
            for block in chosen:
                path, linear = block_linear(backbone, block, target)
                wrapped[path] = (f"{block}_{target}", cast(nn.Module, wrap(linear)))
            self.points = (*self.points, POINTS[target])
        self.linears = Wrapped(backbone, wrapped)

    def claims(self) -> frozenset[str]:
        """Paths of the wrapped layers."""
        return self.linears.paths

    def install(self, backbone: Backbone) -> None:
        """Fill the sites and wrap the layers."""
        super().install(backbone)
        self.linears.install()

    def remove(self, backbone: Backbone) -> None:
        """Empty the sites and unwrap the layers."""
        super().remove(backbone)
        self.linears.remove()

    def merge(self, backbone: Backbone) -> None:
        """Fold the parts into the frozen weights; sites and wrappers step aside."""
        self.linears.merge(self._merged)
        super().merge(backbone)


def lora_options(rank: int, alpha: float | None, dropout: float, rslora: bool, *, dora: bool = False) -> LoraOptions:
    """Resolve ``alpha=None`` to a scale of 1."""
    if alpha is None:
        alpha = rank**0.5 if rslora else float(rank)
    return LoraOptions(rank=rank, alpha=alpha, dropout=dropout, rslora=rslora, dora=dora)
