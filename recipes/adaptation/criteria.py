"""Judging a network on target tiles without labels, and deciding whether it may take the place of the source adapter.

    agreement     Dice between the answer on a tile and the answers on its mirror image, a smaller and a darker copy;
                  where objects are separated, the IoU of each with the one that overlaps it most, both ways
    confidence    mean confidence of foreground pixels; 0 without any
    box_iou       objects asked of the frozen backbone by their boxes: IoU of its masks with the objects
    box_off       how far that is from what the source adapter's header says of the true objects of its training images
    predicted_iou what the frozen mask decoder thinks of those masks
    anchor        Dice with the source adapter over the pixels where that one is confident
    share_factor  largest ratio, either way, of a class's share of the pixels to what is expected

``score`` compares states. No figure looks at a label of the target: the tiles have none.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.recipes.adaptation.answers import Answer, Reader
from samgraft.recipes.adaptation.config import GuardConfig
from samgraft.recipes.adaptation.images import Tiles
from samgraft.recipes.boxed import ask_boxes

SCALES = (0.8,)
"""Sizes of copies; where one is larger than the tile, what leaves it does not count."""
GAMMA = 1.4
"""Exponent of a darker copy."""
SHARE_COST, SHARE_SLACK = 0.05, 2.0
"""What every doubling of a class's share costs a score beyond twice (or half) what is expected: cities differ."""
_RARE = 1e-4
"""Classes with a smaller expected share say nothing about shares."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """What a network said of the judging tiles."""

    figures: Mapping[str, float]
    classes: Tensor
    """(N, S, S) int64, as they are counted, on the CPU."""
    labels: Tensor
    """The same with objects apart, for pictures."""
    confidence: Tensor
    """(N, S, S)."""


def dice(first: Tensor, second: Tensor, where: Tensor) -> float:
    """Mean Dice of the foreground classes that either of two label maps has, over the pixels of ``where``.

    1 where neither has any.
    """
    top = int(max(first.max(), second.max()))
    values = []
    for value in range(1, top + 1):
        one, other = (first == value) & where, (second == value) & where
        total = int(one.sum()) + int(other.sum())
        if total:
            values.append(2.0 * int((one & other).sum()) / total)
    return math.fsum(values) / len(values) if values else 1.0


def object_agreement(first: Tensor, second: Tensor, where: Tensor) -> float:
    """How well the objects of two label maps (N, S, S) agree over the pixels of ``where``, 0 to 1.

    Mean IoU of every object with the one of the other map that overlaps it most, weighted by the root of its area, and
    the mean of both directions; 1 where neither has any.
    """
    sums, masses = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for one, other, seen in zip(first, second, where, strict=True):
        a, b = one.clamp_min(0)[seen], other.clamp_min(0)[seen]
        shape = tuple(int(part.max()) + 1 if len(part) else 1 for part in (a, b))
        both = torch.bincount(a * shape[1] + b, minlength=shape[0] * shape[1]).view(shape).double()
        areas = both.sum(dim=1), both.sum(dim=0)
        ious = both / (areas[0][:, None] + areas[1][None] - both).clamp_min(1)
        for way, own in enumerate((ious[1:, 1:], ious[1:, 1:].T)):
            best = own.amax(dim=1) if own.shape[1] else torch.zeros(len(own), dtype=torch.float64)
            weight = areas[way][1:].sqrt()
            sums[way] += (best * weight).sum()
            masses[way] += weight.sum()
    if not bool(masses.any()):
        return 1.0
    return float((sums / masses.clamp_min(1e-9)).mean())


def share_of_classes(classes: Tensor, known: Tensor, channels: int) -> list[float]:
    """Share of the known pixels that each class has, background first."""
    counts = torch.bincount(classes[known], minlength=channels).double()
    return [float(v) for v in counts / counts.sum().clamp_min(1)]


def worst_ratio(shares: Sequence[float], expected: Sequence[float]) -> float:
    """Largest ratio, either way, of foreground shares to expected ones; at least 1, at most 1000."""
    ratios = [1.0]
    for own, other in zip(shares[1:], expected[1:], strict=True):
        if other >= _RARE:
            ratio = max(own, _RARE * 0.1) / other
            ratios.append(max(ratio, 1 / ratio))
    return min(1000.0, max(ratios))


def scaled(image: Tensor, scale: float) -> Tensor:
    """Images (B, C, S, S) or slabs (B, C, D, S, S) with their content ``scale`` times as large, about the centre.

    Where the content is smaller than the tile it is mirrored at the edges.
    """
    flat = image.flatten(1, -3)
    return _sampled(flat, 1 / scale, mode="bilinear", padding="reflection").reshape(image.shape)


def from_scaled(labels: Tensor, scale: float) -> Tensor:
    """Labels (N, S, S) of what :func:`scaled` made, on the pixels of the tile; -1 for what had left it."""
    raised = (labels + 1).double()[:, None]
    return (_sampled(raised, scale, mode="nearest", padding="zeros")[:, 0].round() - 1).long()


def _sampled(maps: Tensor, factor: float, *, mode: str, padding: str) -> Tensor:
    """Look at place ``factor`` x for every place x, where the centre is 0."""
    matrix = torch.tensor([[factor, 0.0, 0.0], [0.0, factor, 0.0]], dtype=maps.dtype, device=maps.device)
    grid = functional.affine_grid(matrix.expand(len(maps), 2, 3), list(maps.shape), align_corners=False)
    return functional.grid_sample(maps, grid, mode=mode, padding_mode=padding, align_corners=False)


class Judge:
    """Computes the figures of whatever tensors are in the network.

    Args:
        reader: The network.
        tiles: What is judged on.
        device: Where it runs.
        batch: Network inputs at once.
    """

    def __init__(self, reader: Reader, tiles: Tiles, device: torch.device, *, batch: int = 8) -> None:
        """Nothing is computed yet."""
        self.reader, self.tiles, self.device, self.batch = reader, tiles, device, batch
        self.frozen: list[Features] = []
        self.source: Judged | None = None
        self.listened: Tensor | None = None
        self.expected: list[float] | None = None
        self.mirror = True
        self.usual: float | None = None
        self.look: Callable[[Tensor], Tensor] = lambda image: image

    def look_frozen(self, backbone: Backbone) -> None:
        """Keep the frozen backbone's features of the tiles, for :meth:`ask`; grafts must be out of it."""
        self.frozen = []
        with torch.no_grad():
            for index in self._chunks():
                image, _ = self.tiles.batch(index, self.device)
                flat = image if image.ndim == 4 else image.transpose(1, 2).flatten(0, 1)
                self.frozen.append(Features(neck=backbone.encode(flat).neck.cpu()))

    def remember_source(self, judged: Judged, listened: Tensor, expected: Sequence[float] | None) -> None:
        """What others are compared with.

        Args:
            judged: Of the source adapter.
            listened: (N, S, S) bool: where it is confident.
            expected: Shares of the classes in the source's training images; None takes those of its own answers.
        """
        known = self.known()
        self.source, self.listened = judged, listened
        own = share_of_classes(judged.classes, known, self.reader.counted_channels)
        self.expected = list(expected) if expected is not None else own

    def answers(self) -> Judged:
        """Answers and the figures that need no comparison with the source."""
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        copies: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
        for index in self._chunks():
            image, known = self.tiles.batch(index, self.device)
            answer = self.reader.answer(self.look(image))
            parts.append((self.reader.counted(answer).cpu(), self.reader.drawn(answer), answer.confidence.cpu()))
            for name, other, seen in self._views(image, known):
                copies.setdefault(name, []).append((self._compared(answer), other, seen.cpu()))
        classes, labels, confidence = (torch.cat(part) for part in zip(*parts, strict=True))
        views, agree = {}, object_agreement if self.reader.separates else dice
        for name, rows in copies.items():
            first, second, where = (torch.cat(part) for part in zip(*rows, strict=True))
            views[f"agreement_{name}"] = agree(first, second, where)
        known = self.known()
        front = (classes > 0) & known
        figures = {
            "agreement": math.fsum(views.values()) / len(views),
            **views,
            "confidence": float(confidence[front].mean()) if bool(front.any()) else 0.0,
            "foreground": float(front.sum()) / max(1, int(known.sum())),
        }
        return Judged(figures=figures, classes=classes, labels=labels, confidence=confidence)

    def compare(self, judged: Judged, asked: Mapping[str, float]) -> dict[str, float]:
        """All figures of a state, with its score."""
        if self.source is None or self.listened is None or self.expected is None:
            return {**judged.figures, **asked}
        shares = share_of_classes(judged.classes, self.known(), self.reader.counted_channels)
        figures = {
            **judged.figures,
            **asked,
            "anchor": dice(judged.classes, self.source.classes, self.listened & self.known()),
            "share_factor": worst_ratio(shares, self.expected),
        }
        return {**figures, "score": score(figures)}

    def ask(self, backbone: Backbone, judged: Judged) -> dict[str, float]:
        """Objects of the answers asked of the frozen backbone by their boxes: ``box_iou`` and ``predicted_iou``.

        Both are means over the objects, weighted by the root of their area; 0 without an object. With ``box_off`` where
        it is known how well the source's true objects are drawn (``usual``).
        """
        figures, _ = ask_boxes(backbone, self.frozen, judged.labels, apart=self.reader.separates, device=self.device)
        return figures if self.usual is None else {**figures, "box_off": abs(figures["box_iou"] - self.usual)}

    def _views(self, image: Tensor, known: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, classes or objects on the tile's own pixels, where they count) of copies of the tiles."""
        flat = known.flatten(0, 1) if known.ndim == 4 else known

        def said(copy: Tensor) -> Tensor:
            return self._compared(self.reader.answer(self.look(copy)))

        if self.mirror:
            yield "flip", said(image.flip(-1)).flip(-1), flat
        yield "gamma", said(image.clamp_min(1e-6).pow(GAMMA)), flat
        for scale in SCALES:
            back = from_scaled(said(scaled(image, scale)), scale)
            yield f"scale_{scale:g}", back, flat & (back >= 0).to(flat.device)

    def _compared(self, answer: Answer) -> Tensor:
        """(N, S, S) on the CPU: what of an answer is compared with that on a copy, classes or objects."""
        return self.reader.drawn(answer) if self.reader.separates else self.reader.counted(answer).cpu()

    def known(self) -> Tensor:
        """(N, S, S) bool: pixels that count."""
        known = self.tiles.known
        if self.tiles.images.ndim == 5:
            known = known[:, None].expand(-1, self.tiles.images.shape[2], -1, -1).flatten(0, 1)
        return known

    def _chunks(self) -> Iterator[list[int]]:
        for start in range(0, len(self.tiles), self.batch):
            yield list(range(start, min(start + self.batch, len(self.tiles))))


def score(figures: Mapping[str, float]) -> float:
    """One number to compare states by; larger is better.

    Where nobody knows how well the structure is drawn from boxes these count little, since they say little of thin or
    ragged things.
    """
    agreed = 0.6 * figures["agreement"] + 0.3 * figures["anchor"]
    boxes = -0.5 * figures["box_off"] if "box_off" in figures else 0.1 * figures["box_iou"]
    return agreed + boxes - SHARE_COST * excess(figures["share_factor"])


def excess(ratio: float) -> float:
    """Doublings of a class's share beyond what is no matter."""
    return math.log2(max(1.0, ratio / SHARE_SLACK))


def worth(figures: Mapping[str, float], ratio: float) -> float:
    """How well a look is understood, without labels; larger is better.

    Args:
        figures: "agreement" and "box_iou" of the source adapter on tiles seen through it; "box_off" if that is known.
        ratio: Worst ratio of class shares to those of the source's training images; 1 where these are not known.
    """
    boxes = -figures["box_off"] if "box_off" in figures else 0.1 * figures["box_iou"]
    return figures["agreement"] + boxes - 2 * SHARE_COST * excess(ratio)


def refusal(figures: Mapping[str, float], source: Mapping[str, float], guard: GuardConfig) -> str:
    """Why a state is not trusted, in words; empty if it is.

    Args:
        figures: Of the state.
        source: Of the source adapter on the same tiles.
        guard: The limits.
    """
    if not all(math.isfinite(value) for value in figures.values()):
        return "a criterion is not finite"
    if figures["anchor"] < guard.least_agreement:
        return (
            f"Dice {figures['anchor']:.3f} with the source adapter where that is confident is below "
            f"{guard.least_agreement:g}"
        )
    if figures["share_factor"] > max(guard.share_factor, source["share_factor"]):
        return f"a class has {figures['share_factor']:.1f} times more or less pixels than expected"
    if not figures["score"] > source["score"] + guard.margin:
        return f"score {figures['score']:.4f} is not above the source adapter's {source['score']:.4f}"
    return ""
