"""SAM-det: a detector finds boxes, and the frozen mask decoder answers each with a mask. No mask is needed to train it.

    taps -> detector -> boxes, classes, scores -> box prompts -> frozen mask decoder

Source:
    RSPrompter, arXiv:2306.16269, section 4 (the baseline SAM-det); numbers of its detector as in
    ``samgraft.adapters.prompts.detector``.
Deviations:
    The published baseline is a Faster R-CNN with a ResNet-50 of its own, trained on the image; this one detects on the
    frozen encoder's features, the same layers as in ``rsprompter_anchor``, so that the two differ in the prompts alone
    and the image is encoded once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from samgraft.adapters.prompts.base import PrompterConfig, Prompts
from samgraft.adapters.prompts.detector import Detector, DetectorOptions, prompts_of
from samgraft.adapters.prompts.objects import ObjectPrompter, Objects

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone, Features


@dataclass(frozen=True, kw_only=True)
class SamDetConfig(DetectorOptions, PrompterConfig):
    """Box prompts from a detector on frozen features."""

    method: ClassVar[str] = "sam_det"
    point: ClassVar[str] = "box prompts"
    score_by_iou: bool = False
    """Multiply scores by the IoU that the mask decoder predicts."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        self.check(self.method)

    def build(self, backbone: "Backbone") -> "SamDetPrompter":
        """Create the detector for ``backbone``, which is only read."""
        return SamDetPrompter(self, backbone)


class SamDetPrompter(ObjectPrompter):
    """One box prompt per detection."""

    def __init__(self, config: SamDetConfig, backbone: "Backbone") -> None:
        """Build the detector; ``backbone`` is only read."""
        super().__init__()
        self.config = config
        self.object_classes, self.score_by_iou = config.object_classes, config.score_by_iou
        self.detector = Detector(config, backbone)
        self.taps = self.detector.taps

    def forward(self, features: "Features", image: Tensor, context: Mapping[str, Any]) -> Prompts:
        """Boxes with scores and class logits, the best first within each image."""
        del context
        found = self.detector.detect(self.detector.levels(features), (image.shape[2], image.shape[3]))
        return prompts_of(found, self.object_classes)

    def losses(self, backbone: "Backbone", features: "Features", image: Tensor, objects: Objects) -> dict[str, Tensor]:
        """``rpn_class``, ``rpn_box``, ``class`` and ``box``; masks are not looked at."""
        del backbone
        return self.detector.losses(self.detector.levels(features), (image.shape[2], image.shape[3]), objects)[0]
