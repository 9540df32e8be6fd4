"""A detection set becomes an instance-mask set: every box is a prompt, and the answer is its object's mask.

A mask is cut to a slightly larger box than the one that was given, so that no background far away belongs to an object.
Masks are painted from large to small, so that small objects stay visible on large ones; where several objects claim a
pixel it can be marked as unknown. Predicted IoU and stability stay with every mask.

Source:
    SAMRS, arXiv:2305.02034, section 3.1, and ViTAE-Transformer/SAMRS:Generate Dataset. Stability: Segment Anything,
    arXiv:2304.02643, section B.
Deviations:
    The released code paints boxes in file order, so the last one wins, and does not cut masks to their boxes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.config import check_choice
from samgraft.domains.detections.base import Detection
from samgraft.domains.scene import Scene
from samgraft.errors import ConfigError, InputError
from samgraft.recipes.engine.focus import CONTEXTS, boxes_in, network_size
from samgraft.recipes.engine.pipeline import DEPTH, encode_batch
from samgraft.recipes.engine.planes import Plane, look_at
from samgraft.recipes.engine.views import ObjectMask

UNKNOWN = 255
"""Value of the semantic map where several objects claim a pixel."""
OFFSET = 1.0
"""Stability compares the mask at logits of plus and minus this."""


@dataclass(frozen=True, kw_only=True)
class BoxMasksConfig:
    """How boxes become masks."""

    dilate: float = 0.05
    """A mask may leave its box by this share of the box's side, and by one pixel at least."""
    overlap: Literal["ignore", "smallest"] = "ignore"
    """Pixels of several objects in the semantic map: unknown (255), or the class of the smallest."""
    tight: bool = True
    """Boxes end where their objects end, so that masks are made to fill them."""
    min_score: float = 0.0
    """Detections with a lower score are left out."""
    network_size: int | None = None
    """Side in pixels of the network input; None takes the backbone's own."""

    def __post_init__(self) -> None:
        """Check choices and ranges."""
        check_choice("boxes-to-masks", "overlap", self.overlap, ("ignore", "smallest"))
        if not 0 <= self.dilate <= 1:
            raise ConfigError(f"boxes-to-masks: dilate is {self.dilate}; expected a share of the side in [0, 1]")


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxMask:
    """The mask of one box, on its own pixels."""

    source: Detection
    top: int
    left: int
    inside: NDArray[np.bool_]
    """(h, w), at least one pixel."""
    predicted_iou: float
    stability: float
    """Pixels above +1 over pixels above -1, in [0, 1]: 1 if the outline does not depend on the threshold."""

    @property
    def area(self) -> int:
        """Pixels."""
        return int(self.inside.sum())

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of ``inside`` in the image."""
        height, width = self.inside.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


@dataclass(frozen=True, kw_only=True, eq=False)
class Painted:
    """The masks of one image in label maps."""

    instance: NDArray[np.int32]
    """(H, W): mask i as i + 1; where several claim a pixel, the smallest."""
    semantic: NDArray[np.int32]
    """(H, W) classes, 0 background; the class of the smallest object."""
    overlap: NDArray[np.bool_]
    """(H, W): claimed by more than one object."""

    def marked(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Instance map with -1, and semantic map with 255, where several objects claim a pixel."""
        return np.where(self.overlap, -1, self.instance), np.where(self.overlap, UNKNOWN, self.semantic)


def masks_of_boxes(
    scene: Scene, backbone: Backbone, found: Sequence[Detection], config: BoxMasksConfig
) -> tuple[list[BoxMask], list[str]]:
    """One mask per box of an image.

    Args:
        scene: A picture or raster.
        backbone: Any backbone.
        found: Objects with boxes, inside the image.
        config: How.

    Returns:
        Masks in the order of ``found``, and what has none, with the reason.
    """
    boxed = [one for one in found if one.box is not None]
    left_out = [f"{one.source}: no box" for one in found if one.box is None]
    if not boxed:
        return [], left_out
    plane, size = Plane(scene, look_at(scene)), network_size(backbone, config.network_size)
    answers = boxes_in(
        backbone,
        plane.crop,
        torch.tensor([one.box for one in boxed], dtype=torch.float64),
        shape=plane.shape,
        size=size,
        contexts=CONTEXTS,
        batch=encode_batch(backbone, size),
        depth=DEPTH,
        fit=config.tight,
    )
    masks = []
    for one, answer in zip(boxed, answers, strict=True):
        rows, cols = answer.place
        mask = cut_mask(one, answer, plane.valid(rows, cols), config.dilate)
        if mask is None:
            left_out.append(f"{one.source}: no mask found")
        else:
            masks.append(mask)
    return masks, left_out


def cut_mask(one: Detection, answer: ObjectMask, valid: NDArray[np.bool_], dilate: float) -> BoxMask | None:
    """The part of an answer in a dilated box and on valid pixels; None if nothing is left.

    Args:
        one: Whose box it is.
        answer: Of the decoder.
        valid: (h, w) on the pixels of ``answer``.
        dilate: Share of the box's sides, at least one pixel.
    """
    if one.box is None:
        raise InputError(f"{one.source} has no box to be cut to")
    x0, y0, x1, y1 = one.box
    dx, dy = max(1.0, dilate * (x1 - x0 + 1)), max(1.0, dilate * (y1 - y0 + 1))
    rows, cols = answer.place
    y, x = np.arange(rows.start, rows.stop)[:, None], np.arange(cols.start, cols.stop)[None]
    near = (x >= x0 - dx) & (x <= x1 + dx) & (y >= y0 - dy) & (y <= y1 + dy) & valid
    logits = answer.logits.numpy()
    inside = (logits > 0) & near
    if not inside.any():
        return None
    most = int(((logits > -OFFSET) & near).sum())
    r, c = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return BoxMask(
        source=one,
        top=rows.start + int(r[0]),
        left=cols.start + int(c[0]),
        inside=np.ascontiguousarray(inside[r[0] : r[-1] + 1, c[0] : c[-1] + 1]),
        predicted_iou=answer.iou,
        stability=float(((logits > OFFSET) & near).sum()) / most,
    )


def paint_masks(masks: Sequence[BoxMask], classes: Mapping[str, int], shape: tuple[int, int]) -> Painted:
    """Draw masks from large to small.

    Args:
        masks: Of one image; of equal ones the later lies on top.
        classes: Class name -> label.
        shape: (H, W) of the image.
    """
    instance, semantic = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    claims = np.zeros(shape, np.int32)
    for number in sorted(range(len(masks)), key=lambda i: -masks[i].area):
        one = masks[number]
        instance[one.place][one.inside] = number + 1
        semantic[one.place][one.inside] = classes[one.source.class_name]
        claims[one.place] += one.inside
    return Painted(instance=instance, semantic=semantic, overlap=claims > 1)
