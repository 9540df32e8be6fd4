"""Thousands of prompts on one embedding, and the few masks worth keeping, in memory that does not follow their number.

Prompts are decoded in parts. Of every mask only its predicted IoU and its box stay; boxes decide which masks are the
same object. The masks themselves are a cache of bounded size: what fell out of it is decoded once more if its box
survives. All of this happens at the decoder's low resolution.

Source:
    Segment Anything, arXiv:2304.02643, section B (filters); ``monai.data.box_utils.non_max_suppression``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from monai.data.box_utils import non_max_suppression
from torch import Tensor

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.objects import boxes_of

KEPT_BYTES = 2**24
"""Low-resolution masks that are kept while more prompts are decoded: 1,024 of graft-tiny at 128 px, 64 of SAM-B."""
Test = Callable[[Tensor, Tensor], Tensor]
"""Logits (m, s, s) and predicted IoU (m,) -> which are worth keeping (m,) bool."""


@dataclass(frozen=True, eq=False)
class Found:
    """Masks that survived, the best first."""

    logits: Tensor
    """(m, s, s) float on the CPU, at the decoder's resolution."""
    iou: Tensor
    """(m,) predicted."""


@torch.no_grad()
def best_masks(
    backbone: Backbone, features: Features, prompts: Prompts, *, test: Test, nms: float, chunk: int | None = None
) -> Found:
    """Three masks per prompt, those that pass ``test``, and of those with nearly the same box the best.

    Args:
        backbone: Decodes.
        features: Of the image, or images.
        prompts: N prompts; N may be thousands.
        test: Filter on logits and predicted IoU; called with a part at a time, on the backbone's device.
        nms: Boxes with a larger IoU than this are the same object.
        chunk: Prompts decoded at once; None leaves it to the backbone.
    """
    kept, each = _Kept(nms), 1
    for rows, logits, iou in backbone.decode_parts(features, prompts, multimask=True, chunk=chunk):
        masks, scores = logits.flatten(0, 1).float(), iou.flatten().float()
        each = logits.shape[1]
        good = test(masks, scores).nonzero().flatten()
        origin = rows.to(good.device)[good // each] * each + good % each
        kept.add(origin.cpu(), masks[good].cpu(), scores[good].cpu())
    chosen = kept.chosen()
    lost = [number for number in chosen if number not in kept.masks]
    if lost:
        found = torch.cat(kept.origins)[lost].tolist()
        wanted: dict[int, list[tuple[int, int]]] = {}
        for number, origin in zip(lost, found, strict=True):
            wanted.setdefault(origin // each, []).append((number, origin % each))
        kept.masks |= _decode_again(backbone, features, prompts, wanted, chunk)
    if not chosen:
        return Found(torch.zeros(0, 1, 1), torch.zeros(0))
    return Found(torch.stack([kept.masks[number] for number in chosen]), torch.cat(kept.scores)[chosen])


class _Kept:
    """What is known of the masks that passed so far, numbered as they came."""

    def __init__(self, nms: float) -> None:
        self.nms = nms
        self.origins: list[Tensor] = []
        self.boxes: list[Tensor] = []
        self.scores: list[Tensor] = []
        self.masks: dict[int, Tensor] = {}
        self._count = 0

    def add(self, origin: Tensor, masks: Tensor, scores: Tensor) -> None:
        """Take masks (m, s, s); ``origin`` (m,) says where each comes from: prompt times masks per prompt plus mask."""
        if not len(masks):
            return
        self.origins.append(origin)
        self.boxes.append(outer_boxes(masks))
        self.scores.append(scores)
        # a copy each: a row of the part would keep the whole part alive
        self.masks |= {self._count + i: mask.clone() for i, mask in enumerate(masks)}
        self._count += len(masks)
        most = KEPT_BYTES // (masks[0].numel() * masks.element_size())
        if len(self.masks) > most:
            best = [number for number in self.chosen() if number in self.masks]
            self.masks = {number: self.masks[number] for number in best[: most // 2 + 1]}

    def chosen(self) -> list[int]:
        """Numbers that survive among all so far, the best first."""
        if not self.boxes:
            return []
        numbers: list[int] = non_max_suppression(torch.cat(self.boxes), torch.cat(self.scores), self.nms).tolist()
        return numbers


def _decode_again(
    backbone: Backbone,
    features: Features,
    prompts: Prompts,
    wanted: dict[int, list[tuple[int, int]]],
    chunk: int | None,
) -> dict[int, Tensor]:
    """Masks by number; ``wanted`` says for a prompt which numbers its masks have: (number, mask of the prompt).

    They are the masks of before, up to the last bits of a float.
    """
    asked = sorted(wanted)
    masks: dict[int, Tensor] = {}
    again = prompts.select(torch.tensor(asked, device=prompts.image_index.device))
    for rows, logits, _ in backbone.decode_parts(features, again, multimask=True, chunk=chunk):
        for row, some in zip(rows.tolist(), logits, strict=True):
            masks |= {number: some[which].float().cpu().clone() for number, which in wanted[asked[row]]}
    return masks


def outer_boxes(logits: Tensor) -> Tensor:
    """(m, 4) outer edges x0, y0, x1, y1 of masks above 0, in mask pixels; zeros for an empty mask."""
    masks = logits > 0
    boxes = boxes_of(masks)
    boxes[:, 2:] += masks.flatten(1).any(dim=1)[:, None]
    return boxes
