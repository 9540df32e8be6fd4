"""LoRA on the attention layers of the mask decoder, through peft (insertion point I9).

The encoder stays as it is, so its features can be cached; the decoder learns to read them for the task.

Source:
    LoRA, arXiv:2106.09685; on the decoder as in the small variant of SAMed, arXiv:2304.13785.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.grafts.base import Graft, GraftConfig
from samgraft.adapters.grafts.lora import check_lora, lora_options
from samgraft.adapters.grafts.peft_linear import MergedWeights, WrappedLinears, find_linears

LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True, kw_only=True)
class DecoderLoraConfig(GraftConfig):
    """LoRA on self and cross attention of the mask decoder."""

    method: ClassVar[str] = "decoder_lora"
    part: ClassVar[Literal["encoder", "decoder"]] = "decoder"
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Any of "q_proj", "k_proj", "v_proj", "out_proj"."""
    rank: int = 4
    """Rank r of every update."""
    alpha: float | None = None
    """Numerator of the scale; None means a scale of 1."""
    dropout: float = 0.0
    """Probability of dropping an input of A while training, in [0, 1)."""
    rslora: bool = False
    """Divide alpha by sqrt(rank) instead of rank."""

    def __post_init__(self) -> None:
        """Check targets and numbers."""
        super().__post_init__()
        check_lora(self.method, self.targets, LINEARS, self.rank, self.alpha, self.dropout)

    def build(self, backbone: Backbone) -> "DecoderLoraGraft":
        """Create the low-rank parts for the decoder of ``backbone``."""
        return DecoderLoraGraft(self, backbone)


class DecoderLoraGraft(Graft):
    """Wrapped attention layers of the two-way transformer."""

    def __init__(self, config: DecoderLoraConfig, backbone: Backbone) -> None:
        """Build the parts; ``backbone`` is only read."""
        super().__init__(config, (f"I9 decoder {'/'.join(config.targets)}",))
        found = find_linears(backbone, rf"mask_decoder\.transformer\..*\.({'|'.join(config.targets)})$")
        names = {path: (path.partition("mask_decoder.transformer.")[2], linear) for path, linear in found.items()}
        self.linears = WrappedLinears(names, lora_options(config.rank, config.alpha, config.dropout, config.rslora))
        self._merged = MergedWeights()

    def claims(self) -> frozenset[str]:
        """Paths of the wrapped layers."""
        return self.linears.paths

    def install(self, backbone: Backbone) -> None:
        """Wrap the layers."""
        self.linears.install(backbone)

    def remove(self, backbone: Backbone) -> None:
        """Unwrap the layers."""
        self.linears.remove(backbone)

    def merge(self, backbone: Backbone) -> None:
        """Add B A to the frozen weights and unwrap."""
        for linear, delta in self.linears.deltas().values():
            self._merged.add(linear, delta)
        self.remove(backbone)

    def unmerge(self, backbone: Backbone) -> None:
        """Put the original weights and the wrappers back."""
        if len(self._merged):
            self._merged.restore()
            self.install(backbone)
