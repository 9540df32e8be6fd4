"""Region proposals: at every cell of a pyramid, which anchors hold an object of any class, and how they should move.

    level (B, C, h, w) -> 3x3, ReLU -> 1x1 to A logits, 1x1 to 4 A deltas        (the same layers for every level)

Source:
    Faster R-CNN, arXiv:1506.01497, section 3.1; on a pyramid: FPN, arXiv:1612.03144, section 4.1. Thresholds and
    numbers of RSPrompter's detectors: KyanChen/RSPrompter, branch release, configs/rsprompter.
Deviations:
    Unknown pixels give no negatives. The numbers of proposals are smaller by default; all are options.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.detection.anchors import AnchorGrid
from samgraft.adapters.detection.boxes import clip_edges, decode_deltas, encode_deltas, sides_of, suppress
from samgraft.adapters.detection.matching import ignore_unknown, match_boxes, sample_balanced

STDS = (1.0, 1.0, 1.0, 1.0)
"""Of the deltas of proposals."""
BETA = 1 / 9
"""Where the smooth L1 loss of deltas becomes linear."""


@dataclass(frozen=True, kw_only=True)
class RpnOptions:
    """Numbers of a proposal network; the defaults are the published ones except for the number of proposals."""

    positive: float = 0.7
    """Least IoU of an anchor with an object that it answers for."""
    negative: float = 0.3
    """IoU below which it is background."""
    samples: int = 256
    """Anchors per image that a step learns from, at most half of them positive."""
    pre_nms: int = 300
    """Best anchors per level that become boxes; published: 2000."""
    post_nms: int = 200
    """Proposals per image; published: 1000."""
    nms: float = 0.7
    """IoU of two boxes of one level above which the worse one is dropped."""
    min_side: float = 1.0
    """Pixels; smaller boxes are dropped."""


@dataclass(frozen=True, eq=False)
class RpnOutput:
    """What the layers say of all anchors of a batch, level by level."""

    logits: Tensor
    """(B, N)."""
    deltas: Tensor
    """(B, N, 4)."""
    anchors: Tensor
    """(N, 4) edges."""
    counts: tuple[int, ...]
    """Anchors of each level; N together."""


class RegionProposals(nn.Module):
    """The proposal network.

    Args:
        channels: Channels C of every level.
        anchors: Its boxes.
        options: Its numbers.
    """

    def __init__(self, channels: int, anchors: AnchorGrid, options: RpnOptions) -> None:
        """Create the layers; weights are drawn with a spread of 0.01."""
        super().__init__()
        self.anchors, self.options = anchors, options
        self.body = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, anchors.per_cell, 1)
        self.deltas = nn.Conv2d(channels, 4 * anchors.per_cell, 1)
        for layer in (self.body, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, levels: Sequence[Tensor], size: tuple[int, int]) -> RpnOutput:
        """Logits and deltas of every anchor.

        Args:
            levels: (B, C, h, w) each.
            size: (H, W) of the network input.
        """
        logits, deltas = [], []
        for level in levels:
            x = functional.relu(self.body(level))
            logits.append(self.objectness(x).permute(0, 2, 3, 1).flatten(1))  # (B, h w A)
            deltas.append(self.deltas(x).permute(0, 2, 3, 1).reshape(len(level), -1, 4))
        grids = [(level.shape[2], level.shape[3]) for level in levels]
        anchors = self.anchors(grids, size, like=levels[0])
        return RpnOutput(
            logits=torch.cat(logits, dim=1),
            deltas=torch.cat(deltas, dim=1),
            anchors=torch.cat(anchors),
            counts=tuple(len(part) for part in anchors),
        )

    def losses(
        self, output: RpnOutput, truth: Sequence[Tensor], known: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """``rpn_class`` (cross-entropy) and ``rpn_box`` (smooth L1), both divided by the number of drawn anchors.

        Args:
            output: Of B images.
            truth: Edges (n, 4) of the objects of each image.
            known: (B, H, W) bool.
            generator: For the draw, on the CPU.
        """
        options, anchors = self.options, output.anchors
        drawn, wanted, moved, aims = [], [], [], []
        for image, objects in enumerate(truth):
            matched = match_boxes(
                anchors, objects, positive=options.positive, negative=options.negative, every_object=True
            )
            matched = ignore_unknown(matched, anchors, known[image])
            positive, negative = sample_balanced(matched, options.samples, 0.5, generator)
            drawn.append(output.logits[image, torch.cat([positive, negative])])
            wanted += [torch.ones_like(positive), torch.zeros_like(negative)]
            moved.append(output.deltas[image, positive])
            aims.append(encode_deltas(anchors[positive], objects[matched[positive]], STDS))
        logits, deltas = (part.to(anchors.dtype) for part in (torch.cat(drawn), torch.cat(moved)))
        number = max(1, len(logits))
        said = functional.binary_cross_entropy_with_logits(logits, torch.cat(wanted).to(logits.dtype), reduction="sum")
        away = functional.smooth_l1_loss(deltas, torch.cat(aims), beta=BETA, reduction="sum")
        return {"rpn_class": said / number, "rpn_box": away / number}

    @torch.no_grad()
    def proposals(self, output: RpnOutput, size: tuple[int, int]) -> list[Tensor]:
        """Edges (n, 4) of the proposals of each image, the best first.

        Args:
            output: Of B images.
            size: (H, W) of the network input.
        """
        options = self.options
        found = []
        for logits, deltas in zip(output.logits, output.deltas, strict=True):
            rows, levels, start = [], [], 0
            for level, count in enumerate(output.counts):
                best = logits[start : start + count].topk(min(options.pre_nms, count)).indices
                rows.append(best + start)
                levels.append(torch.full_like(best, level))
                start += count
            row, level_of_row = torch.cat(rows), torch.cat(levels)
            edges = clip_edges(decode_deltas(output.anchors[row], deltas[row], STDS), size)
            large = (sides_of(edges) >= options.min_side).all(dim=1)
            edges, scores, level_of_row = edges[large], logits[row[large]], level_of_row[large]
            found.append(edges[suppress(edges, scores, level_of_row, options.nms, options.post_nms)])
        return found
