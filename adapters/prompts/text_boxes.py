"""Boxes from words: a zero-shot object detector of ``transformers`` writes the prompts; nothing is trained.

The detector looks at the same image as the backbone, scores boxes for every phrase, and what scores enough and is not
the same object twice becomes a box prompt with its phrase as class. SAM 3 finds whole instances of a concept; its masks
can go in as well.

    phrases, image -> detector -> score >= threshold -> NMS per image -> the best ones -> boxes (masks)

The detector is loaded when it is first asked, from a folder or by name from the Hugging Face hub. Nothing of it is
stored with the adapter, and nothing is downloaded before. Names, sizes and licences, to be checked on the model's own
page: ``IDEA-Research/grounding-dino-tiny`` (about 0.7 GB) and ``-base``, Apache-2.0; ``google/owlvit-base-patch32`` and
``google/owlv2-base-patch16-ensemble`` (about 0.6 GB), Apache-2.0; ``facebook/sam3`` (about 3.4 GB), SAM License, only
after accepting it there. Clinical and overhead images are far from what these saw in training: look at the boxes first.

Source:
    Grounded SAM, arXiv:2401.14159, section 3 (a detector's boxes as prompts); the detectors' own papers are named in
    ``samgraft.adapters.prompts.text_detectors``.
Deviations:
    Boxes of different phrases suppress each other, since one object is one mask here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from monai.data.box_utils import non_max_suppression
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.prompts.base import PrompterConfig, PromptGenerator, Prompts
from samgraft.adapters.prompts.text_detectors import Seen, TextDetector
from samgraft.errors import ConfigError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone, Features


@dataclass(frozen=True, kw_only=True)
class TextBoxesConfig(PrompterConfig):
    """One box prompt per object that a detector finds for some words."""

    method: ClassVar[str] = "text_boxes"
    model: str = ""
    """Folder, or name on the Hugging Face hub, of a Grounding DINO, OWL-ViT, OWLv2 or SAM 3 model."""
    phrases: tuple[str, ...] = ()
    """What to look for; the i-th phrase is class i."""
    threshold: float | None = None
    """Least score; None takes the usual one of the detector (0.25, 0.1 or 0.5)."""
    nms: float = 0.7
    """Boxes with a larger IoU are the same object; the better one stays."""
    most: int = 300
    """Most objects per image."""
    masks: bool = False
    """SAM 3: hand its masks to the decoder too."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise ConfigError(f"text_boxes: threshold is {self.threshold}; expected a score in [0, 1)")
        if not 0 < self.nms <= 1:
            raise ConfigError(f"text_boxes: nms is {self.nms}; expected an IoU in (0, 1]")
        if self.most < 1:
            raise ConfigError(f"text_boxes: most is {self.most}; expected at least 1")

    def build(self, backbone: "Backbone") -> "TextBoxes":
        """Create the generator; the backbone does not matter, and nothing is loaded yet."""
        del backbone
        return TextBoxes(self)


class TextBoxes(PromptGenerator):
    """Box prompts with ``scores`` and ``class_logits`` (N, P), best first within an image.

    Args:
        config: What to look for, and with what.
        detector: A detector that is loaded already; None loads ``config.model`` when it is first needed.
    """

    def __init__(self, config: TextBoxesConfig, detector: TextDetector | None = None) -> None:
        """Load nothing."""
        super().__init__()
        self.config = config
        self.detector = detector  # no module of this one: it is neither trained nor saved

    def forward(self, features: "Features", image: Tensor, context: Mapping[str, Any]) -> Prompts:
        """Prompts for every image; ``context["phrases"]``, if given, stands in for those of the configuration.

        Raises:
            ConfigError: no model or no phrase is named.
            CheckpointError: the model cannot be loaded.
        """
        if self.detector is None:
            if not self.config.model:
                raise ConfigError(
                    "text_boxes: no detector is named; give model=, such as 'IDEA-Research/grounding-dino-tiny', or a "
                    "folder"
                )
            self.detector = TextDetector.load(self.config.model)
        seen = self.detector(image, tuple(context.get("phrases", self.config.phrases)))
        threshold = self.detector.family.threshold if self.config.threshold is None else self.config.threshold
        return self._prompts(seen, threshold, image, features)

    def _prompts(self, seen: Seen, threshold: float, image: Tensor, features: "Features") -> Prompts:
        index, boxes, scores, logits, masks = [], [], [], [], []
        for number in range(len(image)):
            score = seen.logits[number].amax(dim=-1).sigmoid().float()
            edges = pixel_edges(seen.boxes[number].float(), (image.shape[2], image.shape[3]))
            good = (score >= threshold) & (edges[:, 2:] > edges[:, :2]).all(dim=1)
            rows = good.nonzero().flatten()
            if len(rows):
                kept = torch.as_tensor(non_max_suppression(edges[rows], score[rows], self.config.nms))
                rows = rows[kept][: self.config.most]
            index.append(torch.full((len(rows),), number, dtype=torch.int64, device=image.device))
            boxes.append(inclusive(edges[rows], (image.shape[2], image.shape[3])))
            scores.append(score[rows])
            logits.append(seen.logits[number, rows].float())
            if seen.masks is not None and self.config.masks:
                masks.append(seen.masks[number, rows].float())
        size = [4 * side for side in features.neck.shape[-2:]]
        low = torch.cat(masks)[:, None] if any(map(len, masks)) else None
        if low is not None:
            low = functional.interpolate(low, size, mode="bilinear", align_corners=False, antialias=True)
        return Prompts(
            image_index=torch.cat(index),
            boxes=torch.cat(boxes),
            masks=low,
            scores=torch.cat(scores),
            class_logits=torch.cat(logits),
        )


def pixel_edges(shares: Tensor, size: tuple[int, int]) -> Tensor:
    """Outer edges (n, 4) in pixels of boxes given as shares of an image of ``size`` (H, W), cut at its edges."""
    extent = shares.new_tensor([size[1], size[0]] * 2)
    return torch.minimum((shares * extent).clamp_min(0), extent)


def inclusive(edges: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (n, 4) by first and last pixel of outer edges inside an image of ``size`` (H, W); at least one pixel."""
    first = torch.minimum(edges[:, :2], edges.new_tensor([size[1] - 1, size[0] - 1]))
    return torch.cat([first, torch.maximum(edges[:, 2:] - 1, first)], dim=1)
