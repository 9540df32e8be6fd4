"""Two-stage detection on the maps of a pyramid, with torch and MONAI only."""

from samgraft.adapters.detection.anchors import AnchorGrid
from samgraft.adapters.detection.box_head import BoxHead, BoxOptions, Detections, DrawnRegions
from samgraft.adapters.detection.boxes import edges_of, inclusive_of
from samgraft.adapters.detection.roi_align import OUTSIDE, mask_targets, paste, roi_align
from samgraft.adapters.detection.rpn import RegionProposals, RpnOptions, RpnOutput

__all__ = [
    "OUTSIDE",
    "AnchorGrid",
    "BoxHead",
    "BoxOptions",
    "Detections",
    "DrawnRegions",
    "RegionProposals",
    "RpnOptions",
    "RpnOutput",
    "edges_of",
    "inclusive_of",
    "mask_targets",
    "paste",
    "roi_align",
]
