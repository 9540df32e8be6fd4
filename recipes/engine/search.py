"""The search of "everything": every crop is encoded once, its points are decoded, and the masks worth keeping stay.

Filters run on the decoder's small masks where they cannot err: a predicted IoU too low, a stability far too low. Only
what is left is enlarged, and of that only its own box; stability and edges are measured there, on the pixels of the
picture, as the original measures them on whole enlarged masks. What stays is kept as runs: memory follows neither the
number of points nor the size of the picture.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.objects import boxes_of
from samgraft.recipes.data.fit import windows as tiling
from samgraft.recipes.engine.candidate import Candidate
from samgraft.recipes.engine.crops import EDGE, Crop, crop_layers, crop_points, is_cut
from samgraft.recipes.engine.ends import views
from samgraft.recipes.engine.enlarge import Enlarger
from samgraft.recipes.engine.pipeline import DEPTH, encode_batch, pipeline
from samgraft.recipes.engine.planes import fill_window
from samgraft.recipes.engine.runs import RunMask, runs_of
from samgraft.recipes.engine.seams import join_crops
from samgraft.recipes.engine.suppress import keep_best
from samgraft.recipes.engine.windows import Window, scale_points, to_network, whole_window
from samgraft.recipes.everything import EverythingConfig

Read = Callable[[slice, slice], tuple[NDArray[np.float32], NDArray[np.bool_]]]
"""Rows and columns -> (3, h, w) float in [0, 1], and (h, w) where there is data."""
Track = Callable[[Sequence[Any], str], Iterator[Any]]
SLACK = 0.1
"""A mask whose stability on the small mask is this much too low is dropped without a closer look ..."""
SURE = 64
"""... if it has at least this many cells there."""
ROUNDS = 3
"""Times that what tiles cut is looked at again at most; all rounds together have no more views than there are tiles."""


@dataclass(eq=False)
class _Look:
    """One crop on its way."""

    crop: Crop
    points: Tensor
    """(n, 2) pixels of the crop."""
    content: Any = None
    """Its square (3, S, S), then its neck (C, h, w)."""
    found: list[Candidate] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def search(
    read: Read,
    shape: tuple[int, int],
    backbone: Backbone,
    config: EverythingConfig,
    *,
    size: int,
    batch: int | None = None,
    depth: int = DEPTH,
    track: Track | None = None,
    features: Features | None = None,
) -> tuple[list[Candidate], Counter[str]]:
    """Masks of all crops, in the order of crops and then of points, and how many were dropped why.

    Args:
        read: Gives pixels; called in one thread only.
        shape: (H, W).
        backbone: Any backbone.
        config: What is asked.
        size: Network size.
        batch: Crops encoded together; None chooses by their size.
        depth: Batches that may wait between reading, encoding and decoding.
        track: Wraps the loop over crops, to show progress.
        features: Of the whole picture, if it is the only crop and was encoded already.
    """
    crops = crops_of(shape, size, config)
    device = next(backbone.parameters()).device
    count = encode_batch(backbone, size, batch)
    dropped: Counter[str] = Counter()

    def encode(looks: list[_Look]) -> list[_Look]:
        asked = [look for look in looks if len(look.points)]
        if asked:
            with torch.no_grad():
                given = torch.stack([look.content for look in asked]).to(device)
                necks = features.neck if features is not None else backbone.encode(given).neck
            for look, neck in zip(asked, necks, strict=True):
                look.content = neck
        return looks

    def decode(looks: list[_Look]) -> list[_Look]:
        for look in looks:
            if len(look.points):
                _answer(look, backbone, config, size, shape)
            look.content = None
        return looks

    def answers(asked: Sequence[tuple[Crop, Tensor | None]], track: Track | None) -> list[Candidate]:
        found: list[Candidate] = []
        with closing(pipeline(_looks(read, asked, config, size, count), encode, decode, depth=depth)) as batches:
            looks = (look for looks in batches for look in looks)
            for _ in track(asked, "windows") if track else asked:
                look = next(looks)
                found += look.found
                dropped.update(look.dropped)
        return found

    found = answers([(crop, None) for crop in crops], track)
    if len(crops) == 1:
        return found, dropped
    return _completed(found, [crop for crop in crops if crop.tile], config, answers, dropped), dropped


def _completed(
    found: list[Candidate],
    tiles: Sequence[Crop],
    config: EverythingConfig,
    answers: Callable[[Sequence[tuple[Crop, Tensor]], None], list[Candidate]],
    dropped: Counter[str],
) -> list[Candidate]:
    """Masks of all crops as one list; what a tile cut and no neighbour completes is looked at again, and again."""
    side, left = max((max(tile.height, tile.width) for tile in tiles), default=0), len(tiles)
    joined, latest = join_crops(found, config.crop_nms_thresh, config.nms), set(found)
    for _ in range(ROUNDS):
        again = views([piece for piece in joined.open if not latest.isdisjoint(piece.parts)], side, left)
        if not again:
            break
        more = answers(again, None)
        left, latest, found = left - len(again), set(more), found + more
        joined = join_crops(found, config.crop_nms_thresh, config.nms)
    dropped["cut by a tile"] += len(joined.open)
    dropped["doubles of another crop"] += len(found) - len(joined.open) - len(joined.kept)
    return joined.kept


def crops_of(shape: tuple[int, int], size: int, config: EverythingConfig) -> list[Crop]:
    """The whole picture or its tiles, then the layers of crops."""
    tile = 2 * size if config.tile is None else config.tile
    whole = tile == 0 or max(shape) <= (1.5 * tile if config.tile is None else tile)
    places = [(slice(0, shape[0]), slice(0, shape[1]))] if whole else tiling(shape, tile, config.overlap_of(tile))
    first = [
        Crop(top=r.start, left=c.start, height=r.stop - r.start, width=c.stop - c.start, tile=len(places) > 1)
        for r, c in places
    ]
    return first + crop_layers(shape, config.crop_n_layers, config.crop_overlap_ratio)


def _looks(
    read: Read, asked: Sequence[tuple[Crop, Tensor | None]], config: EverythingConfig, size: int, batch: int
) -> Iterator[list[_Look]]:
    """Crops in order, ``batch`` with points at a time; without points of its own a crop has a grid of them."""
    waiting: list[_Look] = []
    for crop, points in asked:
        pixels, valid = read(*crop.place)
        if points is None:
            side, factor = config.points_per_side, config.crop_n_points_downscale_factor
            points = crop_points(crop, side, factor, config.point_grids)
        place = points.round().long()
        look = _Look(crop, points[torch.from_numpy(valid)[place[:, 1], place[:, 0]]])
        if len(look.points):
            shape = (crop.height, crop.width)
            look.content = to_network(fill_window(pixels, whole_window(shape), shape), size)
        waiting.append(look)
        if sum(one.content is not None for one in waiting) == batch or len(waiting) == 4 * batch:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _answer(look: _Look, backbone: Backbone, config: EverythingConfig, size: int, shape: tuple[int, int]) -> None:
    """Decode all points of a crop, filter, and keep the best of those with nearly the same mask."""
    crop, count = look.crop, len(look.points)
    window = whole_window((crop.height, crop.width))
    places = scale_points(look.points[None].double(), [window], size)[0].float()
    prompts = Prompts(
        image_index=torch.zeros(count, dtype=torch.int64),
        points=places[:, None],
        labels=torch.ones(count, 1, dtype=torch.int64),
    ).to(look.content.device)
    enlarger: Enlarger | None = None
    chunk = config.points_per_batch
    for rows, logits, iou in backbone.decode_parts(
        Features(neck=look.content[None]), prompts, multimask=True, chunk=chunk
    ):
        enlarger = enlarger or Enlarger(logits.shape[-1], window.side)
        few, origin, scores = _promising(logits, iou, config, look.dropped)
        reach = boxes_of(few > -config.stability_score_offset).long().tolist()
        owners = (rows.cpu()[origin // logits.shape[1]]).tolist()
        for one, box, score, owner in zip(few.cpu(), reach, scores.tolist(), owners, strict=True):
            mask, stability = _on_picture(one, box, crop, window, enlarger, config, shape)
            reason = _reason(mask, stability, crop, enlarger, config, (size / window.side) ** 2)
            if reason:
                look.dropped[reason] += 1
                continue
            x, y = look.points[owner].tolist()
            look.found.append(
                Candidate(
                    runs=mask,
                    iou=score,
                    stability=stability,
                    point=(x + crop.left, y + crop.top),
                    crop=crop,
                    cut=crop.tile and is_cut(mask.box, crop, shape, _cell(enlarger)),
                    margin=_cell(enlarger),
                )
            )
    order = sorted(range(len(look.found)), key=lambda i: -look.found[i].iou)
    kept = keep_best([one.runs for one in look.found], order, config.box_nms_thresh, by=config.nms)
    look.dropped["doubles"] += len(order) - len(kept)
    look.found = [look.found[i] for i in kept]


def _promising(
    logits: Tensor, iou: Tensor, config: EverythingConfig, dropped: Counter[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks (m, s, s) float that small masks cannot rule out, their numbers, and their predicted IoU."""
    scores = iou.flatten().float()
    good = scores > config.pred_iou_thresh
    dropped["masks"] += len(scores)
    dropped["predicted IoU"] += int((~good).sum())
    numbers = good.nonzero().flatten()
    masks = logits.flatten(0, 1)[numbers].float()
    offset = config.stability_score_offset
    outer = (masks > -offset).flatten(1).count_nonzero(1)
    inner = (masks > offset).flatten(1).count_nonzero(1)
    sure = (outer == 0) | ((outer >= SURE) & (inner < (config.stability_score_thresh - SLACK) * outer))
    dropped["stability"] += int(sure.sum())
    stay = (~sure).nonzero().flatten()
    return masks[stay], numbers[stay].cpu(), scores[numbers[stay]].cpu()


def _on_picture(
    logits: Tensor,
    reach: Sequence[int],
    crop: Crop,
    window: Window,
    enlarger: Enlarger,
    config: EverythingConfig,
    shape: tuple[int, int],
) -> tuple[RunMask, float]:
    """One mask (s, s) on the pixels of the picture, and its stability there; cells outside ``reach`` are far below."""
    x0, y0, x1, y1 = reach
    inner = window.inner((crop.height, crop.width))
    parts = []
    for (first, last), own in zip(((y0, y1), (x0, x1)), inner, strict=True):
        start, stop = enlarger.reach(first, last)
        start = max(start, own.start)
        parts.append(slice(start, max(start, min(stop, own.stop))))
    values = enlarger.part(logits, *parts).numpy()
    offset = np.float32(config.stability_score_offset)
    outer = np.count_nonzero(values > -offset)
    stability = np.count_nonzero(values > offset) / outer if outer else 0.0
    top, left = parts[0].start - inner[0].start + crop.top, parts[1].start - inner[1].start + crop.left
    return runs_of(values > 0, top=top, left=left, shape=shape), stability


def _reason(
    mask: RunMask, stability: float, crop: Crop, enlarger: Enlarger, config: EverythingConfig, unit: float
) -> str | None:
    """Why a mask is dropped, or None; ``unit`` is the network pixels of a pixel of the picture."""
    if stability < config.stability_score_thresh:
        return "stability"
    if mask.area == 0:
        return "empty"
    if mask.area * unit < config.min_network_area:
        return "min_network_area"
    if mask.area > config.max_share * crop.area:
        return "max_share"
    if crop.layer and is_cut(mask.box, crop, mask.shape, EDGE):
        return "cut by a crop"
    return None


def _cell(enlarger: Enlarger) -> int:
    """Pixels that one cell of a small mask spans."""
    return max(1, -(-enlarger.side // enlarger.size))
