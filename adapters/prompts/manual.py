"""Prompts that a person gives: points, boxes and masks, checked against the image before anything is computed.

Coordinates are (x, y) pixels of the network input, 0 at the centre of the first pixel; a box is (x0, y0, x1, y1) with
the first and the last pixel inside, so a box of one pixel is (5, 5, 5, 5).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from samgraft.adapters.prompts.base import PrompterConfig, PromptGenerator, Prompts
from samgraft.errors import PromptError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone, Features

FOREGROUND, BACKGROUND, PADDING = 1, 0, -10

PointList = Sequence[Sequence[Sequence[float]]]
"""Per instance a list of (x, y)."""


@dataclass(frozen=True, kw_only=True)
class ManualConfig(PrompterConfig):
    """Hands on what the caller puts into the context; nothing is trained."""

    method: ClassVar[str] = "manual"

    def build(self, backbone: "Backbone") -> "ManualPrompter":
        """Create the pass-through; the backbone does not matter."""
        del backbone
        return ManualPrompter()


class ManualPrompter(PromptGenerator):
    """Returns ``context["prompts"]``, or builds prompts from ``context`` keys that :func:`make_prompts` knows."""

    def forward(self, features: "Features", image: Tensor, context: Mapping[str, Any]) -> Prompts:
        """Prompts of the caller, checked against the image.

        Raises:
            PromptError: nothing was given, an unknown key, or a prompt outside the image.
        """
        height, width = image.shape[-2:]
        if "prompts" in context:
            prompts: Prompts = context["prompts"]
            check_prompts(prompts, (height, width), num_images=len(image))
            return prompts.to(image.device)
        known = ("points", "labels", "boxes", "masks", "image_index", "from_ground_truth")
        extra = sorted(set(context) - set(known))
        if extra or not {"points", "boxes", "masks"} & set(context):
            raise PromptError(f"manual prompts got {sorted(context)}; give 'prompts', or some of {', '.join(known)}")
        given = {key: context[key] for key in known if key in context}
        prompts = make_prompts((height, width), **given)
        check_prompts(prompts, (height, width), num_images=len(image))
        return prompts.to(image.device)


def make_prompts(
    size: tuple[int, int],
    *,
    points: PointList | None = None,
    labels: Sequence[Sequence[int]] | None = None,
    boxes: Sequence[Sequence[float]] | Tensor | None = None,
    masks: Tensor | None = None,
    image_index: Sequence[int] | Tensor | None = None,
    from_ground_truth: bool = False,
) -> Prompts:
    """Build checked prompts of N instances from lists.

    Args:
        size: (H, W) of the network input in pixels.
        points: Per instance a list of (x, y); lists may differ in length and are padded.
        labels: Per instance one label per point, 1 foreground or 0 background; None means all foreground.
        boxes: N boxes (x0, y0, x1, y1), first and last pixel inside.
        masks: (N, 1, 4h, 4w) logits of an earlier mask.
        image_index: Image of each instance; None means all in image 0.
        from_ground_truth: True when a label was looked at to make these.

    Raises:
        PromptError: nothing given, fields of different lengths, labels other than 0 and 1, or anything outside the
            image.
    """
    counts = {name: len(v) for name, v in (("points", points), ("boxes", boxes), ("masks", masks)) if v is not None}
    if not counts or len(set(counts.values())) > 1:
        raise PromptError(
            f"prompts per field are {counts or 'none'}; give points, boxes or masks, one entry per instance in each"
        )
    number = next(iter(counts.values()))
    if image_index is None:
        image_index = [0] * number
    index = torch.as_tensor(image_index, dtype=torch.int64)
    coordinates, point_labels = (None, None) if points is None else _pad_points(points, labels)
    if points is None and labels is not None:
        raise PromptError(f"labels {list(labels)} have no points; give both or neither")
    prompts = Prompts(
        image_index=index,
        points=coordinates,
        labels=point_labels,
        boxes=None if boxes is None else _as_boxes(boxes),
        masks=masks,
        from_ground_truth=from_ground_truth,
    )
    check_prompts(prompts, size)
    return prompts


def check_prompts(prompts: Prompts, size: tuple[int, int], *, num_images: int | None = None) -> None:
    """Refuse prompts that do not lie in an image of ``size`` (H, W).

    Raises:
        PromptError: a point or box outside (the extent is named), a box whose ends are swapped, a non-finite
            coordinate, a label other than 1, 0, -10, or an image index that does not exist.
    """
    if prompts.points is not None and prompts.labels is not None:
        if prompts.points.shape[:-1] != prompts.labels.shape or prompts.points.shape[-1] != 2:
            raise PromptError(
                f"points are {tuple(prompts.points.shape)}, "
                f"labels {tuple(prompts.labels.shape)}; expected (N, p, 2), (N, p)"
            )
        strange = ~torch.isin(
            prompts.labels, torch.tensor([FOREGROUND, BACKGROUND, PADDING], device=prompts.labels.device)
        )
        if strange.any():
            value = prompts.labels[strange][0].item()
            raise PromptError(f"point label {value}; expected 1 (foreground), 0 (background) or -10 (padding)")
        _check_inside("point", prompts.points[prompts.labels != PADDING], size)
    if prompts.boxes is not None:
        _check_inside("corner of a box", prompts.boxes.reshape(-1, 2), size)
        swapped = (prompts.boxes[:, 2:] < prompts.boxes[:, :2]).any(dim=1)
        if swapped.any():
            box = prompts.boxes[swapped][0].tolist()
            raise PromptError(
                f"box {_numbers(box)} ends before it starts; give (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1"
            )
    if num_images is not None and len(prompts):
        low, high = int(prompts.image_index.min()), int(prompts.image_index.max())
        if low < 0 or high >= num_images:
            raise PromptError(f"image_index runs from {low} to {high}; the batch has images 0..{num_images - 1}")


def _check_inside(what: str, coordinates: Tensor, size: tuple[int, int]) -> None:
    height, width = size
    limit = torch.tensor([width - 0.5, height - 0.5], device=coordinates.device, dtype=torch.float64)
    wide = coordinates.to(torch.float64)
    inside = (wide >= -0.5).all(dim=-1) & (wide <= limit).all(dim=-1)
    if not inside.all():
        found = coordinates[~inside][0].tolist()
        raise PromptError(
            f"{what} {_numbers(found)} lies outside the image: x 0..{width - 1}, y 0..{height - 1}; "
            "coordinates are (x, y) pixels"
        )


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _as_boxes(boxes: Sequence[Sequence[float]] | Tensor) -> Tensor:
    tensor = torch.as_tensor(boxes, dtype=torch.float32)
    if tensor.ndim != 2 or tensor.shape[1] != 4:
        raise PromptError(f"boxes have shape {tuple(tensor.shape)}; expected (N, 4): x0, y0, x1, y1 of each instance")
    return tensor


def _pad_points(points: PointList, labels: Sequence[Sequence[int]] | None) -> tuple[Tensor, Tensor]:
    if labels is None:
        labels = [[FOREGROUND] * len(instance) for instance in points]
    lengths, label_lengths = [len(p) for p in points], [len(v) for v in labels]
    if lengths != label_lengths:
        raise PromptError(f"instances have {lengths} points and {label_lengths} labels; give one label per point")
    longest = max(lengths, default=0)
    if longest == 0:
        raise PromptError(
            f"all {len(points)} instances have an empty list of points; give points=None or at least one point"
        )
    coordinates = torch.zeros(len(points), longest, 2)
    padded = torch.full((len(points), longest), PADDING, dtype=torch.int64)
    for row, (instance, values) in enumerate(zip(points, labels, strict=True)):
        for column, (point, value) in enumerate(zip(instance, values, strict=True)):
            if len(point) != 2 or value not in (FOREGROUND, BACKGROUND):
                raise PromptError(f"point {tuple(point)} with label {value}; expected (x, y) with label 1 or 0")
            coordinates[row, column] = torch.tensor([float(point[0]), float(point[1])])
            padded[row, column] = value
    return coordinates, padded
