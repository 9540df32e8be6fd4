"""What turns features into class maps: the interface of decoders, and their result."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone, Features, in_order
from samgraft.adapters.config import MethodConfig
from samgraft.errors import ConfigError

if TYPE_CHECKING:
    from samgraft.adapters.prompts.base import Prompts


@dataclass(frozen=True, kw_only=True, eq=False)
class SemanticOutput:
    """Class maps of a batch of images."""

    logits: Tensor
    """(B, K, h', w'): K = C + 1, background in channel 0, for "softmax"; K = C foreground classes for "sigmoid"."""
    activation: Literal["softmax", "sigmoid"]
    """How logits become probabilities."""
    scores: Tensor | None = None
    """(B, K) predicted IoU, where the decoder gives one."""
    channels: ClassVar[tuple[str, ...]] = ()
    """Names of the channels where they are not classes."""

    @property
    def num_classes(self) -> int:
        """Foreground classes."""
        return self.logits.shape[1] - (1 if self.activation == "softmax" else 0)

    def resize(self, size: tuple[int, int]) -> "SemanticOutput":
        """The same with logits interpolated (bilinear, pixel centres) to ``size`` (H, W)."""
        if tuple(self.logits.shape[-2:]) == tuple(size):
            return self
        logits = functional.interpolate(self.logits.float(), size=size, mode="bilinear", align_corners=False)
        return replace(self, logits=logits)

    def foreground(self) -> Tensor:
        """(B, classes, h', w') float32 in [0, 1]: probability of each foreground class."""
        logits = self.logits.float()
        return logits.softmax(dim=1)[:, 1:] if self.activation == "softmax" else logits.sigmoid()

    def labels(self) -> Tensor:
        """(B, h', w') int64: 0 background, else the class.

        "softmax" takes the largest channel; "sigmoid" the largest above 0.5, else background.
        """
        if self.activation == "softmax":
            return self.logits.argmax(dim=1)
        value, index = self.logits.max(dim=1)
        return torch.where(value > 0, index + 1, torch.zeros_like(index))


class DecoderPatch(nn.Module, ABC):
    """Maps features of B images to class maps. Holds trainable parts only; frozen ones are read from the backbone."""

    taps: tuple[int, ...] = ()
    """Encoder blocks whose output is read from ``Features.taps``."""
    needs_prompts: ClassVar[bool] = False
    """Whether ``forward`` wants prompts from a generator."""
    splits_planes: ClassVar[bool] = False
    """Whether it answers for every slice where several were merged into one token plane."""

    @abstractmethod
    def forward(
        self, backbone: Backbone, features: Features, image: Tensor, prompts: "Prompts | None" = None
    ) -> SemanticOutput:
        """Return class maps.

        Args:
            backbone: Gives frozen decoder parts.
            features: Output of ``backbone.encode`` with :attr:`taps`.
            image: (B, 3, H, W) in [0, 1].
            prompts: Prompts of the generator, where :attr:`needs_prompts`.
        """

    def learn(
        self, backbone: Backbone, features: Features, image: Tensor, prompts: "Prompts | None", labels: Tensor
    ) -> tuple[SemanticOutput, Tensor | None]:
        """Class maps to compare with ``labels``, and a scalar to add to the loss or None. Called in training only.

        By default what :meth:`forward` gives, and None. A decoder whose training needs more than class maps overrides
        this: one that draws prompts where objects are, or predicts something else about them.

        Args:
            backbone: As for :meth:`forward`.
            features: As for :meth:`forward`.
            image: (B, 3, H, W) in [0, 1].
            prompts: As for :meth:`forward`.
            labels: (B, H, W) int64: 0 background, 1 .. C classes, below 0 unknown.
        """
        del labels
        output: SemanticOutput = self(backbone, features, image, prompts)
        return output, None


class PromptedDecoder(DecoderPatch):
    """Answers prompts in the place of the backbone's mask decoder; class maps are one answer per class and image."""

    needs_prompts: ClassVar[bool] = True

    def decode_parts(
        self,
        backbone: Backbone,
        features: Features,
        prompts: "Prompts",
        *,
        multimask: bool = False,
        chunk: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """As :meth:`Backbone.decode_parts`, from features with :attr:`taps`; the number of masks may be another.

        By default the backbone's own answers.
        """
        return backbone.decode_parts(features, prompts, multimask=multimask, chunk=chunk)

    def decode(
        self, backbone: Backbone, features: Features, prompts: "Prompts", *, multimask: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (N, K, 4h, 4w) and predicted IoU (N, K) of N prompts, in their order."""
        return in_order(self.decode_parts(backbone, features, prompts, multimask=multimask))

    def forward(
        self, backbone: Backbone, features: Features, image: Tensor, prompts: "Prompts | None" = None
    ) -> SemanticOutput:
        """Class maps (B, C, 4h, 4w), to be read through a sigmoid.

        Raises:
            ConfigError: no prompts, or not the same number for each image in order.
        """
        batch = len(image)
        count = 0 if prompts is None else len(prompts) // batch
        if (
            prompts is None
            or count == 0
            or not torch.equal(prompts.image_index.cpu(), torch.arange(batch).repeat_interleave(count))
        ):
            got = "none" if prompts is None else f"{len(prompts)} for {batch} images"
            raise ConfigError(f"class maps need one prompt per class and image, in order; got {got}; attach autosam")
        logits, scores = self.decode(backbone, features, prompts)
        shape = (batch, count, *logits.shape[-2:])
        return SemanticOutput(logits=logits.reshape(shape), activation="sigmoid", scores=scores.reshape(batch, count))


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(MethodConfig):
    """Base of the configurations of decoders."""

    point: ClassVar[str] = "I10 head"
    """Where the decoder acts, for the table of trainable parts."""
    volumetric: ClassVar[bool] = False
    """Whether it looks at other slices of a volume."""

    def build(self, backbone: Backbone) -> DecoderPatch:
        """Create the decoder for ``backbone``, which is only read."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class MaskConfig(DecoderConfig):
    """The backbone's own mask decoder; nothing is trained."""

    method: ClassVar[str] = "mask"

    def build(self, backbone: Backbone) -> "MaskDecoder":
        """Create the pass-through; the backbone does not matter."""
        del backbone
        return MaskDecoder()


class MaskDecoder(PromptedDecoder):
    """One mask per prompt of the frozen decoder, arranged as one channel per class."""

    def decode(
        self, backbone: Backbone, features: Features, prompts: "Prompts", *, multimask: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The backbone's own answers."""
        return backbone.decode(features, prompts, multimask=multimask)
