"""The contract of a frozen, promptable backbone: encode an image once, decode many prompts."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from samgraft.adapters.prompts.base import Prompts


DECODE_CHUNK = 64
"""Prompts decoded at once by a backbone that does not choose by its size."""


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """What a backbone is and offers; consumers never guess."""

    name: str
    patch_size: int
    """Pixels per token side."""
    native_size: int
    """Side in pixels that the position table was trained at; other multiples of ``patch_size`` work too."""
    embed_dim: int
    """Width D of the transformer."""
    num_blocks: int
    num_heads: int
    window_size: int
    """Side in tokens of a local attention window."""
    global_blocks: tuple[int, ...]
    """Indices of blocks with attention over the whole image."""
    neck_channels: int
    """Channels C of the neck and of prompt embeddings."""
    mean: tuple[float, float, float]
    """Subtracted from the image in [0, 1], per channel (normalisation happens in ``encode`` and nowhere else)."""
    std: tuple[float, float, float]
    value_range: tuple[float, float] = (0.0, 1.0)
    licence: str = "unknown"
    source: str = ""


@dataclass(frozen=True, eq=False)
class Features:
    """Output of the encoder."""

    neck: Tensor
    """(B, C, h, w), with h = H / patch_size."""
    taps: dict[int, Tensor] = field(default_factory=dict)
    """Block index -> that block's output, (B, h, w, D)."""
    depth: int = 1
    """Token planes of one volume: so many rows of B that follow each other, in the order of its slices."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefix:
    """Where an encoder stands after its first blocks."""

    tokens: Tensor
    """(B, h, w, D)."""
    stop: int
    """The first block that was not run."""
    taps: dict[int, Tensor] = field(default_factory=dict)
    """Block index -> that block's output, (B, h, w, D)."""
    extra: Tensor | None = None
    """(B, p, D): grafted tokens that are carried from block to block."""
    depth: int = 1
    """Token planes of one volume, see :class:`Features`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskDecoderState:
    """What the mask decoder has computed for n prompts, for a :class:`MaskDecoderPatch`."""

    features: Features
    """Of all B images."""
    image_index: Tensor
    """(n,) int64."""
    mask_tokens: Tensor
    """(n, 4, C) after the transformer."""
    extra_tokens: Tensor
    """(n, t, C) after the transformer: what became of the patch's tokens."""
    image: Tensor
    """(n, C, h, w) after the transformer."""
    upscaled: Tensor
    """(n, C / 8, 4h, 4w)."""
    logits: Tensor
    """(n, K, 4h, 4w) of the frozen decoder."""
    iou: Tensor
    """(n, K) of the frozen decoder."""
    multimask: bool
    """Whether K = 3 masks were asked for."""


class MaskDecoderPatch(Protocol):
    """Extra tokens for the mask decoder and another ending (an HQ token, class tokens)."""

    @property
    def apart(self) -> bool:
        """Whether the decoder's own tokens stay as if there were no others; the extra ones see everything."""

    def tokens(self) -> Tensor | None:
        """(t, C) tokens that stand behind the decoder's own, before those of prompts; None for none."""

    def finish(self, state: MaskDecoderState) -> tuple[Tensor, Tensor]:
        """Mask logits (n, K', 4h, 4w) and IoU (n, K')."""


class Promptable(Protocol):
    """What answers prompts on images: a backbone, or one with parts attached."""

    @property
    def spec(self) -> BackboneSpec:
        """What the backbone is."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Of the network; the first one tells the device."""

    def encode(self, image: Tensor, taps: Sequence[int] = ()) -> Features:
        """As :meth:`Backbone.encode`."""

    def decode(self, features: Features, prompts: "Prompts", *, multimask: bool = False) -> tuple[Tensor, Tensor]:
        """As :meth:`Backbone.decode`."""

    def decode_parts(
        self, features: Features, prompts: "Prompts", *, multimask: bool = False, chunk: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """As :meth:`Backbone.decode_parts`."""


class Backbone(nn.Module, ABC):
    """A frozen promptable segmenter. ``train()`` leaves it in eval mode; no parameter asks for a gradient."""

    spec: BackboneSpec
    checkpointing: bool = False
    """Compute each block again in the backward pass instead of keeping what happens inside it."""
    quantized: str = ""
    """"int8" where the encoder's linear layers were replaced (:mod:`samgraft.adapters.backbones.quantize`)."""
    occupied: bool = False
    """Whether grafts are attached at present, installed or merged."""
    merged: bool = False
    """Whether grafts are folded into the frozen weights at present."""

    @abstractmethod
    def encode(self, image: Tensor, taps: Sequence[int] = (), *, depth: int = 1) -> Features:
        """Encode images.

        Args:
            image: (B, 3, H, W) float in [0, 1]; H and W multiples of ``spec.patch_size``.
            taps: Block indices whose output is wanted.
            depth: So many images that follow each other are the slices of a volume, in order (docs/adr/0007). Only
                grafts of ``samgraft.volumetric`` look at more than one of them.

        Raises:
            ShapeError: wrong rank, channels or side, or B is no multiple of ``depth``. The message says what to do.
        """

    @abstractmethod
    def prefix(self, image: Tensor, stop: int, taps: Sequence[int] = (), *, depth: int = 1) -> Prefix:
        """Run the blocks before ``stop``; what comes out can be kept while nothing there changes.

        Args:
            image: As in :meth:`encode`.
            stop: The first block that is not run.
            taps: Block indices below ``stop`` whose output is wanted.
            depth: As in :meth:`encode`.
        """

    @abstractmethod
    def resume(self, prefix: Prefix, image: Tensor, taps: Sequence[int] = ()) -> Features:
        """Run the other blocks and the neck.

        Args:
            prefix: What :meth:`prefix` gave.
            image: The same image; grafts may look at it.
            taps: Block indices whose output is wanted; those below ``prefix.stop`` must be in ``prefix.taps``.

        Raises:
            NoMatchError: a tap that is neither there nor run.
        """

    @abstractmethod
    def untouched(self) -> tuple[int, bool]:
        """Leading blocks in which nothing is attached or trained, and whether that holds for the whole encoder."""

    @abstractmethod
    def embed(self, prompts: "Prompts", size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Embed prompts for a network input of ``size`` (H, W): sparse (N, k, C), dense (N, C, h, w)."""

    @abstractmethod
    def decode(self, features: Features, prompts: "Prompts", *, multimask: bool = False) -> tuple[Tensor, Tensor]:
        """Decode N prompts: mask logits (N, K, 4h, 4w) and predicted IoU (N, K); K = 3 if ``multimask`` else 1.

        ``prompts.image_index`` maps instances to images; embeddings are indexed, not copied per prompt if avoidable.
        """

    def decode_parts(
        self, features: Features, prompts: "Prompts", *, multimask: bool = False, chunk: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """:meth:`decode` in parts, so that thousands of prompts take the memory of a few.

        Args:
            features: Of B images.
            prompts: N prompts.
            multimask: Three masks instead of one.
            chunk: Prompts decoded at once; None leaves it to the backbone.

        Yields:
            Which prompts these are (n,), their mask logits (n, K, 4h, 4w) and predicted IoU (n, K).
        """
        for rows in torch.arange(len(prompts), device=prompts.image_index.device).split(chunk or DECODE_CHUNK):
            yield rows, *self.decode(features, prompts.select(rows), multimask=multimask)

    @abstractmethod
    def weights_hash(self) -> str:
        """SHA-256 (hex) over the frozen tensors, names and shapes; what a bundle is bound to."""


def in_order(parts: Iterable[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mask logits and predicted IoU of all prompts, in their order, of what ``decode_parts`` yields."""
    rows, logits, iou = (torch.cat(column) for column in zip(*parts, strict=True))
    order = rows.argsort()
    return logits[order], iou[order]
