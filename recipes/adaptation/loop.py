"""A step and a round: the teacher labels a weak view, the student learns a strong view of that, the teacher follows.

    tile -> weak view -> teacher: pseudo labels, source: where it is confident (or a guide's labels)
                      -> strong view of image and labels -> student: loss, step -> teacher moves a little

Everything runs in evaluation mode, so that no statistic of a layer drifts; augmentation is the only noise.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Features
from samgraft.errors import ConfigError
from samgraft.recipes.adaptation.answers import Answer, Reader
from samgraft.recipes.adaptation.config import AdaptConfig
from samgraft.recipes.adaptation.guides import as_taught
from samgraft.recipes.adaptation.images import Tiles
from samgraft.recipes.adaptation.networks import Networks, State, copied
from samgraft.recipes.adaptation.pseudo import class_thresholds, pseudo_labels
from samgraft.recipes.adaptation.regions import snap_borders, snap_classes, snap_objects
from samgraft.recipes.adaptation.terms import ClassShares, contrast, entropy, pooled
from samgraft.recipes.augment import augment
from samgraft.recipes.config import TaskConfig
from samgraft.recipes.data.module import BalancedSampler
from samgraft.recipes.losses import IGNORE
from samgraft.recipes.optimiser import make_optimizer
from samgraft.recipes.representations import BorderMaps

SAMPLE = 32
"""Tiles on which thresholds are measured before a round."""
WARMUP = 0.05
"""Share of the steps with a rising rate."""
LED = 0.5
"""A guide labels for this share of the run; then the teacher, which can by then."""
ROUNDS = 8
"""A run with a time has at least about so many rounds."""
FOREGROUND = 0.5
"""Least share of tiles with foreground, as the source adapter sees it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lesson:
    """What the student learns from: a strong view, and labels that moved with it."""

    image: Tensor
    """(B, 3, [D,] S, S)."""
    pseudo: Tensor
    """(N, S, S) with ``IGNORE``."""
    anchor: Tensor
    """(N, S, S) with ``IGNORE``."""
    known: Tensor
    """(N, S, S) bool."""
    source: Features
    """Of the source adapter on the weak view."""
    weak: Tensor
    """(N, S, S): ``pseudo`` on the weak view."""


def pack(pseudo: Tensor, anchor: Tensor, known: Tensor) -> tuple[Tensor, int]:
    """Three maps as one integer map that a warp can move, and the base by which :func:`unpack` takes it apart."""
    base = int(anchor.max()) + 2
    return ((pseudo + 1) * base + anchor + 1) * 2 + known.long(), base


def unpack(code: Tensor, base: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse of :func:`pack`; what came from outside of the tile is unknown in all three."""
    inside = code != IGNORE
    both = torch.div(code, 2, rounding_mode="floor").where(inside, torch.zeros_like(code))
    known = (code % 2 == 1) & inside
    return torch.div(both, base, rounding_mode="floor") - 1, both % base - 1, known


@dataclass(eq=False)
class Clock:
    """How far a run is, by steps or by time."""

    steps: int
    seconds: float | None
    spent: Callable[[], float]
    """Process time so far."""
    reserve: float = 0.0
    """Seconds that the end of a round takes."""

    def turn(self) -> float:
        """Seconds after which a round ends, however many steps it has made."""
        return math.inf if self.seconds is None else self.seconds / ROUNDS

    def progress(self, step: int) -> float:
        """0 to 1."""
        done = step / self.steps
        if self.seconds is not None:
            done = max(done, (self.spent() + self.reserve) / self.seconds)
        return min(1.0, done)


@dataclass(eq=False)
class Loop:
    """The state of an adaptation, and how it moves on."""

    networks: Networks
    reader: Reader
    tiles: Tiles
    config: AdaptConfig
    clock: Clock
    device: torch.device
    foreground: list[bool]
    """Which tiles have foreground, as the source adapter sees them."""
    anchor_thresholds: Tensor
    """(K,) from which confidence on the source is listened to."""
    shares: ClassShares | None = None
    regions: Tensor | None = None
    """(n, S, S) of everything mode; None beside a guide."""
    guided: Tensor | None = None
    """(n, S, S) objects as a guide sees them, with ``IGNORE``; it labels, and is the anchor, in the place of the source
    adapter."""
    led: bool = False
    """Whether the guide labels, and not the teacher; the same for a round."""
    step: int = 0
    number: int = 0
    """Rounds so far."""
    losses: dict[str, float] = field(default_factory=dict)
    """Means of the last round."""

    def __post_init__(self) -> None:
        """Make optimiser and randomness."""
        self.optimizer = make_optimizer(
            "adamw",
            list(self.networks.parameters.values()),
            lr=self.config.lr,
            weight_decay=0.0,
            factors=self.networks.grafted.rate_factors(),
        )
        self.peaks = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.randomness = torch.Generator().manual_seed(self.config.seed)
        self.loss: nn.Module = self.reader.representation.loss(TaskConfig())
        self.natural = sum(self.foreground) / max(1, len(self.foreground))
        self.thresholds = self.anchor_thresholds

    def round(self, tick: Callable[[int], None] | None = None) -> None:
        """Up to ``config.every`` steps; fewer if the time is up.

        Args:
            tick: Called with the number of steps so far.
        """
        began = self.clock.spent()
        self.led = self.guided is not None and self.clock.progress(self.step) < LED
        self.thresholds = self.measure()
        left = min(self.config.every, self.config.steps - self.step)
        sampler = BalancedSampler(
            self.foreground, share=FOREGROUND, length=left * self.config.batch_size, seed=self.config.seed
        )
        sampler.set_epoch(self.number)
        order, size = iter(sampler), self.config.batch_size
        sums: dict[str, float] = {}
        done = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed * 1000 + self.number)  # some heads draw from the global generator
            while done < left and self.clock.progress(self.step) < 1.0:
                for name, value in self._learn(list(islice(order, size))).items():
                    sums[name] = sums.get(name, 0.0) + value
                self.step, done = self.step + 1, done + 1
                if tick is not None:
                    tick(self.step)
                if self.clock.spent() - began > self.clock.turn():
                    break
        self.number += 1
        self.losses = {name: value / max(1, done) for name, value in sums.items()}

    def measure(self) -> Tensor:
        """(K,) thresholds of the teacher's classes on a sample of tiles; a guide has chosen already."""
        if self.led:
            return self.anchor_thresholds
        low, high = self.config.portion
        portion = low + (high - low) * self.clock.progress(self.step)
        generator = torch.Generator().manual_seed(self.config.seed * 1000 + self.number)
        chosen = torch.randperm(len(self.tiles), generator=generator)[:SAMPLE].tolist()
        with self.networks.speaking(self.networks.teacher):
            return thresholds_on(self, chosen, portion=portion)

    def lesson(self, index: list[int]) -> Lesson:
        """Labels of the teacher and the source on a weak view, and the strong view that the student gets."""
        image, known = self.tiles.batch(index, self.device)
        weak, code = augment(image, self._known(index, known), self.randomness, self.config.weak)
        code = code.flatten(0, 1) if code.ndim == 4 else code
        inside = (code != IGNORE) & (code % 2 == 1)
        further = torch.div(code.clamp_min(0), 2, rounding_mode="floor")
        with self.networks.speaking(self.networks.source):
            flat, features = self.reader.encode(weak)
            answer = self.reader.read(flat, features)
        anchor = pseudo_labels(answer, self.anchor_thresholds, inside)
        if self.guided is not None:
            anchor = as_taught((further - 1).masked_fill(~inside, IGNORE), self.reader.representation)
        if not self.led:
            with self.networks.speaking(self.networks.teacher):
                answer = self.reader.answer(weak)
        pseudo = anchor if self.led else pseudo_labels(answer, self.thresholds, inside)
        if self.regions is not None:
            pseudo = self._snapped(pseudo, answer, further).where(inside, torch.full_like(pseudo, IGNORE))
        packed, base = pack(pseudo, anchor, inside)
        strong, moved = augment(weak, _like(packed, image), self.randomness, self.config.strong)
        moved = moved.flatten(0, 1) if moved.ndim == 4 else moved
        first, second, seen = unpack(moved, base)
        return Lesson(
            image=strong, pseudo=first, anchor=second, known=seen, source=Features(neck=features.neck), weak=pseudo
        )

    def _known(self, index: list[int], known: Tensor) -> Tensor:
        """What moves with an image as one integer map: whether a pixel is known, and a guide's object or a region."""
        further = self.regions if self.guided is None else self.guided
        if further is None:
            return known.long()
        moved = further[index].to(self.device).long()
        return known.long() + 2 * (moved if self.guided is None else moved + 1)  # so that unknown is 0

    def terms(self, lesson: Lesson, weight: Tensor) -> dict[str, Tensor]:
        """The losses of the student, unweighted.

        Args:
            lesson: What it learns from.
            weight: (N,) how many images each stands for.
        """
        weights, networks = self.config.weights, self.networks
        flat, features = self.reader.encode(lesson.image)
        found: dict[str, Tensor] = {}
        if self.reader.by_class:
            logits = self.reader.class_logits(flat, features)
            found["pseudo"] = self.loss(logits, lesson.pseudo)
            found["anchor"] = self.loss(logits, lesson.anchor)
            found["entropy"] = entropy(logits, lesson.known)
            if self.shares is not None:
                found["prior"] = self.shares(logits, lesson.known, weight)
        else:
            for name, labels in (("pseudo", lesson.pseudo), ("anchor", lesson.anchor)):
                if getattr(weights, name):
                    representation = self.reader.representation
                    found[name] = representation.learn(self.loss, networks.grafted, features, flat, labels)
        if weights.contrast and features.neck.requires_grad and len(features.neck) == len(lesson.pseudo):
            own, other = pooled(features.neck, lesson.pseudo), pooled(lesson.source.neck, lesson.weak)
            found["contrast"] = contrast(own, other, temperature=self.config.temperature).to(flat.device)
        return found

    def _learn(self, index: list[int]) -> dict[str, float]:
        """One step; its losses."""
        lesson = self.lesson(index)
        found = self.terms(lesson, self._weights(index, len(lesson.pseudo)))
        weights = self.config.weights
        if not found:
            raise ConfigError("weights.pseudo and weights.anchor are both 0, and this head learns from nothing else")
        total = torch.stack([getattr(weights, name) * value for name, value in found.items()]).sum()
        penalty = self.networks.grafted.penalty()
        total = total if penalty is None else total + penalty
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * rate(self.clock.progress(self.step))
        self.optimizer.zero_grad(set_to_none=True)
        if not total.requires_grad:  # no tile of this batch had anything to say
            return {"loss": 0.0}
        total.backward()
        nn.utils.clip_grad_norm_(self.networks.parameters.values(), 1.0)
        self.optimizer.step()
        self.networks.follow(self.config.momentum)
        return {"loss": float(total.detach()), **{name: float(value.detach()) for name, value in found.items()}}

    def _weights(self, index: list[int], count: int) -> Tensor:
        """(N,): tiles with foreground come more often than they are, and count less for it."""
        drawn = max(FOREGROUND, self.natural) if 0 < self.natural < 1 else self.natural
        front, back = self.natural / max(drawn, 1e-6), (1 - self.natural) / max(1 - drawn, 1e-6)
        own = torch.tensor([front if self.foreground[i] else back for i in index], device=self.device)
        return own.repeat_interleave(count // len(index))

    def _snapped(self, pseudo: Tensor, answer: Answer, regions: Tensor) -> Tensor:
        least, representation = self.config.snap_agreement, self.reader.representation
        if isinstance(representation, BorderMaps):
            return snap_borders(pseudo, answer.labels, regions, agreement=least, border=representation.border)
        if self.reader.by_class:
            return snap_classes(pseudo, answer.labels, regions, agreement=least)
        return snap_objects(pseudo, regions, agreement=least)

    def state(self) -> dict[str, Any]:
        """Everything that a stopped run needs to go on, in plain types and tensors."""
        return {
            "teacher": copied(self.networks.teacher),
            "student": copied(self.networks.student()),
            "optimizer": self.optimizer.state_dict(),
            "randomness": self.randomness.get_state(),
            "shares": None if self.shares is None or self.shares.running is None else self.shares.running.cpu(),
            "step": self.step,
            "number": self.number,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state`."""
        self.networks.teacher = _on(state["teacher"], self.device)
        self.networks.set_student(_on(state["student"], self.device))
        self.optimizer.load_state_dict(state["optimizer"])
        self.randomness.set_state(state["randomness"])
        if self.shares is not None and state["shares"] is not None:
            self.shares.running = state["shares"].to(self.device)
        self.step, self.number = int(state["step"]), int(state["number"])


def thresholds_on(loop: Loop, chosen: list[int], *, portion: float) -> Tensor:
    """Class thresholds of whoever speaks, on some tiles."""
    size = loop.config.batch_size
    parts = [chosen[start : start + size] for start in range(0, len(chosen), size)]

    def answered() -> Any:
        for part in parts:
            image, known = loop.tiles.batch(part, loop.device)
            yield loop.reader.answer(image), known.flatten(0, 1) if known.ndim == 4 else known

    return class_thresholds(answered(), loop.reader.channels, portion=portion, least=loop.config.least_confidence)


def rate(progress: float) -> float:
    """Factor on the peak rate: a linear rise, then a cosine to a hundredth."""
    if progress < WARMUP:
        return progress / WARMUP + 1e-3
    share = min(1.0, (progress - WARMUP) / (1 - WARMUP))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))


def _like(labels: Tensor, image: Tensor) -> Tensor:
    """(N, S, S) as (B, D, S, S) where images are slabs."""
    return labels if image.ndim == 4 else labels.unflatten(0, (len(image), image.shape[2]))


def _on(state: Mapping[str, Tensor], device: torch.device) -> State:
    return {name: value.to(device) for name, value in state.items()}
