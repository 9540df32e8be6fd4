"""Who labels the target at first: the source adapter as it is, through a look, or a guide. Nobody is asked for labels.

Each is shown a few tiles and judged by how it agrees with itself, by how the frozen backbone draws its objects, and by
class shares. A voice that contradicts what the source adapter is confident of has to be much better than that one:
through a negative, too, an adapter finds something and agrees with itself (on retinas what lies between vessels).
"""

from collections.abc import Callable, Sequence

from samgraft.errors import ConfigError
from samgraft.recipes.adaptation.config import AdaptConfig
from samgraft.recipes.adaptation.criteria import Judge, Judged, dice, share_of_classes, worst_ratio, worth
from samgraft.recipes.adaptation.guides import AUTO, possible, visiting
from samgraft.recipes.adaptation.looks import LOOKS, PLAIN
from samgraft.recipes.adaptation.networks import Networks
from samgraft.recipes.distill.data import spread

TILES = 10
"""Tiles on which voices are compared."""
MARGIN = 0.03
"""How much better than the source adapter as it is another voice has to be."""
CONTRADICTION = 0.25
"""The same for a voice that contradicts it: Dice below the guard's ``least_agreement`` where it is confident."""


def answers_of(networks: Networks, guide: str, judge: Judge) -> Judged:
    """What a guide says of the tiles of a judge."""
    with visiting(networks, guide) as reader:
        other = Judge(reader, judge.tiles, judge.device)
        other.mirror = judge.mirror
        return other.answers()


class Voices:
    """Chooses between looks and guides.

    Args:
        networks: Source adapter and backbone.
        judge: Of the source adapter, with its tiles.
        config: Which looks and guides are wanted, and the guard's limits.
        expected: Shares of the classes in the source's training images; None if nobody knows.
    """

    def __init__(self, networks: Networks, judge: Judge, config: AdaptConfig, expected: Sequence[float] | None) -> None:
        """Nothing is asked yet."""
        self.networks, self.judge, self.config, self.expected = networks, judge, config, expected

    def choose(self, tell: Callable[[str], None]) -> tuple[str, str | None]:
        """Name of the look, and the guide or None; with a guide the look is plain.

        Args:
            tell: Takes a line with what each voice is worth.

        Raises:
            ConfigError: ``config.look`` is no look, or ``config.guide`` no guide for this adapter.
        """
        slabs, wanted = self.judge.tiles.images.ndim == 5, self.config.look
        if wanted != "auto" and wanted not in LOOKS:
            raise ConfigError(f"look is {wanted!r}; expected auto or one of {', '.join(LOOKS)}")
        tone = self.judge.reader.recorded.recipe.tone
        if tone != PLAIN and wanted not in ("auto", PLAIN):
            raise ConfigError(
                f"look is {wanted!r}, and the source adapter sees images in the tone {tone!r}; leave it out"
            )
        guides = possible(self.config.guide, self.judge.reader, self.networks.grafted.base_hash, slabs=slabs)
        if guides and self.config.guide != AUTO:
            return PLAIN, guides[0]
        if wanted != "auto":
            return wanted, None
        worths, contradicting = self.worths(guides)

        def gain(name: str) -> float:
            margin = CONTRADICTION if name in contradicting else MARGIN
            return 0.0 if name == PLAIN else worths[name] - worths[PLAIN] - margin

        taken = max(worths, key=gain)
        told = ", ".join(f"{name} {value:.3f}{'!' * (name in contradicting)}" for name, value in worths.items())
        tell(f"looks and guides (! contradicts the source adapter): {told}; taken: {taken}")
        return (taken, None) if taken in LOOKS else (PLAIN, taken)

    def worths(self, guides: Sequence[str]) -> tuple[dict[str, float], set[str]]:
        """Look or guide -> how well it understands the target; and those that contradict the source adapter."""
        tiles = self.judge.tiles
        small = Judge(self.judge.reader, tiles.rows(spread(len(tiles), TILES)), self.judge.device)
        small.mirror, small.usual = self.judge.mirror, self.judge.usual
        with self.networks.bare() as backbone:
            small.look_frozen(backbone)
        said = self._said(small, guides)
        with self.networks.bare() as backbone:
            asked = {name: small.ask(backbone, found) for name, found in said.items()}
        worths = {n: worth({**found.figures, **asked[n]}, self._ratio(small, found)) for n, found in said.items()}
        plain = said[PLAIN]
        sure = (plain.confidence >= self.config.anchor_confidence) & small.known()
        least = self.config.guard.least_agreement
        return worths, {name for name, found in said.items() if dice(found.classes, plain.classes, sure) < least}

    def _said(self, small: Judge, guides: Sequence[str]) -> dict[str, Judged]:
        found = {}
        toned = self.judge.reader.recorded.recipe.tone != PLAIN  # and one tone is enough
        for name in (PLAIN,) if toned else LOOKS:
            small.look = LOOKS[name]
            with self.networks.speaking(self.networks.source):
                found[name] = small.answers()
        return found | {guide: answers_of(self.networks, guide, small) for guide in guides}

    def _ratio(self, small: Judge, found: Judged) -> float:
        if self.expected is None:
            return 1.0
        channels = small.reader.counted_channels
        return worst_ratio(share_of_classes(found.classes, small.known(), channels), self.expected)
