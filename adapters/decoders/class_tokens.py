"""Class-token decoder: one learned token per class goes through the frozen two-way transformer; no prompt is needed.

The frozen mask decoder answers prompts; this one answers a fixed list of classes, background among them. Tokens
attend to
the image in the backbone's transformer (frozen, or a trainable copy); upscaling and hypernetwork start as copies of the
backbone's. Earlier encoder blocks and a small pyramid of the image itself add what the neck has lost, which matters for
thin structures and for a small backbone. Everything the backbone owns is read at call time and never stored here.

    neck + no-mask + taps + pyramid[patch]  ->  transformer(tokens)  ->  x2 (+pyramid)  ->  x2 (+pyramid)  [-> full
    size]
                                                  tokens -> hypernetwork -> weights, one per class; logits = weights .
                                                  map

Source:
    SAMed, arXiv:2304.13785 (classes + background, softmax); AutoSAM heads, arXiv:2306.13731 (learned tokens on a frozen
    encoder); progressive upsampling to the input's size, MA-SAM, arXiv:2309.08842. Skips and taps are this project's.
"""

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.config import check_choice
from samgraft.adapters.decoders.base import DecoderConfig, DecoderPatch, SemanticOutput
from samgraft.adapters.decoders.pyramid import ImagePyramid, Refine
from samgraft.adapters.decoders.sam_parts import image_positions, no_mask_dense, sam_mask_decoder
from samgraft.errors import ConfigError, NoMatchError

if TYPE_CHECKING:
    from samgraft.adapters.prompts.base import Prompts

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class ClassTokensConfig(DecoderConfig):
    """Semantic decoder with explicit background."""

    method: ClassVar[str] = "class_tokens"
    num_classes: int = 1
    """Foreground classes C."""
    activation: Literal["softmax", "sigmoid"] = "softmax"
    """"softmax": C + 1 channels, background first; "sigmoid": C channels that may overlap."""
    taps: str | tuple[int, ...] = "auto"
    """Encoder blocks fused into the neck: "auto" (after a quarter, half and three quarters), "none", or indices."""
    skip_channels: int = 16
    """Channels of the image pyramid at full resolution (twice and three times that below); 0 for no pyramid."""
    refine_channels: int = 32
    """Inner width of the refinement after each upscaling."""
    full_resolution: bool = False
    """Upsample on to H x W; else logits are 4h x 4w, as SAM's masks."""
    hypernetworks: Literal["shared", "per_class"] = "shared"
    """One hypernetwork for all tokens, or one per class (as in SAM; grows with the classes)."""
    train_transformer: bool = False
    """Train a copy of the two-way transformer instead of reading the frozen one."""
    dropout: float = 0.0
    """Probability of dropping whole channels before upscaling while training, in [0, 1)."""

    def __post_init__(self) -> None:
        """Check choices and numbers."""
        check_choice(self.method, "activation", self.activation, ("softmax", "sigmoid"))
        check_choice(self.method, "hypernetworks", self.hypernetworks, ("shared", "per_class"))
        if isinstance(self.taps, str):
            check_choice(self.method, "taps", self.taps, ("auto", "none"))
        if self.num_classes < 1:
            raise ConfigError(
                f"class_tokens: num_classes is {self.num_classes}; expected at least 1 (background is not counted)"
            )
        if self.skip_channels < 0 or self.skip_channels % 4 or self.refine_channels < 4 or self.refine_channels % 4:
            raise ConfigError(
                f"class_tokens: skip_channels {self.skip_channels}, refine_channels {self.refine_channels}; "
                "expected multiples of 4"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"class_tokens: dropout is {self.dropout}; expected a probability in [0, 1)")

    @property
    def num_tokens(self) -> int:
        """K: channels of the output."""
        return self.num_classes + (1 if self.activation == "softmax" else 0)

    def build(self, backbone: Backbone) -> "ClassTokenDecoder":
        """Create the decoder from copies of the backbone's upscaling and hypernetwork."""
        return ClassTokenDecoder(self, backbone)


class ClassTokenDecoder(DecoderPatch):
    """Learned class tokens on a frozen mask decoder.

    Attributes:
        class_tokens: (K, C), starting near the backbone's mask tokens.
        fuse: Taps and coarsest pyramid level to C channels; zero at step 0, so the transformer first sees the plain
            neck.
    """

    def __init__(self, config: ClassTokensConfig, backbone: Backbone) -> None:
        """Build; ``backbone`` is only read."""
        super().__init__()
        self.config = config
        self.taps = resolve_taps(config.taps, backbone.spec.num_blocks)
        decoder = sam_mask_decoder(backbone)
        like = decoder.mask_tokens.weight
        self.class_tokens = nn.Parameter(_initial_tokens(like, config.num_tokens))
        self.upscale1, self.norm, self.upscale2 = (
            _trainable_copy(m) for m in (decoder.upscale_conv1, decoder.upscale_layer_norm, decoder.upscale_conv2)
        )
        count = config.num_tokens if config.hypernetworks == "per_class" else 1
        self.hypernetworks = nn.ModuleList(_trainable_copy(decoder.output_hypernetworks_mlps[0]) for _ in range(count))
        self.transformer = _trainable_copy(decoder.transformer) if config.train_transformer else None
        self.dropout = nn.Dropout2d(config.dropout)
        with torch.device(like.device):
            self._add_detail(backbone)
        for part in (self.pyramid, self.tap_norms, self.fuse, self.refine):
            if part is not None:
                part.to(like.dtype)

    def _add_detail(self, backbone: Backbone) -> None:
        """Create pyramid, fusion of taps and refinements."""
        config, spec = self.config, backbone.spec
        levels = round(math.log2(spec.patch_size)) + 1
        widths = (
            [config.skip_channels * min(level + 1, 3) for level in range(levels)]
            if config.skip_channels
            else [0] * levels
        )
        self.pyramid = ImagePyramid(widths) if config.skip_channels else None
        self.tap_norms = nn.ModuleList(nn.LayerNorm(spec.embed_dim) for _ in self.taps)
        fused = len(self.taps) * spec.embed_dim + widths[-1]
        self.fuse = nn.Conv2d(fused, spec.neck_channels, 1) if fused else None
        if self.fuse is not None:
            nn.init.zeros_(self.fuse.weight)
            nn.init.zeros_(cast(Tensor, self.fuse.bias))
        stages = levels - 1 if config.full_resolution else 2
        channels = [spec.neck_channels // 4] + [spec.neck_channels // 8] * (stages - 1)
        self.refine = nn.ModuleList(
            Refine(channels[stage], widths[max(levels - 2 - stage, 0)], config.refine_channels)
            for stage in range(stages)
            if config.skip_channels or stage > 1
        )

    def forward(
        self, backbone: Backbone, features: Features, image: Tensor, prompts: "Prompts | None" = None
    ) -> SemanticOutput:
        """Class maps (B, K, 4h, 4w), or (B, K, H, W) with ``full_resolution``; ``prompts`` are not used."""
        del prompts
        levels = [] if self.pyramid is None else self.pyramid(image)
        source = self._source(backbone, features, levels)  # (B, C, h, w)
        tokens, keys = self._attend(backbone, source)  # (B, K, C), (B, C, h, w)
        detail = self._upscale(self.dropout(keys), levels, image.shape[-2:])  # (B, C / 8, h', w')
        if len(self.hypernetworks) == 1:
            weights = self.hypernetworks[0](tokens)  # (B, K, C / 8)
        else:
            weights = torch.stack([net(tokens[:, i]) for i, net in enumerate(self.hypernetworks)], dim=1)
        logits = (weights @ detail.flatten(2)).unflatten(2, detail.shape[-2:])
        return SemanticOutput(logits=logits, activation=self.config.activation)

    def _source(self, backbone: Backbone, features: Features, levels: list[Tensor]) -> Tensor:
        source = features.neck + no_mask_dense(backbone, features.neck)
        missing = [tap for tap in self.taps if tap not in features.taps]
        if missing:
            raise ConfigError(
                f"class_tokens reads blocks {list(self.taps)}; features lack {missing}; encode with taps=decoder.taps"
            )
        if self.fuse is None:
            return source
        parts = [
            norm(features.taps[tap]).permute(0, 3, 1, 2) for tap, norm in zip(self.taps, self.tap_norms, strict=True)
        ]  # (B, D, h, w) each
        if levels:
            parts.append(levels[-1])
        return source + cast(Tensor, self.fuse(torch.cat(parts, dim=1)))

    def _attend(self, backbone: Backbone, source: Tensor) -> tuple[Tensor, Tensor]:
        decoder = sam_mask_decoder(backbone)
        batch, _, height, width = source.shape
        tokens = torch.cat([decoder.iou_token.weight, self.class_tokens])  # (1 + K, C)
        transformer = decoder.transformer if self.transformer is None else self.transformer
        tokens, keys = transformer(
            point_embeddings=tokens.expand(batch, 1, -1, -1),
            image_embeddings=source,
            image_positional_embeddings=image_positions(backbone, source).expand(batch, -1, -1, -1),
            attention_similarity=None,
        )  # (B, 1, 1 + K, C), (B, 1, h w, C)
        return tokens[:, 0, 1:], keys[:, 0].transpose(1, 2).unflatten(2, (height, width))

    def _upscale(self, x: Tensor, levels: list[Tensor], size: tuple[int, int] | torch.Size) -> Tensor:
        stages = len(self.refine) if self.pyramid is not None else len(self.refine) + 2
        finest_first = levels[:-1][::-1]
        for stage in range(stages):
            if stage == 0:
                x = functional.gelu(self.norm(self.upscale1(x)))
            elif stage == 1:
                x = functional.gelu(self.upscale2(x))
            else:
                last = stage == stages - 1
                target = tuple(size) if last else (2 * x.shape[-2], 2 * x.shape[-1])
                x = functional.interpolate(x, size=target, mode="bilinear", align_corners=False)
            if self.pyramid is not None:
                x = self.refine[stage](x, finest_first[stage])
            elif stage > 1:
                x = self.refine[stage - 2](x, x[:, :0])
        return x


def resolve_taps(taps: str | tuple[int, ...], num_blocks: int) -> tuple[int, ...]:
    """Block indices that ``taps`` means for an encoder of ``num_blocks``; never the last block for "auto".

    Raises:
        NoMatchError: an index that does not exist.
    """
    if taps == "none":
        return ()
    if isinstance(taps, str):
        chosen = {math.ceil(num_blocks * part) - 1 for part in (0.25, 0.5, 0.75)}
        return tuple(sorted(block for block in chosen if 0 <= block < num_blocks - 1))
    bad = [tap for tap in taps if not 0 <= tap < num_blocks]
    if bad:
        raise NoMatchError(f"class_tokens: taps {list(taps)} name {bad}; the backbone has blocks 0..{num_blocks - 1}")
    return tuple(sorted(set(taps)))


def _initial_tokens(mask_tokens: Tensor, number: int) -> Tensor:
    """(number, C): the mean mask token plus noise of half the tokens' spread, so that classes can part."""
    base = mask_tokens.detach()
    spread = 0.5 * base.std()
    return base.mean(dim=0) + spread * torch.randn(number, base.shape[1], device=base.device, dtype=base.dtype)


def _trainable_copy(module: M) -> M:
    return copy.deepcopy(module).requires_grad_(True)
