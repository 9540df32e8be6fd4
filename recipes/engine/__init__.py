"""The only loop that walks a Scene: prompted, automatic, or everything.

    scene -> Plane (pixels in [0, 1]) -> windows -> network -> logits back on the plane -> Segmentation on its Grid

``run.segment`` chooses the mode and is public as ``samgraft.segment``; ``focus`` is prompted segmentation on plain
tensors; ``automatic`` runs an adapter.
"""

from samgraft.recipes.engine.focus import segment_boxes, segment_points
from samgraft.recipes.engine.views import ObjectMask

__all__ = ["ObjectMask", "segment_boxes", "segment_points"]
