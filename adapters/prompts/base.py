"""What a promptable decoder is told: points, boxes, masks or embeddings, for N instances in B images."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from samgraft.adapters.config import MethodConfig
from samgraft.errors import PromptError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone, Features
    from samgraft.adapters.decoders.base import SemanticOutput


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompts:
    """Prompts of N instances. Coordinates are (x, y) pixels of the network input; 0 is the first pixel's centre."""

    image_index: Tensor
    """(N,) int64: which of the B images each instance belongs to."""
    points: Tensor | None = None
    """(N, p, 2) float, (x, y)."""
    labels: Tensor | None = None
    """(N, p) int64: 1 foreground, 0 background, -10 padding."""
    boxes: Tensor | None = None
    """(N, 4) float, (x0, y0, x1, y1), first and last pixel inside, as in SAM."""
    masks: Tensor | None = None
    """(N, 1, 4h, 4w) float: logits of an earlier mask."""
    sparse: Tensor | None = None
    """(N, k, C): ready-made tokens, appended after those of points and boxes."""
    dense: Tensor | None = None
    """(N, C, h, w): replaces the dense embedding of ``masks`` or of "no mask"."""
    class_logits: Tensor | None = None
    """(N, classes) or None."""
    scores: Tensor | None = None
    """(N,) in [0, 1] or None."""
    from_ground_truth: bool = False
    """True when a label was looked at. Such results are never averaged with automatic ones."""

    def __post_init__(self) -> None:
        """Check that all fields agree on N."""
        n = self.image_index.shape[0]  # not len(): torch.export records it as a symbol
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and value.shape[0] != n:
                raise PromptError(
                    f"prompt field {field.name!r} has {value.shape[0]} rows; image_index has {n}; give one row per "
                    "instance"
                )
        if (self.points is None) != (self.labels is None):
            raise PromptError("points and labels come together; give both or neither")

    def __len__(self) -> int:
        """N, the number of instances."""
        return len(self.image_index)

    def select(self, rows: Tensor) -> "Prompts":
        """The instances named by ``rows`` (indices or a boolean mask)."""
        changed = {
            f.name: getattr(self, f.name)[rows] for f in fields(self) if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **changed)

    def to(self, device: torch.device | str) -> "Prompts":
        """Copy with every tensor on ``device``."""
        changed = {
            f.name: getattr(self, f.name).to(device) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **changed)


class PromptGenerator(nn.Module, ABC):
    """Writes prompts from features, without a person: ``(features, image, context) -> Prompts``."""

    taps: tuple[int, ...] = ()
    """Encoder blocks whose output the generator reads from ``Features.taps``."""
    num_classes: int = 0
    """Above 0: semantic. Row ``b * num_classes + c`` of the prompts asks for foreground class c + 1 of image b."""
    multimask: bool = False
    """Whether the decoder should answer with three masks per prompt."""

    @abstractmethod
    def forward(self, features: "Features", image: Tensor, context: Mapping[str, Any]) -> Prompts:
        """Return prompts for every image.

        Args:
            features: Output of the backbone's ``encode``.
            image: (B, 3, H, W) in [0, 1]; the network input.
            context: What else the generator may use (classes, user prompts); never labels of the image under
                evaluation.
        """

    def finish(self, output: "SemanticOutput") -> "SemanticOutput":
        """Class maps that the prompts led to, as they are to be read; by default unchanged."""
        return output


@dataclass(frozen=True, kw_only=True)
class PrompterConfig(MethodConfig):
    """Base of the configurations of prompt generators."""

    point: ClassVar[str] = "prompt"
    """Where the generator acts, for the table of trainable parts."""

    def build(self, backbone: "Backbone") -> PromptGenerator:
        """Create the generator for ``backbone``, which is only read."""
        raise NotImplementedError
