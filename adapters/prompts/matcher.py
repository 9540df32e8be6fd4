"""Matcher: cells of the reference object are assigned to cells of a new image and back, and points drawn from them.

    forward    cells of the object -> different cells of the image, the assignment with the largest sum of cosines
    back       those cells -> cells of the reference image; a match that does not come back into the object is dropped
    sample     the places left are grouped (k-means++); subsets of the groups' centres, and the box, become prompts
    score      alpha (1 - EMD) + beta purity coverage^lambda of every mask, and the best ones are joined

EMD is the cost of moving the object's cells onto the mask's; coverage the share of matches that a mask holds; purity
the number of them over the mask's area in cells. Nothing is trained. All numbers are bounded: cells per side of an
assignment, prompts, and cells in an EMD.

Source:
    Matcher, arXiv:2305.13310, sections 3.1 to 3.3; github.com/aim-uofa/Matcher, matcher/Matcher.py.
Deviations:
    Features are the backbone's own instead of DINOv2's. EMD between two samples of the same size and equal masses is
    an assignment, and is solved as one. Prompts of a dense grid are not added. An object without a pixel is an error
    (the released code puts a square in the middle). Cells count by the share that is object, down to any.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from monai.data.box_utils import non_max_suppression
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.manual import FOREGROUND, PADDING
from samgraft.adapters.prompts.matching import (
    ReferenceConfig,
    ReferencePrompter,
    allowed_cells,
    cell_centres,
    image_major,
    size_of,
)
from samgraft.adapters.prompts.objects import FoundObjects
from samgraft.adapters.prompts.references import references_of
from samgraft.adapters.prompts.refining import found_objects, tight_boxes
from samgraft.errors import ConfigError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone

MANY = 40
"""Above this many matches only the better half is kept."""


@dataclass(frozen=True, kw_only=True)
class MatcherConfig(ReferenceConfig):
    """Points from a bidirectional assignment of cells, and masks judged by it."""

    method: ClassVar[str] = "matcher"
    centres: int = 8
    """Groups of matched places; their centres are the points of prompts."""
    sizes: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    """Points in one prompt."""
    samples: int = 8
    """Prompts of each size (64 are published)."""
    boxed: bool = True
    """Also ask with the box around all matches, alone and with every centre."""
    max_cells: int = 256
    """Cells of the object that are assigned; more are thinned out evenly."""
    max_memory: int = 4096
    """Cells of the reference images that matches may come back to; those of the object always may."""
    alpha: float = 0.8
    """Weight of the EMD term."""
    beta: float = 0.2
    """Weight of purity and coverage."""
    exponent: float = 1.0
    """lambda, of coverage."""
    min_iou: float = 0.5
    """Least predicted IoU of a mask; lowered to the best if none reaches it."""
    min_coverage: float = 0.0
    """Least coverage; lowered likewise."""
    nms: float = 0.65
    """Masks whose boxes have a larger IoU are the same."""
    distance: float = 0.33
    """Joined masks have 1 - score below this,"""
    spread: float = 0.1
    """and lie in this best share of the range of scores; the best one is always kept."""
    joined: int = 9
    """Most masks that are joined."""
    seed: int = 0
    """Of grouping and subsets."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        counts = (self.centres, self.samples, self.max_cells, self.max_memory, self.joined, *self.sizes)
        if min(counts) < 1 or not self.sizes:
            raise ConfigError(
                f"matcher: centres {self.centres}, sizes {self.sizes}, samples {self.samples}, max_cells "
                f"{self.max_cells}, max_memory {self.max_memory}, joined {self.joined}; expected at least 1 each"
            )

    def build(self, backbone: "Backbone") -> "MatcherPrompter":
        """Create the generator; the backbone is only read."""
        return MatcherPrompter(self, backbone)


@dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """Cells of one image that belong to an object."""

    cells: Tensor
    """(m,) int64, row by row."""
    similarity: Tensor
    """(m,) cosine with the reference cell."""
    grid: tuple[int, int]
    """(h, w) cells of the image."""
    patch: float
    """Pixels along a side of a cell."""


class MatcherPrompter(ReferencePrompter):
    """All centres as points of one prompt for each image and object; :meth:`find` asks in many ways and judges."""

    multimask = True

    def __init__(self, config: MatcherConfig, backbone: "Backbone") -> None:
        """Remember the options."""
        super().__init__(config, backbone)
        self.config = config

    def forward(self, features: Features, image: Tensor, context: Mapping[str, Any]) -> Prompts:
        """Prompts (B K) of at most ``centres`` foreground points; scores are mean similarities from 0 to 1."""
        references = references_of(context)
        points, scores = [], []
        for matches in self._matched(features, image, context):
            points.append(self._centres(matches))
            scores.append((1 + matches.similarity.mean()) / 2)
        index = image_major(len(image), references.num_objects, image.device)
        rows, labels = padded(points)
        return Prompts(image_index=index, points=rows, labels=labels, scores=torch.stack(scores).clamp(0, 1))

    def answer(
        self, backbone: "Backbone", features: Features, image: Tensor, context: Mapping[str, Any]
    ) -> FoundObjects:
        """One mask for each image and object: the best judged masks of many prompts, joined."""
        references = references_of(context)
        kinds = references.num_objects
        seen, shown = self.cells(features, image, references)
        shares = references.shares()
        logits, scores = [], []
        for number, matches in enumerate(self._matched(features, image, context)):
            one, kind = divmod(number, kinds)
            masks, iou = self._candidates(backbone, features, one, matches)
            masks, iou = self._filtered(masks, iou, size_of(image))
            target = representatives(shown.flatten(0, 2), shares[:, kind].flatten(), self.config.max_cells)
            judged = self._judge(masks, seen[one].flatten(0, 1), target, matches)
            merged, score = self._join(masks, judged)
            logits.append(merged)
            scores.append(score)
        asked = Prompts(image_index=image_major(len(image), kinds, image.device))
        return found_objects(asked, torch.stack(logits), torch.stack(scores), kinds)

    def _matched(self, features: Features, image: Tensor, context: Mapping[str, Any]) -> list[Matches]:
        """Matches of every image and object, image-major."""
        references = references_of(context)
        seen, shown = self.cells(features, image, references)
        free, shares = allowed_cells(context, features), references.shares()
        known = (references.known() > 0).flatten()
        memory = shown.flatten(0, 2)
        found = []
        for cells, allowed in zip(seen, free, strict=True):
            for kind in range(references.num_objects):
                share = shares[:, kind].flatten()
                chosen, similarity = match(
                    memory[known],
                    share[known],
                    cells.flatten(0, 1),
                    allowed,
                    max_cells=self.config.max_cells,
                    max_memory=self.config.max_memory,
                )
                grid = (int(cells.shape[0]), int(cells.shape[1]))
                patch = image.shape[-2] / grid[0]
                found.append(Matches(cells=chosen, similarity=similarity, grid=grid, patch=patch))
        return found

    def _centres(self, matches: Matches) -> Tensor:
        """(n, 2) points (x, y): matched places nearest to the centres of their groups."""
        places = cell_centres(matches.grid, matches.patch).to(matches.similarity)[matches.cells]
        return centres(places, self.config.centres, seed=self.config.seed)

    def _candidates(
        self, backbone: "Backbone", features: Features, image: int, matches: Matches
    ) -> tuple[Tensor, Tensor]:
        """Masks (m, 4h, 4w) and predicted IoU (m,) of all prompts for one image."""
        points = self._centres(matches)
        sets = subsets(points, self.config.sizes, self.config.samples, seed=self.config.seed)
        rows, labels = padded(sets)
        prompts = Prompts(image_index=torch.full((len(rows),), image, device=rows.device), points=rows, labels=labels)
        logits, iou = backbone.decode(features, prompts, multimask=True)
        if self.config.boxed:
            box = around(matches)
            points, labels = padded([points[:0], points])
            some = Prompts(
                image_index=torch.full((2,), image, device=rows.device),
                boxes=box.expand(2, -1),
                points=points,
                labels=labels,
            )
            more, quality = backbone.decode(features, some, multimask=True)
            logits, iou = torch.cat([logits, more]), torch.cat([iou, quality])
        return logits.flatten(0, 1), iou.flatten()

    def _filtered(self, masks: Tensor, iou: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Without masks that are empty, doubted or the same as a better one; at least one is left."""
        some = (masks > 0).flatten(1).any(dim=1)
        if not bool(some.any()):
            return masks[:1], iou[:1]
        masks, iou = masks[some], iou[some]
        good = iou >= min(self.config.min_iou, float(iou.max()))
        masks, iou = masks[good], iou[good]
        boxes = tight_boxes(masks, size)
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + 1], dim=1)  # outer edges
        kept = non_max_suppression(boxes.float(), iou.float(), nms_thresh=self.config.nms)
        return masks[kept], iou[kept]

    def _judge(self, masks: Tensor, cells: Tensor, target: Tensor, matches: Matches) -> Tensor:
        """(m,) scores of masks."""
        inside = functional.adaptive_avg_pool2d((masks[:, None] > 0).to(cells), matches.grid)[:, 0].flatten(1)
        held = (inside[:, matches.cells] >= 0.5).to(cells).sum(dim=1)
        coverage = held / len(matches.cells)
        purity = (held / inside.sum(dim=1).clamp_min(1)).clamp_max(1)
        moved = torch.stack([earth_mover(target, representatives(cells, share, len(target))) for share in inside]).to(
            cells
        )
        score = self.config.alpha * (1 - moved) + self.config.beta * purity * coverage**self.config.exponent
        enough = coverage >= min(self.config.min_coverage, float(coverage.max()))
        return torch.where(enough, score, torch.zeros_like(score))

    def _join(self, masks: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (4h, 4w) of the best masks together, and the best score."""
        order = scores.argsort(descending=True)[: self.config.joined]
        top = scores[order]
        behind = (top[0] - top) / (top[0] - top[-1]).clamp_min(1e-6)
        kept = (1 - top < self.config.distance) & (behind < self.config.spread)
        kept[0] = True
        return masks[order[kept]].amax(dim=0), top[0]


def match(
    memory: Tensor, shares: Tensor, cells: Tensor, allowed: Tensor, *, max_cells: int = 256, max_memory: int = 4096
) -> tuple[Tensor, Tensor]:
    """Assign cells of an object to cells of an image, and keep what comes back into the object.

    Args:
        memory: (M, D) unit vectors of all cells of the references.
        shares: (M,) how much of each is the object.
        cells: (S, D) unit vectors of the image.
        allowed: (S,) bool: which may be matched; at least one.
        max_cells: Cells of the object that are assigned.
        max_memory: Cells of the memory that matches may come back to.

    Returns:
        Cells (m,) of the image and their similarity (m,), in the order of the object's cells; all of the forward
        assignment if none comes back, and the more
        similar half if there are more than 40.
    """
    own = thinned((shares > 0).nonzero().flatten(), max_cells)
    free = allowed.nonzero().flatten()
    forward = _assign(memory[own] @ cells[free].T)
    chosen = free[forward[1]]
    similarity = (memory[own][forward[0]] * cells[chosen]).sum(dim=1)
    others = thinned((shares == 0).nonzero().flatten(), max_memory)
    back = torch.cat([own, others])
    rows, columns = _assign(cells[chosen] @ memory[back].T)
    returned = torch.zeros_like(chosen, dtype=torch.bool)
    returned[rows] = columns < len(own)
    if bool(returned.any()):
        chosen, similarity = chosen[returned], similarity[returned]
    if len(chosen) > MANY:
        best = similarity.argsort(descending=True)[: len(chosen) // 2].sort().values
        chosen, similarity = chosen[best], similarity[best]
    return chosen, similarity


def _assign(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the assignment with the largest sum."""
    rows, columns = linear_sum_assignment(similarity.detach().double().cpu().numpy(), maximize=True)
    device = similarity.device
    return torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)


def thinned(index: Tensor, most: int) -> Tensor:
    """At most ``most`` of the entries of ``index`` (n,), evenly spaced, ends included."""
    if len(index) <= most:
        return index
    places = torch.linspace(0, len(index) - 1, most, device=index.device, dtype=torch.float64)
    return index[places.round().long()]


def representatives(cells: Tensor, shares: Tensor, most: int) -> Tensor:
    """(n, D) of cells (S, D): those of which an object covers half, or as much as of any; at most ``most``."""
    return cells[thinned((shares >= min(0.5, float(shares.max()))).nonzero().flatten(), most)]


def earth_mover(a: Tensor, b: Tensor) -> Tensor:
    """Least mean cost (1 - cosine) / 2 of moving unit vectors (n, D) onto (m, D), each thinned out to the smaller."""
    number = min(len(a), len(b))
    few, many = thinned(torch.arange(len(a)), number), thinned(torch.arange(len(b)), number)
    similarity = a[few.to(a.device)] @ b[many.to(b.device)].T
    rows, columns = _assign(similarity)
    return ((1 - similarity[rows, columns]) / 2).mean()


def centres(places: Tensor, number: int, *, seed: int = 0, rounds: int = 10) -> Tensor:
    """Group places by k-means++ and give of each group the place nearest to its mean.

    Args:
        places: (m, 2).
        number: Groups; all places if there are no more.
        seed: Of the first centres.
        rounds: Of Lloyd's iteration.

    Returns:
        (n, 2) different places.
    """
    if len(places) <= number:
        return places
    generator = torch.Generator().manual_seed(seed)
    middles = places[torch.randint(len(places), (1,), generator=generator).to(places.device)]
    while len(middles) < number:
        away = torch.cdist(places.double(), middles.double()).amin(dim=1).square()
        if float(away.max()) == 0:
            break
        pick = torch.multinomial(away.cpu(), 1, generator=generator).to(places.device)
        middles = torch.cat([middles, places[pick]])
    for _ in range(rounds):
        group = torch.cdist(places, middles).argmin(dim=1)
        middles = torch.stack([places[group == one].mean(dim=0) for one in group.unique().tolist()])
    return places[torch.cdist(middles, places).argmin(dim=1).unique()]


def subsets(points: Tensor, sizes: tuple[int, ...], samples: int, *, seed: int = 0) -> list[Tensor]:
    """Different subsets of points (n, 2): at most ``samples`` of each size that is possible, and all together."""
    generator = torch.Generator().manual_seed(seed)
    chosen: dict[tuple[int, ...], None] = {}
    for size in sizes:
        if size > len(points):
            continue
        for _ in range(samples):
            rows = torch.randperm(len(points), generator=generator)[:size].sort().values
            chosen[tuple(rows.tolist())] = None
    chosen[tuple(range(len(points)))] = None
    return [points[list(rows)] for rows in chosen]


def padded(points: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Points (n, p, 2) and labels (n, p), 1 and -10, of lists (p_i, 2) of foreground points."""
    longest = max(1, *(len(one) for one in points))
    rows = points[0].new_zeros(len(points), longest, 2)
    labels = torch.full((len(points), longest), PADDING, dtype=torch.int64, device=rows.device)
    for number, one in enumerate(points):
        rows[number, : len(one)] = one
        labels[number, : len(one)] = FOREGROUND
    return rows, labels


def around(matches: Matches) -> Tensor:
    """(4,) box x0, y0, x1, y1 of all pixels of the matched cells."""
    rows, columns = matches.cells // matches.grid[1], matches.cells % matches.grid[1]
    patch = matches.patch
    edges = [columns.min() * patch, rows.min() * patch, (columns.max() + 1) * patch - 1, (rows.max() + 1) * patch - 1]
    return torch.stack(edges).to(matches.similarity)
