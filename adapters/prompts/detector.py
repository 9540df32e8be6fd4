"""The detector of SAM-det, RSPrompter-anchor and SAM-seg: boxes, classes and scores from taps of the frozen encoder.

    taps -> feature aggregator -> simple pyramid (five levels) -> proposals -> RoI features of four levels -> box head

Source:
    RSPrompter, arXiv:2306.16269, section 3; the second release of its code (KyanChen/RSPrompter, branch release,
    mmdet/rsprompter/models.py and configs/rsprompter) for the layers and numbers that stand in
    ``samgraft.adapters.detection`` and ``samgraft.adapters.prompts.aggregator``.
Deviations:
    Widths follow the backbone: those published for a neck of 256 channels, less for a smaller one, since a small
    backbone is there to be trained quickly. Anchors begin at 3 strides and have two sizes per octave (published: 4 and
    8 strides), so that objects of 6 pixels with patches of 8 have one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from samgraft.adapters.detection import (
    AnchorGrid,
    BoxHead,
    BoxOptions,
    Detections,
    DrawnRegions,
    RegionProposals,
    RpnOptions,
    edges_of,
    inclusive_of,
    roi_align,
)
from samgraft.adapters.prompts.aggregator import FeatureAggregator, SimpleFpn, taps_for
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.objects import Objects
from samgraft.errors import ConfigError, NoMatchError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone, Features

PUBLISHED_NECK = 256
"""Channels of the neck for which the published widths are the default."""


@dataclass(frozen=True, kw_only=True)
class DetectorOptions:
    """Options that the methods with a detector share. A width of 0 follows the channels C of the backbone's neck."""

    object_classes: int = 1
    """Kinds of objects."""
    taps: str | tuple[int, ...] = "auto"
    """Encoder blocks that are read: "auto" (every other one, or all of fewer than 12), or indices."""
    hidden: int = 0
    """Channels in which taps are added up; 0: C / 4, at most 32 (published: 32)."""
    channels: int = 0
    """Channels of the pyramid, a multiple of 4; 0: 256 as published for C = 256 or more, else C / 2."""
    fc: int = 0
    """Width of the box head; 0: 1024 as published for C = 256 or more, else 2 C."""
    anchor_scales: tuple[float, ...] = (3.0, 4.25)
    """Sides of anchors in cells of each level; the finest level has patch / 4 pixels per cell."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Heights divided by widths of anchors."""
    pre_nms: int = 300
    """Best anchors per level that become boxes (published: 2000)."""
    post_nms: int = 200
    """Proposals per image (published: 1000); several times the number of objects in a dense scene."""
    roi_samples: int = 128
    """Proposals per image that a training step learns from, at most a quarter with an object (published: 256)."""
    score_threshold: float = 0.05
    """Least probability of a detection."""
    nms: float = 0.5
    """IoU of two boxes of one class above which the worse one is dropped."""
    max_objects: int = 100
    """Detections per image; more for dense scenes."""

    def check(self, owner: str) -> None:
        """Refuse numbers that make no detector.

        Raises:
            ConfigError: a number is out of range; ``owner`` is the method.
        """
        at_least(self, owner, 1, ("object_classes", "pre_nms", "post_nms", "roi_samples", "max_objects"))
        at_least(self, owner, 0, ("hidden", "channels", "fc"))
        if self.channels % 4:
            raise ConfigError(f"{owner}: channels is {self.channels}; expected a multiple of 4")
        for name in ("score_threshold", "nms"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{owner}: {name} is {getattr(self, name)}; expected a number in [0, 1]")
        for name in ("anchor_scales", "anchor_ratios"):
            values = getattr(self, name)
            if not values or min(values) <= 0:
                raise ConfigError(f"{owner}: {name} is {values}; expected one number above 0 or more")
        if isinstance(self.taps, str) and self.taps != "auto":
            raise ConfigError(f"{owner}: taps is {self.taps!r}; expected 'auto' or block indices such as (0, 2, 4)")


class Detector(nn.Module):
    """Boxes with classes and scores, from taps.

    Attributes:
        taps: Blocks that are read.
        channels: Channels of every level.
        strides: Pixels per cell of every level.
        generator: For drawing anchors and proposals; None for torch's own.
    """

    def __init__(self, options: DetectorOptions, backbone: "Backbone") -> None:
        """Create the layers; ``backbone`` is only read.

        Raises:
            NoMatchError: a tap names no block.
        """
        super().__init__()
        spec = backbone.spec
        large = spec.neck_channels >= PUBLISHED_NECK
        self.taps = _taps(options.taps, spec.num_blocks)
        self.channels = options.channels or (256 if large else max(8, spec.neck_channels // 8 * 4))
        hidden = options.hidden or max(4, min(32, spec.neck_channels // 4))
        fc = options.fc or (1024 if large else 2 * spec.neck_channels)
        self.strides = tuple(spec.patch_size * share for share in SimpleFpn.STRIDES)
        self.generator: torch.Generator | None = None
        self.aggregator = FeatureAggregator(spec.embed_dim, len(self.taps), hidden, self.channels)
        self.pyramid = SimpleFpn(self.channels)
        anchors = AnchorGrid(self.strides, options.anchor_scales, options.anchor_ratios)
        self.rpn = RegionProposals(
            self.channels, anchors, RpnOptions(pre_nms=options.pre_nms, post_nms=options.post_nms)
        )
        self.box_head = BoxHead(
            self.channels,
            options.object_classes,
            fc,
            BoxOptions(
                samples=options.roi_samples, score=options.score_threshold, nms=options.nms, most=options.max_objects
            ),
        )

    def levels(self, features: "Features") -> tuple[Tensor, ...]:
        """Maps (B, channels, h, w), fine to coarse.

        Raises:
            ConfigError: a tap is missing.
        """
        missing = [tap for tap in self.taps if tap not in features.taps]
        if missing:
            raise ConfigError(
                f"the detector reads blocks {list(self.taps)}; features lack {missing}; encode with taps=prompter.taps"
            )
        found: tuple[Tensor, ...] = self.pyramid(self.aggregator([features.taps[tap] for tap in self.taps]))
        return found

    def regions(self, levels: tuple[Tensor, ...], edges: Tensor, image_index: Tensor, bins: int) -> Tensor:
        """RoI features (n, channels, bins, bins); the coarsest level is for proposals only."""
        return roi_align(levels[:-1], edges, image_index, self.strides[:-1], out=bins)

    def losses(
        self, levels: tuple[Tensor, ...], size: tuple[int, int], objects: Objects
    ) -> tuple[dict[str, Tensor], DrawnRegions]:
        """``rpn_class``, ``rpn_box``, ``class`` and ``box``, and the proposals that were drawn.

        Args:
            levels: From :meth:`levels`, of B images.
            size: (H, W) of the network input.
            objects: The true ones.
        """
        edges = edges_of(objects.boxes)
        truth = [edges[objects.of(image)] for image in range(len(objects.known))]
        output = self.rpn(levels, size)
        losses = self.rpn.losses(output, truth, objects.known, self.generator)
        proposals = self.rpn.proposals(output, size)
        drawn = self.box_head.draw(proposals, truth, objects.known, self.generator)
        logits, deltas = self.box_head(self.regions(levels, drawn.edges, drawn.image_index, self.box_head.bins))
        losses |= self.box_head.losses(logits, deltas, drawn, edges, objects.classes)
        return losses, drawn

    def detect(self, levels: tuple[Tensor, ...], size: tuple[int, int]) -> Detections:
        """What is found in B images, the best first within each.

        Args:
            levels: From :meth:`levels`.
            size: (H, W) of the network input.
        """
        proposals = self.rpn.proposals(self.rpn(levels, size), size)
        index = torch.cat([torch.full_like(edges[:, 0], i, dtype=torch.int64) for i, edges in enumerate(proposals)])
        logits, deltas = self.box_head(self.regions(levels, torch.cat(proposals), index, self.box_head.bins))
        return self.box_head.detections(logits, deltas, proposals, size)


def at_least(config: object, owner: str, least: int, names: Sequence[str]) -> None:
    """Refuse options ``names`` of ``config`` below ``least``.

    Raises:
        ConfigError: one is; the message names the method ``owner``, the option and its value.
    """
    for name in names:
        value = getattr(config, name)
        if not value >= least:
            raise ConfigError(f"{owner}: {name} is {value}; expected {least} or more")


def prompts_of(found: Detections, classes: int, *, boxes: bool = True, sparse: Tensor | None = None) -> Prompts:
    """Prompts for what was found, in its order.

    Args:
        found: Boxes, classes and scores.
        classes: K. ``class_logits`` are (N, K + 1) logarithms: of the score for the detected class, of what is left for
            "no object", the last; a detection names one class, so the others get next to nothing.
        boxes: Prompt with the boxes.
        sparse: (N, k, C) ready-made tokens.
    """
    scores = found.scores
    chances = scores.new_zeros(len(scores), classes + 1)
    chances[:, classes] = 1 - scores
    chances.scatter_(1, found.classes[:, None], scores[:, None])
    return Prompts(
        image_index=found.image_index,
        boxes=inclusive_of(found.edges) if boxes else None,
        sparse=sparse,
        class_logits=chances.clamp_min(1e-9).log(),
        scores=scores,
    )


def _taps(taps: str | tuple[int, ...], num_blocks: int) -> tuple[int, ...]:
    """Indices of blocks that ``taps`` means."""
    if isinstance(taps, str):
        return taps_for(num_blocks)
    wrong = [tap for tap in taps if not 0 <= tap < num_blocks]
    if wrong or not taps:
        raise NoMatchError(f"taps {list(taps)} name {wrong or 'nothing'}; the backbone has blocks 0..{num_blocks - 1}")
    return tuple(sorted(set(taps)))
