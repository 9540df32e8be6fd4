"""How close a student is to its teacher on held-out tiles: the embedding, and the masks of the same boxes."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.prompts.base import Prompts
from samgraft.recipes.distill.prompting import box_prompts, scale_prompts
from samgraft.recipes.distill.teacher import Teacher, resize_square

BOXES_PER_TILE = 8
"""Objects asked for in each held-out tile, the teacher's most certain ones."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured; every figure compares student and teacher, none looks at a label."""

    embedding_mse: float
    """Mean squared difference of embeddings."""
    relative_error: float
    """Root of the squared difference over the teacher's squared deviation from its mean per channel: 0 is equal, 1 is
    no better than always answering that mean."""
    mask_iou: float
    """Mean IoU of the student's mask with the teacher's for the same box."""
    box_iou: float
    """The same if the box itself, filled, were the answer: what prompts alone give."""
    iou_gap: float
    """Mean absolute difference of predicted IoU."""
    tiles: int
    """Held-out tiles."""
    boxes: int
    """Boxes whose teacher mask is not empty: the n of the mask figures."""


@dataclass(kw_only=True)
class Judge:
    """Adds up over batches."""

    tiles: int = 0
    square: float = 0.0
    values: int = 0
    sums: Tensor | None = None
    squares: float = 0.0
    ious: list[Tensor] = field(default_factory=list)
    filled: list[Tensor] = field(default_factory=list)
    gaps: list[Tensor] = field(default_factory=list)

    @torch.no_grad()
    def add(self, student: HFSamBackbone, size: int, teacher: Teacher, view: Tensor) -> None:
        """Compare on views (B, 3, S, S) in [0, 1]; ``size`` is the side of what the student sees."""
        target = teacher.neck(view)
        own = student.encode(resize_square(view, size)).neck
        self._add_embedding(own.float(), resize_square(target, own.shape[-1]))
        prompts = box_prompts(teacher.objects(view, target), side=view.shape[-1], most=BOXES_PER_TILE)
        wanted, expected = teacher.decode(target, prompts, side=view.shape[-1], multimask=False)
        placed = scale_prompts(prompts, size / view.shape[-1]).to(own.device)
        logits, iou = student.decode(Features(neck=own), placed)
        logits = resize_square(logits.float(), wanted.shape[-1])
        self._add_masks(logits[:, 0] > 0, wanted[:, 0] > 0, prompts, view.shape[-1])
        self.gaps.append((iou[:, 0].float() - expected[:, 0]).abs().cpu())

    def _add_embedding(self, own: Tensor, target: Tensor) -> None:
        wide = target.double()
        self.square += float((own.double() - wide).square().sum())
        total = wide.sum((0, 2, 3)).cpu()
        self.sums = total if self.sums is None else self.sums + total
        self.squares += float(wide.square().sum())
        self.values += wide.numel()
        self.tiles += len(wide)

    def _add_masks(self, own: Tensor, wanted: Tensor, prompts: Prompts, side: int) -> None:
        kept = wanted.flatten(1).any(1)
        self.ious.append(mask_iou(own, wanted)[kept].cpu())
        if prompts.boxes is not None:
            boxes = fill_boxes(prompts.boxes, wanted.shape[-1], side).to(wanted.device)
            self.filled.append(mask_iou(boxes, wanted)[kept].cpu())

    def figures(self) -> Figures:
        """The means."""
        if self.sums is None:
            raise RuntimeError("nothing was judged; call add first")
        channels = len(self.sums)
        spread = self.squares - float(self.sums.square().sum()) / (self.values / channels)
        ious, filled, gaps = (torch.cat(parts) for parts in (self.ious, self.filled, self.gaps))
        return Figures(
            embedding_mse=self.square / self.values,
            relative_error=(self.square / max(spread, 1e-12)) ** 0.5,
            mask_iou=float(ious.mean()) if len(ious) else float("nan"),
            box_iou=float(filled.mean()) if len(filled) else float("nan"),
            iou_gap=float(gaps.mean()) if len(gaps) else float("nan"),
            tiles=self.tiles,
            boxes=len(ious),
        )


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (n,) of bool masks (n, s, s); 0 where both are empty."""
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2)).clamp_min(1)


def fill_boxes(boxes: Tensor, cells: int, side: int) -> Tensor:
    """Bool masks (n, cells, cells): cells whose centre lies in a box (n, 4) of pixels of a view of ``side``."""
    centre = (torch.arange(cells) + 0.5) * (side / cells) - 0.5
    x0, y0, x1, y1 = (boxes.cpu()[:, i, None] for i in range(4))
    across = (centre >= x0 - 0.5) & (centre <= x1 + 0.5)
    down = (centre >= y0 - 0.5) & (centre <= y1 + 0.5)
    return down[:, :, None] & across[:, None, :]
