"""A running adaptation: set up from files, moved on round by round, judged, kept on disk after each round.

After a kill the run goes on from the last finished round and gives the same bytes as one that was never stopped (as
long as steps and not seconds decide its length).
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.bundle import BundleMeta
from samgraft.domains.atomic import atomic_path
from samgraft.errors import CheckpointError, ConfigError, InputError
from samgraft.recipes.adaptation.answers import Answer, Reader
from samgraft.recipes.adaptation.config import AdaptConfig
from samgraft.recipes.adaptation.criteria import Judge, Judged, refusal
from samgraft.recipes.adaptation.guides import told_by, visiting
from samgraft.recipes.adaptation.images import Tiles, read_tiles, target_images
from samgraft.recipes.adaptation.looks import PLAIN
from samgraft.recipes.adaptation.loop import Clock, Loop
from samgraft.recipes.adaptation.networks import Networks, State, copied, load_network, moving_parameters
from samgraft.recipes.adaptation.pseudo import class_thresholds
from samgraft.recipes.adaptation.regions import find_regions
from samgraft.recipes.adaptation.result import Round
from samgraft.recipes.adaptation.terms import ClassShares
from samgraft.recipes.adaptation.voices import Voices, answers_of
from samgraft.recipes.boxed import KEY as BOX_IOU
from samgraft.recipes.config import DataConfig
from samgraft.recipes.distill.data import spread
from samgraft.recipes.engine.recorded import recorded

STATE = "state.pt"
REGIONS = "regions.npz"
LEAST_FOREGROUND = 0.002
"""A tile counts as one with foreground from this share of its pixels on."""
MIRRORED = 0.9
"""Tiles are mirrored if the source's agreement on mirror images is at least this share of that on other copies."""
JUDGING, SURVEY = 0.04, 0.08
"""Shares of the time that judging once, and asking the source adapter about all tiles, may take."""
Tell = Callable[[str], None]


class Session:
    """Everything of one adaptation.

    Args:
        source: Adapter file.
        meta: Its header.
        images: The target.
        config: The settings.
        work: Folder for the state.
        backbone: Without grafts; bare again after :meth:`close`.
        spent: Process seconds that an earlier part of this run took.
        tell: Takes lines about the progress.
    """

    def __init__(
        self,
        source: Path,
        meta: BundleMeta,
        images: Sequence[Path] | DataConfig,
        config: AdaptConfig,
        work: Path,
        backbone: Backbone,
        *,
        spent: float = 0.0,
        tell: Tell | None = None,
    ) -> None:
        """Read the images, look at them with the frozen backbone and the source adapter; nothing is learned yet."""
        self.config, self.work, self.tell = config, work, tell or (lambda line: None)
        self._earlier, self._began = spent, time.process_time()
        self.device = device_of(config.device)
        self.cases = target_images(images)
        backbone.to(self.device)
        grafted, new = load_network(source, backbone, config.new)
        try:
            grafted.to(self.device)
            said = recorded(grafted, meta)
            self.reader = Reader(grafted, said)
            self.networks = Networks(grafted, moving_parameters(grafted, config.moving, new))
            self.tiles = read_tiles(self.cases, said, most=config.tiles, seed=config.seed)
            judged, learned = self._affordable(*split(len(self.tiles), config.judge_tiles))
            self.judge = Judge(self.reader, self.tiles.rows(judged), self.device)
            self.tell(
                f"{len(self.cases)} images, {len(self.tiles)} tiles: {len(learned)} to learn from, {len(judged)} judge"
            )
            self.clock = Clock(steps=config.steps, seconds=config.seconds, spent=self.spent)
            self.train = self.tiles.rows(learned)
            self.rounds = self._judge_source(meta)
            self.loop = self._loop(self._regions(), meta)
        except BaseException:
            grafted.detach()
            raise
        self.first = self.rounds[0]
        self.best: State | None = None if self.best_round is None else copied(self.networks.source)

    def spent(self) -> float:
        """Process seconds so far, those before a restart included."""
        return self._earlier + time.process_time() - self._began

    def close(self) -> None:
        """Take everything out of the backbone."""
        self.networks.grafted.detach()

    def advance(self, tick: Callable[[int], None] | None = None) -> Round:
        """One round, judged and kept."""
        self.loop.round(tick)
        judged, figures = self.judged(self.networks.teacher)
        figures |= {f"train_{name}": value for name, value in self.loop.losses.items()}
        why = refusal(figures, self.first.figures, self.config.guard)
        one = Round(step=self.loop.step, figures=figures, refused=why)
        best = self.best_round
        if not why and (best is None or one.score > best.score):
            self.best = copied(self.networks.teacher)
        self.rounds.append(one)
        self.save()
        return one

    @property
    def best_round(self) -> Round | None:
        """The trusted round with the largest score, the first of equals; None if there is none."""
        trusted = [one for one in self.rounds[1:] if not one.refused]
        return max(trusted, key=lambda one: one.score) if trusted else None

    def finished(self) -> str:
        """Why there is nothing more to do; empty if there is."""
        if self.loop.step >= self.config.steps:
            return f"all {self.config.steps} steps were made"
        if self.clock.progress(self.loop.step) >= 1.0:
            return f"{self.config.seconds:g} s of process time were spent"
        best = self.best_round
        since = len(self.rounds) - 1 - (self.rounds.index(best) if best is not None else 0)
        if since >= self.config.patience:
            return f"{since} rounds without a better score"
        return ""

    def judged(self, state: Mapping[str, Tensor]) -> tuple[Judged, dict[str, float]]:
        """What the network says with other tensors, and all figures of it."""
        with self.networks.speaking(state):
            found = self.judge.answers()
        with self.networks.bare() as backbone:
            asked = self.judge.ask(backbone, found)
        return found, self.judge.compare(found, asked)

    def save(self) -> None:
        """Write the state, whole or not at all."""
        content = {
            **self.loop.state(),
            "best": self.best or {},
            "spent": self.spent(),
            "rounds": [{"step": one.step, "figures": dict(one.figures), "refused": one.refused} for one in self.rounds],
        }
        with atomic_path(self.work / STATE) as temporary:
            torch.save(content, temporary)

    def restore(self, content: Mapping[str, Any]) -> None:
        """Go on from a kept state.

        Raises:
            CheckpointError: it is of other settings.
        """
        if set(content["teacher"]) != set(self.networks.parameters):
            raise CheckpointError(f"{self.work / STATE} is of another adapter or other settings; start in a new folder")
        self.loop.load_state(content)
        self.rounds = [Round(**one) for one in content["rounds"]]
        self.first = self.rounds[0]
        self.best = dict(content["best"]) or None

    def _affordable(self, judged: list[int], learned: list[int]) -> tuple[list[int], list[int]]:
        """Fewer tiles where looking at all of them would take too much of the time."""
        if self.config.seconds is None:
            return judged, learned
        few = judged[:4]
        image, _ = self.tiles.batch(few, self.device)
        with self.networks.speaking(self.networks.source):
            self.reader.answer(image[:1])  # the first time is slower
            began = time.process_time()
            self.reader.answer(image)
        each = max(1e-6, (time.process_time() - began) / len(few))
        passes = 6  # plain, copies of the tile, and the frozen backbone's masks
        judges = max(8, int(JUDGING * self.config.seconds / (each * passes)))
        survey = max(32, int(SURVEY * self.config.seconds / each))
        chosen = ([group[i] for i in spread(len(group), most)] for group, most in ((judged, judges), (learned, survey)))
        first, second = chosen
        return first, second

    def _regions(self) -> Tensor | None:
        """Regions of everything mode on the tiles that are learned from, if they are wanted and no guide labels."""
        points = self.config.everything
        if not points or self.guide is not None:
            return None
        if self.train.images.ndim == 5:
            raise ConfigError(f"everything is {points}, and this adapter sees slabs of slices; set it to 0")
        with self.networks.bare() as backbone:
            return find_regions(
                backbone,
                self.train.images,
                points=points,
                file=self.work / REGIONS,
                device=self.device,
                go_on=lambda: self.clock.progress(0) < 0.5,
                tell=self.tell,
            )

    def _judge_source(self, meta: BundleMeta) -> list[Round]:
        """Rounds of step 0: the source adapter as it is and, where another look is taken, through that.

        Afterwards it is known what others are compared with.
        """
        expected = shares_of(meta, self.reader.counted_channels)
        usual = meta.training.get(BOX_IOU)
        self.judge.usual = float(usual) if isinstance(usual, int | float) else None
        with self.networks.bare() as backbone:
            self.judge.look_frozen(backbone)
        with self.networks.speaking(self.networks.source):
            self._choose_mirror(self.judge.answers().figures)
        self.look, self.guide = Voices(self.networks, self.judge, self.config, expected).choose(self.tell)
        toned = None if self.look == PLAIN else self._in_tone()
        began = time.process_time()
        self.before, asked = found, heard = self._source_says()
        self.clock.reserve = time.process_time() - began
        sure = self.config.anchor_confidence
        if self.guide is not None:
            found, sure = answers_of(self.networks, self.guide, self.judge), self.config.least_confidence
        elif toned is not None:
            self.judge.tiles = toned
            with self.networks.bare() as backbone:
                self.judge.look_frozen(backbone)
            found, heard = self._source_says()
        self.judge.remember_source(found, found.confidence >= sure, expected)
        first = Round(step=0, figures=self.judge.compare(self.before, asked))
        if toned is None:
            return [first]
        figures = self.judge.compare(found, heard)
        return [first, Round(step=0, figures=figures, refused=refusal(figures, first.figures, self.config.guard))]

    def _source_says(self) -> tuple[Judged, dict[str, float]]:
        """What the source adapter says of the judging tiles, and what the frozen backbone says of that."""
        with self.networks.speaking(self.networks.source):
            found = self.judge.answers()
        with self.networks.bare() as backbone:
            return found, self.judge.ask(backbone, found)

    def _in_tone(self) -> Tiles:
        """See images in the tone of the look from now on: tiles to learn from, and those of the judge, which are given.

        Tiles that show nothing in one of the two are left out of both, so that the judge compares the same places.
        """
        said = self.reader.recorded
        self.reader.recorded = replace(said, recipe=replace(said.recipe, tone=self.look))
        seen = read_tiles(self.cases, self.reader.recorded, most=self.config.tiles, seed=self.config.seed)
        places = {name: number for number, name in enumerate(seen.names)}

        def again(tiles: Tiles) -> tuple[list[int], Tiles]:
            kept = [number for number, name in enumerate(tiles.names) if name in places]
            return kept, seen.rows([places[tiles.names[number]] for number in kept])

        self.train = again(self.train)[1]
        kept, judged = again(self.judge.tiles)
        if not kept or not len(self.train):
            raise InputError(f"look is {self.look!r}, in which the images show nothing; choose another, or plain")
        if len(kept) < len(self.judge.tiles):
            self.judge.tiles = self.judge.tiles.rows(kept)
            with self.networks.bare() as backbone:
                self.judge.look_frozen(backbone)
        return judged

    def _choose_mirror(self, figures: Mapping[str, float]) -> None:
        """Settle ``mirror: auto`` by how little the source adapter minds mirror images."""
        mirror = self.config.mirror
        if mirror == "auto":
            others = [v for name, v in figures.items() if name.startswith("agreement_") and name != "agreement_flip"]
            mirror = "yes" if figures["agreement_flip"] >= MIRRORED * math.fsum(others) / len(others) else "no"
        self.judge.mirror = mirror == "yes"
        if self.judge.mirror:
            self.config = replace(self.config, weak=replace(self.config.weak, flip_x=True))

    def _loop(self, regions: Tensor | None, meta: BundleMeta) -> Loop:
        """Ask the source adapter about the tiles that are learned from, and make the loop."""
        train = self.train
        foreground: list[bool] = []
        guided = None
        if self.guide is not None:
            portion, least = self.config.portion[1], self.config.least_confidence
            with visiting(self.networks, self.guide) as reader:
                guided = told_by(reader, train, self.device, portion=portion, least=least)

        def answered() -> Iterator[tuple[Answer, Tensor]]:
            size = 8
            for start in range(0, len(train), size):
                image, known = train.batch(range(start, min(start + size, len(train))), self.device)
                answer = self.reader.answer(image)
                front = (self.reader.counted(answer) > 0).float().view(len(image), -1).mean(dim=1)
                foreground.extend((front >= LEAST_FOREGROUND).tolist())
                yield answer, known.flatten(0, 1) if known.ndim == 4 else known

        with self.networks.speaking(self.networks.source):
            thresholds = class_thresholds(
                answered(),
                self.reader.channels,
                portion=self.config.portion[0],
                least=self.config.least_confidence,
            )
        if self.reader.by_class:  # objects have scores of their own kind, so theirs are told by their order
            thresholds = torch.full_like(thresholds, self.config.anchor_confidence)
        if guided is not None:
            foreground = ((guided > 0).float().flatten(1).mean(dim=1) >= LEAST_FOREGROUND).tolist()
        expected = shares_of(meta, self.reader.counted_channels)
        prior = expected is not None and self.reader.by_class and not self.reader.separates
        return Loop(
            networks=self.networks,
            reader=self.reader,
            tiles=train,
            config=self.config,
            clock=self.clock,
            device=self.device,
            foreground=foreground,
            anchor_thresholds=thresholds,
            shares=ClassShares(torch.tensor(expected)) if prior else None,
            regions=regions,
            guided=guided,
        )


def split(count: int, judges: int) -> tuple[list[int], list[int]]:
    """Tiles that judge, evenly spaced, and tiles that are learned from: the others where there are three times as many.

    Few tiles serve both ends.
    """
    judged = spread(count, judges)
    if count < 3 * judges:
        return judged, list(range(count))
    kept = set(judged)
    return judged, [index for index in range(count) if index not in kept]


def shares_of(meta: BundleMeta, channels: int) -> list[float] | None:
    """Shares of the classes in the source's training images, background first, where the header has them."""
    shares = meta.training.get("class_shares")
    if not isinstance(shares, list) or len(shares) != channels:
        return None
    return [float(value) for value in shares]


def device_of(name: str) -> torch.device:
    """Where the network runs."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def load_state(work: Path) -> dict[str, Any]:
    """What :meth:`Session.save` wrote; empty if there is none.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = work / STATE
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read ({error}); remove the folder and start again") from error
    return content
