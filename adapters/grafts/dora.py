"""DoRA on the encoder, through peft: LoRA for the direction of a weight's rows, and a trained length for each row.

    W' = diag(m / |W + s B A|) (W + s B A)      m (out,), |.|: length of each row, held constant in the backward pass

m starts at the lengths of the rows of W and B at zero, so W' = W at step 0, and W' takes the place of W when merged.
(r (in + out) + out) parameters per layer: 4 r d + 3 d for the fused qkv.

Source:
    DoRA, arXiv:2402.09353, equation 5; the constant length: section 4.3. The layer is peft's (``use_dora``).
Deviations:
    Whole layers only. Slices of the fused qkv see what attention reads and add to what it gives; a length rescales
    what the frozen weight gives too, and peft computes it from the weight of a whole layer.
"""

from dataclasses import dataclass
from typing import ClassVar

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.grafts.lora import PeftConfig, PeftGraft, lora_options
from samgraft.adapters.grafts.targets import LINEARS, SLICES, check_lora
from samgraft.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DoraConfig(PeftConfig):
    """DoRA on whole linear layers of encoder blocks."""

    method: ClassVar[str] = "dora"
    known: ClassVar[tuple[str, ...]] = tuple(LINEARS)
    targets: tuple[str, ...] = ("qkv",)
    """Any of "qkv" (fused), "proj", "lin1", "lin2"."""
    rank: int = 4
    """Rank r of every update."""
    alpha: float | None = None
    """Numerator of the scale; None means a scale of 1."""
    dropout: float = 0.0
    """Probability of dropping an input while training, in [0, 1)."""
    rslora: bool = False
    """Divide alpha by sqrt(rank) instead of rank."""

    def __post_init__(self) -> None:
        """Check targets and numbers."""
        slices = [target for target in self.targets if target in SLICES]
        if slices:
            raise ConfigError(
                f"dora: targets name {slices}; DoRA rescales what a frozen layer gives, and a slice of the fused qkv "
                "can only be added to; name 'qkv', or use lora, which adapts slices"
            )
        super().__post_init__()
        check_lora(self.method, self.targets, self.known, self.rank, self.alpha, self.dropout)

    def build(self, backbone: Backbone) -> "DoraGraft":
        """Create the parts for ``backbone``."""
        return DoraGraft(self, backbone)


class DoraGraft(PeftGraft):
    """Wrapped linear layers with a length per row."""

    merge_first: ClassVar[bool] = True
    compile_refusal: ClassVar[str] = "peft asks the frozen weight's class for its module, which no graph can hold"

    def __init__(self, config: DoraConfig, backbone: Backbone) -> None:
        """Build the parts; ``backbone`` is only read."""
        options = lora_options(config.rank, config.alpha, config.dropout, config.rslora, dora=True)
        super().__init__(config, backbone, options.wrap)
