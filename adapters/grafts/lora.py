"""LoRA on the encoder: q/k/v slices of the fused projection, or whole linear layers, through peft.

The weight W of a frozen layer becomes W + s B A with A (r, in), B (out, r), s = alpha / r (alpha / sqrt(r) with
rslora).
B starts at zero, so the output at step 0 is the frozen one. Targets "q" and "v" (SAMed) give each slice its own A; the
target "qkv" adapts the fused matrix with one A, which has as many parameters and spans another subspace.

Source:
    LoRA, arXiv:2106.09685, eq. 3; slices as in SAMed, arXiv:2304.13785; rank-stabilised scale, arXiv:2312.03732.
"""

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import nn

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.config import check_choice, check_positive
from samgraft.adapters.grafts.base import SITE_LABELS, GraftConfig, SiteGraft, select_blocks, site_list
from samgraft.adapters.grafts.peft_linear import LoraOptions, MergedWeights, SliceLora, WrappedLinears, find_linears
from samgraft.errors import ConfigError

SLICES = ("q", "k", "v")
LINEARS = {"qkv": r"attn\.qkv", "proj": r"attn\.proj", "lin1": r"mlp\.lin1", "lin2": r"mlp\.lin2"}
"""Target -> path below a block."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig(GraftConfig):
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
        check_lora(self.method, self.targets, (*SLICES, *LINEARS), self.rank, self.alpha, self.dropout)
        slices = [target for target in self.targets if target in SLICES]
        if slices and "qkv" in self.targets:
            raise ConfigError(
                f"lora: targets {list(self.targets)} adapt {slices} twice; name either 'qkv' or the slices"
            )

    @property
    def options(self) -> LoraOptions:
        """Rank and scale for peft."""
        return lora_options(self.rank, self.alpha, self.dropout, self.rslora)

    def build(self, backbone: Backbone) -> "LoraGraft":
        """Create the low-rank parts for ``backbone``."""
        return LoraGraft(self, backbone)


class LoraGraft(SiteGraft):
    """Slices at the site "qkv" plus wrapped linear layers of the same blocks."""

    def __init__(self, config: LoraConfig, backbone: Backbone) -> None:
        """Build the parts; ``backbone`` is only read."""
        super().__init__(config)
        chosen = select_blocks(config.blocks, backbone.spec.num_blocks)
        slices = tuple(target for target in SLICES if target in config.targets)
        if slices:
            like = next(backbone.parameters())
            for block in chosen:
                site_list(backbone, block, "qkv")
                self.place(block, "qkv", SliceLora(slices, backbone.spec.embed_dim, config.options, like))
            self.points = (SITE_LABELS["qkv"].replace("q/k/v", "/".join(slices)),)
        self._fused = {block: _block_linears(backbone, block, "qkv") for block in chosen} if slices else {}
        wrapped = {}
        for target in (target for target in LINEARS if target in config.targets):
            for block in chosen:
                path, linear = _block_linears(backbone, block, target)
                wrapped[path] = (f"{block}_{target}", linear)
            self.points = (
                *self.points,
                "I2 fused qkv" if target == "qkv" else f"{'I3' if target == 'proj' else 'I7'} {target}",
            )
        self.linears = WrappedLinears(wrapped, config.options)
        self._merged = MergedWeights()

    def claims(self) -> frozenset[str]:
        """Paths of the wrapped layers."""
        return self.linears.paths

    def install(self, backbone: Backbone) -> None:
        """Fill the sites and wrap the layers."""
        super().install(backbone)
        self.linears.install(backbone)

    def remove(self, backbone: Backbone) -> None:
        """Empty the sites and unwrap the layers."""
        super().remove(backbone)
        self.linears.remove(backbone)

    def merge(self, backbone: Backbone) -> None:
        """Add B A to the frozen weights; sites and wrappers step aside."""
        for block, _, module in self.placements():
            self._merged.add(self._fused[block][1], cast(SliceLora, module).delta_weight())
        for linear, delta in self.linears.deltas().values():
            self._merged.add(linear, delta)
        self.remove(backbone)

    def unmerge(self, backbone: Backbone) -> None:
        """Put the original weights and the parts back."""
        if len(self._merged):
            self._merged.restore()
            self.install(backbone)


def check_lora(
    owner: str, targets: tuple[str, ...], known: tuple[str, ...], rank: int, alpha: float | None, dropout: float
) -> None:
    """Check options that LoRA on the encoder and on the decoder share.

    Raises:
        ConfigError: no or unknown or repeated targets, a rank below 1, alpha not above 0, dropout outside [0, 1).
    """
    if not targets or len(set(targets)) < len(targets):
        raise ConfigError(f"{owner}: targets are {list(targets)}; name at least one of {', '.join(known)}, each once")
    for target in targets:
        check_choice(owner, "target", target, known)
    if rank < 1:
        raise ConfigError(f"{owner}: rank is {rank}; expected at least 1")
    if alpha is not None:
        check_positive(owner, "alpha", alpha)
    if not 0 <= dropout < 1:
        raise ConfigError(f"{owner}: dropout is {dropout}; expected a probability in [0, 1)")


def lora_options(rank: int, alpha: float | None, dropout: float, rslora: bool) -> LoraOptions:
    """Resolve ``alpha=None`` to a scale of 1."""
    if alpha is None:
        alpha = rank**0.5 if rslora else float(rank)
    return LoraOptions(rank=rank, alpha=alpha, dropout=dropout, rslora=rslora)


def _block_linears(backbone: Backbone, block: int, target: str) -> tuple[str, nn.Linear]:
    found = find_linears(backbone, rf"vision_encoder\.layers\.{block}\.{LINEARS[target]}$")
    return next(iter(found.items()))
