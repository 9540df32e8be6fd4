"""LoRA in the mask decoder: attention and MLP of the two-way transformer through peft, and the upscaling (point I9).

    linear     W x + s B A x
    upscaling  W x + s B(A(x))      A: 1 x 1 convolution to r channels, B: transposed convolution, both without bias

The encoder stays as it is, so its features can be cached; the decoder learns to read them for the task. B starts at
zero, so the output at step 0 is the frozen one, and both forms fold into the frozen weights exactly.

Source:
    LoRA, arXiv:2106.09685; on the decoder as in the small variant of SAMed, arXiv:2304.13785.
Deviations:
    peft refuses transposed convolutions, so the form above is this project's: the frozen kernel (C, C', 2, 2), read as
    a matrix (C, 4 C'), gets an update of rank r.
"""

import re
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.grafts.base import GraftConfig
from samgraft.adapters.grafts.lora import lora_options
from samgraft.adapters.grafts.peft_linear import LoraOptions, find_linears
from samgraft.adapters.grafts.targets import check_lora
from samgraft.adapters.grafts.wrapping import Wrapped, WrappedGraft, Wrapper
from samgraft.errors import NoMatchError

LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj", "lin1", "lin2")
UPSCALE = "upscale"


@dataclass(frozen=True, kw_only=True)
class DecoderLoraConfig(GraftConfig):
    """LoRA on self and cross attention, MLP and upscaling of the mask decoder."""

    method: ClassVar[str] = "decoder_lora"
    part: ClassVar[Literal["encoder", "decoder"]] = "decoder"
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Any of "q_proj", "k_proj", "v_proj", "out_proj" (attention), "lin1", "lin2" (MLP), "upscale"."""
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
        check_lora(self.method, self.targets, (*LINEARS, UPSCALE), self.rank, self.alpha, self.dropout)

    def build(self, backbone: Backbone) -> "DecoderLoraGraft":
        """Create the low-rank parts for the decoder of ``backbone``."""
        return DecoderLoraGraft(self, backbone)


class UpscaleLora(Wrapper):
    """A transposed convolution whose kernel is as large as its stride, with a low-rank update.

    Args:
        base_layer: (C, h, w) to (C', 2 h, 2 w).
        options: Rank, scale and dropout.
    """

    def __init__(self, base_layer: nn.ConvTranspose2d, options: LoraOptions) -> None:
        """Create A, Kaiming-uniform as peft's, and B, zero."""
        super().__init__(base_layer)
        kernel = cast(tuple[int, int], base_layer.kernel_size)
        stride = cast(tuple[int, int], base_layer.stride)
        like = base_layer.weight
        with torch.device(like.device):
            self.lora_A = nn.Conv2d(base_layer.in_channels, options.rank, 1, bias=False)
            self.lora_B = nn.ConvTranspose2d(options.rank, base_layer.out_channels, kernel, stride, bias=False)
        self.lora_dropout = nn.Dropout(options.dropout)
        self.scale = options.alpha / (options.rank**0.5 if options.rslora else options.rank)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=5**0.5)
        nn.init.zeros_(self.lora_B.weight)
        self.lora_A.to(like.dtype)
        self.lora_B.to(like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, h, w) to (n, C', 2 h, 2 w)."""
        frozen: Tensor = self.base_layer(x)
        changed: Tensor = frozen + self.scale * self.lora_B(self.lora_A(self.lora_dropout(x)))
        return changed

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """The kernel plus s A^T B, computed in float32 or better."""
        weight = self.base_layer.get_parameter("weight")
        wide = torch.promote_types(weight.dtype, torch.float32)
        down, up = self.lora_A.weight.to(wide)[:, :, 0, 0], self.lora_B.weight.to(wide)  # (r, C), (r, C', 2, 2)
        return {"weight": weight.to(wide) + self.scale * torch.einsum("rc,roij->coij", down, up)}


class DecoderLoraGraft(WrappedGraft):
    """Wrapped layers of the mask decoder."""

    def __init__(self, config: DecoderLoraConfig, backbone: Backbone) -> None:
        """Build the parts; ``backbone`` is only read."""
        options = lora_options(config.rank, config.alpha, config.dropout, config.rslora)
        wrappers: dict[str, tuple[str, nn.Module]] = {}
        linears = [target for target in config.targets if target in LINEARS]
        if linears:
            found = find_linears(backbone, rf"mask_decoder\.transformer\..*\.({'|'.join(linears)})$")
            for path, linear in found.items():
                wrappers[path] = (path.partition("mask_decoder.transformer.")[2], options.wrap(linear))
        if UPSCALE in config.targets:
            for path, convolution in find_upscaling(backbone).items():
                wrappers[path] = (path.partition("mask_decoder.")[2], UpscaleLora(convolution, options))
        super().__init__(config, (f"I9 decoder {'/'.join(config.targets)}",), Wrapped(backbone, wrappers))


def find_upscaling(backbone: Backbone) -> dict[str, nn.ConvTranspose2d]:
    """Transposed convolutions of the mask decoder, by path.

    Raises:
        NoMatchError: there are none.
    """
    found = {
        path: module
        for path, module in backbone.named_modules()
        if isinstance(module, nn.ConvTranspose2d) and re.search(r"mask_decoder\.upscale_conv\d$", path)
    }
    if not found:
        raise NoMatchError(
            f"the decoder of {backbone.spec.name!r} has no transposed convolution upscale_conv1; nothing was changed"
        )
    return found
