"""Prompts as a person would give them, made from the true masks: one object for training and for evaluation.

An object starts with a box (tight, or each side moved at random) or with a click (the deepest point, or any point
inside). Every further click lies in the middle of the largest connected error of the mask so far: positive where the
object was missed, negative where the mask is too large. The mask so far goes in as well. Whatever comes out of here is
marked ``from_ground_truth``: such figures say how well a person would be served, never how well a machine works alone.

    masks -> start -> decode -> correct -> decode -> correct -> ...

Source:
    Segment Anything, arXiv:2304.02643, appendix A (box or point first, then points from the error region with the
    previous logits; three masks for the first single point).
Deviations:
    Corrective clicks lie in the middle of the largest error, where the paper draws them at random from all errors: for
    random ones see :func:`~samgraft.adapters.prompts.clicks.random_error_clicks`. Box sides move uniformly within a
    bound, not normally.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.config import check_choice
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.clicks import deepest_point, error_clicks, random_points, with_click
from samgraft.adapters.prompts.manual import FOREGROUND
from samgraft.adapters.prompts.objects import boxes_of
from samgraft.errors import ConfigError, PromptError, ShapeError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone, Features

_STRIDE = 1_000_003
"""Between the seeds of two steps, so that neighbouring seeds do not share draws."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """What was asked, and what the decoder answered."""

    prompts: Prompts
    """Of N objects."""
    logits: Tensor
    """(N, 4h, 4w): of three candidates the one with the largest predicted IoU."""
    iou: Tensor
    """(N,) predicted."""


@dataclass(frozen=True, kw_only=True)
class SimulatedPrompts:
    """A person who knows the answer. JSON types only, so that it can stand in a configuration."""

    clicks: int = 1
    """Clicks in all. With a box every click is a correction; without, the first one starts."""
    first: Literal["centre", "inside"] = "centre"
    """Where the first click falls: on the deepest point of the object, or on any of its pixels."""
    box: bool = False
    """Start with the object's box instead of a click."""
    jitter: float = 0.0
    """Each side of the box is moved by at most this share of the box's width or height, either way."""
    previous_mask: bool = True
    """The mask so far goes in with every correction."""
    seed: int = 0
    """Of everything random; see :meth:`draw`."""

    def __post_init__(self) -> None:
        """Check numbers and what belongs together."""
        check_choice("simulated prompts", "first", self.first, ("centre", "inside"))
        least = 0 if self.box else 1
        if self.clicks < least:
            raise ConfigError(f"simulated prompts: clicks is {self.clicks}; expected at least {least}, or box=True")
        if not 0 <= self.jitter < 0.5:
            raise ConfigError(
                f"simulated prompts: jitter is {self.jitter}; expected a share of the side in [0, 0.5), such as 0.1"
            )

    @property
    def corrections(self) -> int:
        """Clicks after the start."""
        return self.clicks if self.box else self.clicks - 1

    def draw(self, step: int = 0) -> torch.Generator:
        """Source of randomness of one step: equal for equal ``seed`` and ``step``."""
        return torch.Generator().manual_seed(self.seed * _STRIDE + step)

    def start(self, masks: Tensor, image_index: Tensor, generator: torch.Generator | None = None) -> Prompts:
        """First prompts.

        Args:
            masks: (N, H, W) bool at the size of the network input, none of them empty.
            image_index: (N,) int64.
            generator: On the CPU; None takes :meth:`draw` of step 0.

        Raises:
            PromptError: an empty mask, named by its row.
            ShapeError: not (N, H, W).
        """
        _require_objects(masks)
        random = self.draw() if generator is None else generator
        if self.box:
            boxes = jittered(boxes_of(masks), self.jitter, (masks.shape[1], masks.shape[2]), random)
            return Prompts(image_index=image_index, boxes=boxes, from_ground_truth=True)
        if self.first == "inside":
            points = random_points(masks, random)
        else:
            places = [deepest_point(mask) for mask in masks.cpu().numpy()]
            points = torch.tensor(places, dtype=torch.float32, device=masks.device).reshape(-1, 2)
        labels = torch.full((len(masks), 1), FOREGROUND, dtype=torch.int64, device=masks.device)
        return Prompts(image_index=image_index, points=points[:, None], labels=labels, from_ground_truth=True)

    def correct(self, prompts: Prompts, logits: Tensor, masks: Tensor, known: Tensor | None = None) -> Prompts:
        """``prompts`` with one click more, and with the mask so far.

        Args:
            prompts: What was asked.
            logits: (N, h', w') the answer, at any resolution over the whole input.
            masks: (N, H, W) bool, the truth.
            known: (N, H, W) bool: False where the truth is not known. None knows everything.
        """
        _require_objects(masks)
        seen = logits.detach()
        full = functional.interpolate(seen[:, None].float(), masks.shape[1:], mode="bilinear", align_corners=False)
        points, labels = error_clicks(full[:, 0] > 0, masks, known)
        more = replace(with_click(prompts, points, labels), from_ground_truth=True)
        return replace(more, masks=seen[:, None]) if self.previous_mask else more

    def rounds(
        self,
        backbone: "Backbone",
        features: "Features",
        masks: Tensor,
        image_index: Tensor,
        *,
        known: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Round]:
        """Ask, look, correct: one round for the start and one per correction.

        Gradients flow through the logits of every round, not from one round into the one before.

        Args:
            backbone: Decodes; frozen or with parts attached.
            features: Of B images.
            masks: (N, H, W) bool at the size of the network input, none of them empty.
            image_index: (N,) int64.
            known: (N, H, W) bool or None, as in :meth:`correct`.
            generator: As in :meth:`start`.

        Raises:
            PromptError: an empty mask.
        """
        prompts = self.start(masks, image_index, generator)
        for number in range(self.corrections + 1):
            three = number == 0 and not self.box
            logits, iou = backbone.decode(features, prompts, multimask=three)
            best = iou.argmax(dim=1)
            rows = torch.arange(len(best), device=best.device)
            answer = Round(prompts=prompts, logits=logits[rows, best], iou=iou[rows, best])
            yield answer
            if number < self.corrections:
                prompts = self.correct(prompts, answer.logits, masks, known)


def jittered(boxes: Tensor, share: float, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Move every side of boxes (N, 4) by up to ``share`` of their length; they stay in an image of ``size`` (H, W).

    The result is a box of at least one pixel. Draws nothing if ``share`` is 0.
    """
    if share == 0:
        return boxes
    length = (boxes[:, 2:] - boxes[:, :2] + 1).repeat(1, 2)
    shift = 2 * torch.rand(boxes.shape, generator=generator).to(boxes) - 1
    limit = boxes.new_tensor([size[1] - 1, size[0] - 1] * 2)
    moved = torch.minimum((boxes + share * length * shift).clamp_min(0), limit)
    return torch.cat([moved[:, :2], torch.maximum(moved[:, 2:], moved[:, :2])], dim=1)


def _require_objects(masks: Tensor) -> None:
    if masks.ndim != 3 or masks.dtype != torch.bool:
        raise ShapeError(f"masks are {tuple(masks.shape)} {masks.dtype}; expected (N, H, W) bool")
    empty = (~masks.flatten(1).any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise PromptError(f"masks {empty[:10]} are empty, so nobody would prompt them; leave them out")
