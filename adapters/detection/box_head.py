"""The second stage of a detector: what is in a proposal, and where exactly.

    RoI features (n, C, 7, 7) -> fully connected, ReLU -> fully connected, ReLU -> K + 1 class logits, 4 K deltas

Source:
    Fast R-CNN, arXiv:1504.08083, section 2; two layers of 1024 on a pyramid: FPN, arXiv:1612.03144, section 4.2.
    Numbers of RSPrompter's detectors: KyanChen/RSPrompter, branch release, configs/rsprompter.
Deviations:
    "No object" is the last class. Proposals on unknown pixels are no negatives.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.detection.boxes import clip_edges, decode_deltas, encode_deltas, sides_of, suppress
from samgraft.adapters.detection.matching import ignore_unknown, match_boxes, sample_balanced

STDS = (0.1, 0.1, 0.2, 0.2)
"""Of the deltas of a second stage: proposals are near already."""


@dataclass(frozen=True, kw_only=True)
class BoxOptions:
    """Numbers of a second stage; all are the published ones."""

    positive: float = 0.5
    """Least IoU of a proposal with an object that it answers for; all others are background."""
    samples: int = 256
    """Proposals per image that a step learns from."""
    positive_share: float = 0.25
    """At most this share of them is positive."""
    score: float = 0.05
    """Least probability of a detection."""
    nms: float = 0.5
    """IoU of two detections of one class above which the worse one is dropped."""
    most: int = 100
    """Detections per image."""
    min_side: float = 1.0
    """Pixels; smaller detections are dropped."""


@dataclass(frozen=True, eq=False)
class DrawnRegions:
    """Proposals that a step learns from, image by image, positive ones first within an image."""

    edges: Tensor
    """(n, 4)."""
    image_index: Tensor
    """(n,) int64."""
    matched: Tensor
    """(n,) int64: row of the object among those of all images, or -1 for background."""


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes with a class and a score, the best first within an image."""

    edges: Tensor
    """(n, 4)."""
    image_index: Tensor
    """(n,) int64, ascending."""
    scores: Tensor
    """(n,) in [0, 1]: probability of the class."""
    classes: Tensor
    """(n,) int64 from 0."""


class BoxHead(nn.Module):
    """Classes and boxes of proposals.

    Args:
        channels: Channels C of RoI features.
        classes: K, without "no object".
        hidden: Width of the two layers.
        options: Its numbers.
        bins: Bins per side of RoI features.
    """

    def __init__(self, channels: int, classes: int, hidden: int, options: BoxOptions, *, bins: int = 7) -> None:
        """Create the layers."""
        super().__init__()
        self.options, self.num_classes, self.bins = options, classes, bins
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * bins**2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.logits = nn.Linear(hidden, classes + 1)
        self.deltas = nn.Linear(hidden, 4 * classes)
        for layer, spread in ((self.logits, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=spread)
            nn.init.zeros_(layer.bias)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (n, K + 1) and deltas (n, K, 4) of RoI features (n, C, bins, bins)."""
        x = self.body(regions)
        return self.logits(x), self.deltas(x).unflatten(1, (self.num_classes, 4))

    def draw(
        self,
        proposals: Sequence[Tensor],
        truth: Sequence[Tensor],
        known: Tensor,
        generator: torch.Generator | None = None,
    ) -> DrawnRegions:
        """Proposals to learn from; true boxes stand among them, so that there are good ones from the first step.

        Args:
            proposals: Edges (n, 4) of each of B images.
            truth: Edges (m, 4) of the objects of each image, whose rows count on from image to image.
            known: (B, H, W) bool.
            generator: For the draw, on the CPU.
        """
        options, first = self.options, 0
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for image, (edges, objects) in enumerate(zip(proposals, truth, strict=True)):
            edges = torch.cat([objects.to(edges.dtype), edges])
            matched = match_boxes(
                edges, objects, positive=options.positive, negative=options.positive, every_object=False
            )
            matched = ignore_unknown(matched, edges, known[image])
            rows = torch.cat(sample_balanced(matched, options.samples, options.positive_share, generator))
            own = matched[rows]
            parts.append((edges[rows], torch.full_like(own, image), torch.where(own >= 0, own + first, own)))
            first += len(objects)
        edges, image_index, matched = (torch.cat(column) for column in zip(*parts, strict=True))
        return DrawnRegions(edges, image_index, matched)

    def losses(
        self, logits: Tensor, deltas: Tensor, drawn: DrawnRegions, truth: Tensor, classes: Tensor
    ) -> dict[str, Tensor]:
        """``class`` (cross-entropy) and ``box`` (smooth L1 of the true class), divided by the number of proposals.

        Args:
            logits: (n, K + 1) of the drawn proposals.
            deltas: (n, K, 4) of them.
            drawn: From :meth:`draw`.
            truth: (m, 4) edges of all objects.
            classes: (m,) int64 of all objects.
        """
        dtype = torch.promote_types(logits.dtype, torch.float32)
        positive = (drawn.matched >= 0).nonzero().flatten()
        row = drawn.matched[positive]
        wanted = torch.full_like(drawn.matched, self.num_classes)
        wanted[positive] = classes[row]
        number = max(1, len(logits))
        said = functional.cross_entropy(logits.to(dtype), wanted, reduction="sum")
        aims = encode_deltas(drawn.edges[positive], truth[row].to(drawn.edges.dtype), STDS).to(dtype)
        away = functional.smooth_l1_loss(deltas[positive, classes[row]].to(dtype), aims, reduction="sum")
        return {"class": said / number, "box": away / number}

    @torch.no_grad()
    def detections(
        self, logits: Tensor, deltas: Tensor, proposals: Sequence[Tensor], size: tuple[int, int]
    ) -> Detections:
        """What is found in the proposals of B images.

        Args:
            logits: (n, K + 1) of all proposals, image by image.
            deltas: (n, K, 4).
            proposals: Edges of each image.
            size: (H, W) of the network input.
        """
        options, classes = self.options, self.num_classes
        dtype = torch.promote_types(logits.dtype, torch.float32)
        counts = [len(edges) for edges in proposals]
        parts = []
        for image, (said, moved, edges) in enumerate(
            zip(logits.to(dtype).softmax(dim=1).split(counts), deltas.split(counts), proposals, strict=True)
        ):
            boxes = clip_edges(decode_deltas(edges[:, None], moved, STDS), size)  # (n, K, 4)
            good = (said[:, :classes] > options.score) & (sides_of(boxes) >= options.min_side).all(dim=-1)
            row, kind = good.nonzero(as_tuple=True)
            boxes, scores = boxes[row, kind], said[row, kind]
            kept = suppress(boxes, scores, kind, options.nms, options.most)
            parts.append((boxes[kept], torch.full_like(kept, image), scores[kept], kind[kept]))
        return Detections(*(torch.cat(column) for column in zip(*parts, strict=True)))
