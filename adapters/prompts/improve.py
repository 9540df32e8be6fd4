"""Better masks from the same prompts, without training: one more point inside the first mask, or the mask as a prompt.

Point augmentation asks once, takes the best mask M, chooses one more point of M and asks again with both points. The
point is a random one, the one whose 9 x 9 surroundings differ most in grey-value entropy from those of the first point,
the one farthest from the first point, or a salient one. Self-correction hands the mask back as a box and as logits, and
goes on while the predicted IoU does not fall and the mask still changes; no object ends with a lower predicted IoU than
it had.

    H(p) = entropy of the grey values (256 levels) in the 9 x 9 pixels around p
    entropy: argmax over p in M of |H(p) - H(p0)|        distance: argmax over p in M of |p - p0|

Source:
    SAMAug, arXiv:2307.01187, section 3, and yhydhx/SAMAug:SAMAug.py (histogram of 256 levels, 9 x 9 pixels). The
    cascade of mask, box and logits: PerSAM, arXiv:2305.03048, section 3.3. Saliency: the spectral residual, Hou and
    Zhang, CVPR 2007, section 2.
Deviations:
    The released code evaluates entropy and distance at (row, col) where it means (x, y), so on anything that is not
    symmetric it chooses another point; here both are read in (x, y). It falls back to pixel (0, 0) where no point beats
    0; here the arg-max always lies in the mask. Saliency comes from the spectral residual of the mask's box and 10
    pixels around it, not from a visual saliency transformer, which would be a second network; the offset of that crop
    is its real corner, where the released code adds one that may lie outside the image. Self-correction keeps a box
    that the caller gave.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.config import check_choice
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.clicks import with_click
from samgraft.adapters.prompts.manual import FOREGROUND, PADDING
from samgraft.adapters.prompts.objects import boxes_of
from samgraft.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Features, Promptable

Kind = Literal["random", "entropy", "distance", "saliency"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Ways to choose the extra point."""
PATCH = 9
"""Side in pixels of the surroundings whose entropy is compared."""
LEVELS = 256
"""Grey levels that are told apart."""
MARGIN = 10
"""Pixels around the mask's box that saliency is computed in."""
SALIENT = 0.9
"""A salient pixel is at least at this quantile of the mask's saliency."""
_GRAY = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class Improvement:
    """What happens to the first answer; nothing by default."""

    augment: Kind | None = None
    """Kind of the extra point, or None for none."""
    keep_better: bool = True
    """Take the answer with the extra point only where its predicted IoU is not lower (SAMAug takes it always)."""
    refine: int = 0
    """Most rounds of self-correction."""
    seed: int = 0
    """Of random and salient points."""

    def __post_init__(self) -> None:
        """Check choices and numbers."""
        if self.augment is not None:
            check_choice("prompt improvement", "augment", self.augment, KINDS)
        if self.refine < 0:
            raise ConfigError(f"prompt improvement: refine is {self.refine}; expected 0 or more rounds")

    def __bool__(self) -> bool:
        """Whether anything is to be done."""
        return self.augment is not None or self.refine > 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """One mask per prompt."""

    logits: Tensor
    """(N, 4h, 4w)."""
    iou: Tensor
    """(N,) predicted."""

    def at(self, rows: Tensor) -> "Answer":
        """The rows that are named."""
        return Answer(logits=self.logits[rows], iou=self.iou[rows])

    def exchanged(self, other: "Answer", which: Tensor) -> "Answer":
        """Rows of ``other`` where ``which`` (N,) is True."""
        logits = torch.where(which[:, None, None], other.logits, self.logits)
        return Answer(logits=logits, iou=torch.where(which, other.iou, self.iou))


def best_answer(logits: Tensor, iou: Tensor) -> Answer:
    """Of candidates (N, K, h, w) those with the largest predicted IoU (N, K)."""
    rows, best = torch.arange(len(iou), device=iou.device), iou.argmax(dim=1)
    return Answer(logits=logits[rows, best], iou=iou[rows, best])


@torch.no_grad()
def improve(
    backbone: "Promptable", features: "Features", image: Tensor, prompts: Prompts, answer: Answer, what: Improvement
) -> Answer:
    """Do what ``what`` says, first the extra point, then self-correction.

    Args:
        backbone: Decodes.
        features: Of B images.
        image: (B, 3, H, W) in [0, 1].
        prompts: N prompts in pixels of the network input.
        answer: What the decoder said to them.
        what: Which improvements.
    """
    if what.augment is not None:
        generator = torch.Generator().manual_seed(what.seed)
        prompts, answer = augment(
            backbone, features, image, prompts, answer, kind=what.augment, generator=generator, keep=what.keep_better
        )
    return refine(backbone, features, prompts, answer, (image.shape[2], image.shape[3]), what.refine)


def augment(
    backbone: "Promptable",
    features: "Features",
    image: Tensor,
    prompts: Prompts,
    answer: Answer,
    *,
    kind: Kind,
    generator: torch.Generator,
    keep: bool = False,
) -> tuple[Prompts, Answer]:
    """Ask again with one more point inside the mask.

    Args:
        backbone: Decodes.
        features: Of B images.
        image: (B, 3, H, W) in [0, 1].
        prompts: N prompts.
        answer: To them.
        kind: Which point.
        generator: On the CPU; for random and salient points.
        keep: Keep the first answer where its predicted IoU is larger, and choose the second among three masks (without
            a box), whose predicted IoU compares with the first; False always takes the single mask, as published.

    Returns:
        Prompts with the point (a padding point where the mask is empty, whose answer stays), and the answers.
    """
    size = (image.shape[2], image.shape[3])
    full = functional.interpolate(answer.logits[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0] > 0
    start = first_places(prompts, full)
    points, labels = extra_points(image, full, start, prompts.image_index, kind=kind, generator=generator)
    more = with_click(prompts, points, labels)
    second = best_answer(*backbone.decode(features, more, multimask=keep and prompts.boxes is None))
    take = labels[:, 0] == FOREGROUND
    return more, answer.exchanged(second, take & (second.iou >= answer.iou) if keep else take)


def first_places(prompts: Prompts, masks: Tensor) -> Tensor:
    """(N, 2) where each prompt looked: its first positive point, else the middle of its box, else that of its mask."""
    places = _middles(masks)
    if prompts.boxes is not None:
        places = (prompts.boxes[:, :2] + prompts.boxes[:, 2:]) / 2
    if prompts.points is not None and prompts.labels is not None:
        positive = prompts.labels == FOREGROUND
        rows = torch.arange(len(prompts), device=positive.device)
        chosen = prompts.points[rows, positive.int().argmax(dim=1)]
        places = torch.where(positive.any(dim=1)[:, None], chosen, places.to(chosen))
    return places


def _middles(masks: Tensor) -> Tensor:
    """(N, 2) middles of the boxes of masks (N, H, W); (0, 0) for an empty one."""
    boxes = boxes_of(masks)
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def extra_points(
    image: Tensor,
    masks: Tensor,
    points: Tensor,
    image_index: Tensor,
    *,
    kind: Kind,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """One more positive point inside each mask.

    Args:
        image: (B, 3, H, W) in [0, 1].
        masks: (N, H, W) bool.
        points: (N, 2) the first points, (x, y).
        image_index: (N,) which image each mask lies in.
        kind: "random", "entropy", "distance" or "saliency".
        generator: On the CPU; for "random" and "saliency". None seeds one with 0.

    Returns:
        Points (N, 1, 2) and labels (N, 1): 1, or -10 (padding) where the mask is empty.

    Raises:
        ShapeError: masks are not of the image's size.
        ConfigError: an unknown kind.
    """
    check_choice("prompt improvement", "kind", kind, KINDS)
    if masks.shape[1:] != image.shape[2:]:
        raise ShapeError(f"masks are {tuple(masks.shape)}; expected the size of the image, {tuple(image.shape[2:])}")
    draw = torch.Generator().manual_seed(0) if generator is None else generator
    gray = (image.float() * image.new_tensor(_GRAY).float()[:, None, None]).sum(dim=1)
    maps: dict[int, Tensor] = {}
    found = torch.zeros(len(masks), 1, 2, device=masks.device)
    labels = torch.full((len(masks), 1), PADDING, dtype=torch.int64, device=masks.device)
    for number, (mask, place, index) in enumerate(zip(masks, points, image_index.tolist(), strict=True)):
        inside = mask.nonzero()  # (n, 2) row, col
        if not len(inside):
            continue
        if kind == "entropy" and index not in maps:
            maps[index] = entropy_map(gray[index])
        score = _scores(kind, inside, place, gray[index], maps.get(index), draw)
        row, col = inside[int(score.argmax())]
        found[number, 0] = torch.stack([col, row])
        labels[number] = FOREGROUND
    return found, labels


def _scores(
    kind: Kind, inside: Tensor, place: Tensor, gray: Tensor, entropy: Tensor | None, draw: torch.Generator
) -> Tensor:
    """How much each pixel (row, col) of a mask is worth, (n,); the first of the best is taken."""
    rows, cols = inside[:, 0], inside[:, 1]
    if kind == "distance":
        return (cols - place[0]) ** 2 + (rows - place[1]) ** 2
    if kind == "entropy" and entropy is not None:
        x = int(place[0].round().clamp(0, gray.shape[1] - 1))
        y = int(place[1].round().clamp(0, gray.shape[0] - 1))
        return (entropy[rows, cols] - entropy[y, x]).abs()
    chance = torch.rand(len(inside), generator=draw).to(inside.device)
    if kind == "random":
        return chance
    top, left = (int((v.min() - MARGIN).clamp_min(0)) for v in (rows, cols))
    bottom, right = (int(v.max() + MARGIN + 1) for v in (rows, cols))
    salient = saliency_map(gray[top:bottom, left:right])[rows - top, cols - left]
    return chance + (salient >= salient.quantile(SALIENT)).float()


def entropy_map(gray: Tensor, patch: int = PATCH) -> Tensor:
    """Entropy in bits of the grey values around every pixel.

    Args:
        gray: (H, W) in [0, 1]; cut into 256 levels.
        patch: Odd side of the surroundings, which end at the image's edge.

    Returns:
        (H, W) float, 0 to 2 log2(patch).
    """
    levels = (gray.clamp(0, 1) * (LEVELS - 1)).round().long()
    options = {"kernel_size": patch, "stride": 1, "padding": patch // 2, "count_include_pad": False}
    total = torch.zeros_like(gray, dtype=torch.float32)
    for level in levels.unique().tolist():
        share = functional.avg_pool2d((levels == level).float()[None], **options)[0]  # type: ignore[arg-type]
        total -= torch.xlogy(share, share)
    return total / torch.log(torch.tensor(2.0))


def saliency_map(gray: Tensor) -> Tensor:
    """What stands out of a grey image (h, w): the spectral residual, smoothed; any scale, at least 0."""
    spectrum = torch.fft.fft2(gray.float() - gray.float().mean())
    log = spectrum.abs().clamp_min(1e-8).log()
    around = functional.pad(log[None, None], (1, 1, 1, 1), mode="circular")
    residual = log - functional.avg_pool2d(around, 3, 1)[0, 0]
    salient = torch.fft.ifft2(torch.polar(residual.exp(), spectrum.angle())).abs() ** 2
    return functional.avg_pool2d(salient[None], 5, 1, 2, count_include_pad=False)[0]


def refine(
    backbone: "Promptable", features: "Features", prompts: Prompts, answer: Answer, size: tuple[int, int], rounds: int
) -> Answer:
    """Hand masks back as prompts until they stay, or their predicted IoU falls.

    Args:
        backbone: Decodes.
        features: Of B images.
        prompts: N prompts; their points and boxes stay. Those without a box get that of the mask, and three masks to
            choose from.
        answer: To them.
        size: (H, W) of the network input.
        rounds: At most.

    Returns:
        Per object the last answer whose predicted IoU is not below the one before; never below that of ``answer``.
    """
    going = (answer.logits > 0).flatten(1).any(dim=1).nonzero().flatten()
    for _ in range(rounds):
        if not len(going):
            break
        before = answer.at(going)
        asked = mask_prompts(prompts.select(going), before.logits, size)
        again = best_answer(*backbone.decode(features, asked, multimask=prompts.boxes is None))
        good = (again.iou >= before.iou) & (again.logits > 0).flatten(1).any(dim=1)
        moved = ((again.logits > 0) != (before.logits > 0)).flatten(1).any(dim=1)
        kept = before.exchanged(again, good)
        logits, iou = answer.logits.clone(), answer.iou.clone()
        logits[going], iou[going] = kept.logits, kept.iou
        answer = Answer(logits=logits, iou=iou)
        going = going[good & moved]
    return answer


def mask_prompts(prompts: Prompts, logits: Tensor, size: tuple[int, int]) -> Prompts:
    """``prompts`` with their masks as logits, and where they have no box, with the masks' boxes.

    Args:
        prompts: N prompts.
        logits: (N, 4h, 4w), none of the masks empty.
        size: (H, W) of the network input: a cell's outer edges become those of pixels.
    """
    boxes = prompts.boxes
    if boxes is None:
        unit = logits.new_tensor([size[1] / logits.shape[2], size[0] / logits.shape[1]]).float()
        cells = boxes_of(logits > 0).to(unit)
        low, high = cells[:, :2] * unit, (cells[:, 2:] + 1) * unit - 1
        boxes = torch.cat([low, torch.maximum(high, low)], dim=1)
    return replace(prompts, boxes=boxes, masks=logits[:, None])
