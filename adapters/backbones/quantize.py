"""The frozen encoder in int8, for inference on a CPU: :func:`quantize` replaces its linear layers.

A weight row w_j becomes int8 with a scale of its own, and so does every token x_i when it arrives; products are summed
in int32, exactly, and scaled back once:

    y_ij = s_i t_j (sum_k X_ik W_jk) + b_j,    X_i = round(x_i / s_i),  s_i = max |x_i| / 127,  W and t likewise

Since each token has its own scale, the answer for an image does not depend on what else is in the batch. Attention,
norms, neck, prompt encoder and mask decoder stay in float32. docs/speed.md says what it gains and costs.

Source:
    Symmetric quantisation per token and per output channel: LLM.int8(), arXiv:2208.07339, vector-wise quantisation.
"""

import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.hf import FROZEN_MARK, HFSamBackbone
from samgraft.errors import ConfigError

LEVELS = 127
"""Largest int8 value that is used, on both sides of zero."""
ROWS = 1024
"""Tokens that are multiplied together: their int32 sums then stay in the cache."""
PRECISIONS = ("int8",)
READS_WEIGHT = "_samgraft_reads_weight"
"""Attribute of a wrapper that computes with the weight of its frozen layer, not only with what that layer gives."""


class Int8Linear(nn.Module):
    """A frozen linear layer with int8 weights; tokens are quantised as they arrive.

    Attributes:
        weight: (in, out) int8; transposed against ``nn.Linear``, as the product wants it.
        scale: (out,) float32, value of one step of each column.
        bias: (out,) float32, or None.
    """

    weight: nn.Parameter
    scale: Tensor
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear) -> None:
        """Quantise the weight of ``linear``, which is only read."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        rows, scale = to_int8(linear.weight.detach().float())
        self.weight = nn.Parameter(rows.T.contiguous(), requires_grad=False)
        self.register_buffer("scale", scale[:, 0])
        bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) float to (..., out).

        Raises:
            ConfigError: a gradient would have to pass, which int8 cannot carry.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise ConfigError(
                "a gradient would have to pass a layer that is quantised to int8; train on the backbone in float32 and "
                "quantise afterwards, or train only parts behind the encoder"
            )
        flat = x.reshape(-1, self.in_features)
        out = x.new_empty(len(flat), self.out_features)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        scale = self.scale.to(x.dtype)
        for rows, part in zip(flat.split(ROWS), out.split(ROWS), strict=True):
            tokens, steps = to_int8(rows)
            torch.mul(torch._int_mm(tokens, self.weight), steps, out=part)
            if bias is None:
                part.mul_(scale)
            else:
                torch.addcmul(bias, part, scale, out=part)
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes, as ``nn.Linear`` prints them."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, int8"


def to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of ``x`` (n, k) as int8 in -127..127, and the value of one step of each row (n, 1). Zero stays zero."""
    step = x.abs().amax(dim=1, keepdim=True).div_(LEVELS)
    return (x / step.clamp_min(torch.finfo(x.dtype).tiny)).round_().to(torch.int8), step


def quantize(backbone: HFSamBackbone, precision: str = "int8") -> HFSamBackbone:
    """Replace the linear layers of the frozen encoder by int8 ones, in place; this cannot be undone.

    ``weights_hash`` stays that of the weights that were loaded, so adapters trained on them still load. LoRA has to be
    attached first; the frozen layer inside its wrapper is then quantised, and the low-rank part stays in float32. What
    is attached later may only use other insertion points. Features can be computed and parts behind the encoder
    trained; a gradient through a quantised layer is refused.

    Args:
        backbone: In float32, on the CPU.
        precision: "int8".

    Returns:
        ``backbone``.

    Raises:
        ConfigError: another precision, dtype or device; grafts are merged, train copies of linear layers or need the
            frozen weights; it is quantised already; or the processor's int8 product is not exact. Nothing was changed.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    _check(backbone)
    layers = backbone.sam.vision_encoder.layers
    found = [
        (parent, name, child)
        for parent in layers.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and FROZEN_MARK in child.__dict__
    ]
    trained = [linear for _, _, linear in found if any(parameter.requires_grad for parameter in linear.parameters())]
    if trained:
        raise ConfigError(
            f"a graft trains copies of {len(trained)} linear layers of {backbone.spec.name!r} itself (bias, full), "
            "which cannot be rounded and given back; stay in float32"
        )
    if any(READS_WEIGHT in parent.__dict__ for parent, _, _ in found):
        raise ConfigError(
            f"a graft on backbone {backbone.spec.name!r} computes with the weights of frozen layers (DoRA does), which "
            "int8 would replace; detach it, or stay in float32"
        )
    for parent, name, linear in found:
        small = Int8Linear(linear)
        small.__dict__[FROZEN_MARK] = True
        setattr(parent, name, small.train(False))
        linear.register_parameter("weight", None)  # grafts may still point to it: free the memory, and fail if used
    backbone.quantized = precision
    return backbone


def _check(backbone: HFSamBackbone) -> None:
    name, weight = backbone.spec.name, backbone.sam.vision_encoder.patch_embed.projection.weight
    if backbone.quantized:
        raise ConfigError(f"backbone {name!r} is quantised already; load it again for a fresh one")
    if backbone.merged:
        raise ConfigError(
            f"grafts are merged into backbone {name!r}; unmerge() first, and they stay beside the int8 layers"
        )
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise ConfigError(
            f"backbone {name!r} is in {weight.dtype} on {weight.device}; int8 needs torch.float32 on the CPU to begin "
            "with; elsewhere use backbone.to(torch.bfloat16)"
        )
    if not exact_product():
        raise ConfigError(
            "the int8 product of this processor saturates, so results would be wrong; stay in float32 on this machine"
        )


def exact_product() -> bool:
    """Whether int8 products are summed without saturation here (old processors add pairs in 16 bits)."""
    extreme = torch.full((32, 256), LEVELS, dtype=torch.int8)
    expected = 256 * LEVELS**2
    plus, minus = torch._int_mm(extreme, extreme.T.contiguous()), torch._int_mm(extreme, -extreme.T.contiguous())
    return bool((plus == expected).all()) and bool((minus == -expected).all())
