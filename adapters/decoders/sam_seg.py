"""SAM-seg: Mask R-CNN on the frozen encoder's features; SAM's prompts and mask decoder are not used.

    taps -> detector -> boxes, classes, scores
    levels -> RoIAlign 14 x 14 -> 4 x [3x3, ReLU] -> transposed 2x2 stride 2, ReLU -> 1x1 -> (N, K, 28, 28)
      -> pasted into their boxes

Source:
    RSPrompter, arXiv:2306.16269, section 4 (the baseline SAM-seg with Mask R-CNN); mask head: Mask R-CNN,
    arXiv:1703.06870, figure 4.
Deviations:
    Those of ``samgraft.adapters.prompts.detector``. At most ``mask_samples`` RoIs per image are in the mask loss.
    Targets are the share of every cell that is inside, not rounded. Logits are pasted, not probabilities.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.decoders.base import DecoderConfig, DecoderPatch, SemanticOutput
from samgraft.adapters.detection import OUTSIDE, DrawnRegions, mask_targets, paste
from samgraft.adapters.prompts.detector import Detector, DetectorOptions, at_least
from samgraft.adapters.prompts.objects import FoundObjects, ObjectHead, Objects
from samgraft.adapters.prompts.rsprompter_anchor import positive_rows

if TYPE_CHECKING:
    from samgraft.adapters.prompts.base import Prompts

BINS = 14
"""Bins per side of the RoI features that masks are made of; masks have twice as many."""


@dataclass(frozen=True, kw_only=True)
class SamSegConfig(DetectorOptions, DecoderConfig):
    """Separate objects from a Mask R-CNN on frozen features."""

    method: ClassVar[str] = "sam_seg"
    convolutions: int = 4
    """3 x 3 convolutions of the mask head."""
    mask_samples: int = 64
    """RoIs per image in the mask loss."""
    stride: int = 1
    """Pixels of the network input per cell of the masks that are given back; a quarter of the patch is SAM's."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        self.check(self.method)
        at_least(self, self.method, 0, ("convolutions",))
        at_least(self, self.method, 1, ("mask_samples", "stride"))

    def build(self, backbone: Backbone) -> "SamSeg":
        """Create the heads for ``backbone``, which is only read."""
        return SamSeg(self, backbone)


class MaskHead(nn.Module):
    """RoI features (N, channels, 14, 14) to mask logits (N, classes, 28, 28).

    Args:
        channels: Of the RoI features and of all layers.
        classes: K masks per RoI.
        convolutions: 3 x 3 layers before the doubling.
    """

    def __init__(self, channels: int, classes: int, convolutions: int) -> None:
        """Create the layers."""
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
        layers += [nn.ConvTranspose2d(channels, channels, 2, stride=2), nn.ReLU(), nn.Conv2d(channels, classes, 1)]
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, regions: Tensor) -> Tensor:
        """(N, classes, 28, 28)."""
        found: Tensor = self.layers(regions)
        return found


class SamSeg(DecoderPatch, ObjectHead):
    """Detector and mask head."""

    def __init__(self, config: SamSegConfig, backbone: Backbone) -> None:
        """Build the heads; ``backbone`` is only read."""
        super().__init__()
        self.config = config
        self.object_classes = config.object_classes
        self.detector = Detector(config, backbone)
        self.taps = self.detector.taps
        self.head = MaskHead(self.detector.channels, config.object_classes, config.convolutions)

    def forward(
        self, backbone: Backbone, features: Features, image: Tensor, prompts: "Prompts | None" = None
    ) -> SemanticOutput:
        """Class maps (B, K, H / stride, W / stride) to be read through a sigmoid: the highest logit of any object."""
        del prompts
        found = self.find(backbone, features, image, {})
        height, width = (side // self.config.stride for side in image.shape[2:])
        logits = image.new_full((len(image), self.object_classes, height, width), OUTSIDE)
        for number in range(len(image)):
            for kind in range(self.object_classes):
                rows = (found.image_index == number) & (found.classes == kind)
                if bool(rows.any()):
                    logits[number, kind] = found.logits[rows].amax(dim=0)
        return SemanticOutput(logits=logits, activation="sigmoid")

    def losses(self, backbone: Backbone, features: Features, image: Tensor, objects: Objects) -> dict[str, Tensor]:
        """Those of the detector, and ``mask``: cross-entropy of the true class's mask in every RoI with an object."""
        del backbone
        levels, size = self.detector.levels(features), (image.shape[2], image.shape[3])
        losses, drawn = self.detector.losses(levels, size, objects)
        return losses | {"mask": self._mask_loss(levels, size, drawn, objects)}

    def _mask_loss(
        self, levels: tuple[Tensor, ...], size: tuple[int, int], drawn: DrawnRegions, objects: Objects
    ) -> Tensor:
        rows = positive_rows(drawn, self.config.mask_samples, self.detector.generator)
        edges, index, matched = drawn.edges[rows], drawn.image_index[rows], drawn.matched[rows]
        if len(rows) == 0:  # one RoI, the whole first image, keeps every parameter in the graph
            edges, index = edges.new_tensor([[0.0, 0.0, size[1], size[0]]]), index.new_zeros(1)
        logits: Tensor = self.head(self.detector.regions(levels, edges, index, BINS))
        if len(rows) == 0:
            nothing: Tensor = logits.sum() * 0
            return nothing
        own = logits[torch.arange(len(rows), device=rows.device), objects.classes[matched]]
        own = own.to(torch.promote_types(own.dtype, torch.float32))
        targets = mask_targets(objects.masks, matched, edges, 2 * BINS).to(own.dtype)
        weights = mask_targets(objects.known, index, edges, 2 * BINS).to(own.dtype)
        each = functional.binary_cross_entropy_with_logits(own, targets.clamp(0, 1), reduction="none")
        return (each * weights).sum() / weights.sum().clamp_min(1)

    def find(self, backbone: Backbone, features: Features, image: Tensor, context: Mapping[str, Any]) -> FoundObjects:
        """One mask per detection, pasted into the image; nothing is asked of the backbone's decoder."""
        del backbone, context
        levels, size = self.detector.levels(features), (image.shape[2], image.shape[3])
        found = self.detector.detect(levels, size)
        masks = self.head(self.detector.regions(levels, found.edges, found.image_index, BINS))
        own = masks[torch.arange(len(masks), device=masks.device), found.classes]
        stride = self.config.stride
        logits = paste(own, found.edges, (size[0] // stride, size[1] // stride), stride)
        return FoundObjects(image_index=found.image_index, logits=logits, scores=found.scores, classes=found.classes)
