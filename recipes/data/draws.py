"""Which windows of a raster are drawn: stated rates per class and of empty windows, the same after a kill.

An epoch's draws follow from the seed and the epoch's number alone. Since an epoch is the stretch between two
validations, after each of which a checkpoint is written, a resumed run draws what the killed one would have drawn.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.labels.source import Windows
from samgraft.errors import ConfigError
from samgraft.recipes.data.dealing import DealtSampler, endless
from samgraft.recipes.ranks import ALONE, Share

NOTHING, ANYTHING = -2, -1
"""Groups of windows: with no object, with any; classes from 0 on have a group each."""
_TRIES = 4
Fits = Callable[[Windows, int], bool]
"""Whether one window (1, 4) may train, and is of a group."""


@dataclass(frozen=True)
class Draw:
    """One window to be read."""

    group: int
    """``NOTHING``, ``ANYTHING`` or a class index; a window without data is replaced by another of it."""
    number: int
    """Window of the list that it comes from."""
    window: tuple[int, int, int, int]
    """Row start, row stop, column start, column stop."""


def group_rates(
    presence: NDArray[np.bool_], names: Sequence[str], *, foreground: float, rates: Mapping[str, float]
) -> dict[int, float]:
    """Share of draws of every group that has windows; they add up to 1.

    Args:
        presence: (windows, classes).
        names: Classes, in order.
        foreground: Share from windows with anything, those of ``rates`` included.
        rates: Class -> share.

    Raises:
        ConfigError: an unknown class, one without a window, or rates beyond ``foreground``.
    """
    wanted: dict[int, float] = {}
    for name, rate in rates.items():
        if name not in names:
            raise ConfigError(f"data.rates has {name!r}; the classes are {', '.join(names)}")
        index = list(names).index(name)
        if not presence[:, index].any():
            raise ConfigError(
                f"data.rates asks for {name!r} in {rate:g} of all draws; no window that trains shows one; label more, "
                "or choose other blocks (data.seed, data.block_m)"
            )
        wanted[index] = rate
    some = presence.any(axis=1)
    shown = 1.0 if some.all() else 0.0 if not some.any() else foreground
    named = sum(wanted.values())
    if named > shown + 1e-9:
        raise ConfigError(
            f"data.rates adds up to {named:g}, data.foreground is {foreground:g}; raise it to {named:g} at least"
        )
    shares = {NOTHING: 1.0 - shown, ANYTHING: shown - named} | wanted
    return {group: share for group, share in shares.items() if share > 1e-9}


class WindowSampler(DealtSampler[Draw]):
    """Draw windows; within an epoch every window of a group comes once before any comes twice.

    Where processes share the batches, each draws all of them and keeps its own run of every batch.

    Args:
        windows: (n, 4) that may train.
        presence: (n, classes): what they show.
        rates: From :func:`group_rates`.
        length: Draws per epoch, over all processes.
        seed: With the epoch's number, decides everything.
        jitter: (rows, columns) by which a window is moved at most.
        shape: (H, W) of the raster, which windows never leave.
        fits: Asked of a moved window; after four refusals the window stays where it is.
        batch: Windows of a batch, over all processes.
        part: Which run of every batch this process takes.
        follow: Gives the epoch's number when an epoch begins, or None for what :meth:`set_epoch` was told.

    Raises:
        ConfigError: a batch that cannot be dealt to the processes.
    """

    def __init__(
        self,
        windows: Windows,
        presence: NDArray[np.bool_],
        rates: Mapping[int, float],
        *,
        length: int,
        seed: int,
        shape: tuple[int, int],
        jitter: tuple[int, int] = (0, 0),
        fits: Fits | None = None,
        batch: int = 1,
        part: Share = ALONE,
        follow: Callable[[], int | None] | None = None,
    ) -> None:
        """Sort the windows into groups."""
        super().__init__(length=length, seed=seed, batch=batch, part=part, follow=follow)
        self.windows, self.rates, self.shape, self.jitter, self.fits = windows, dict(rates), shape, jitter, fits
        self.groups = {group: members(presence, group) for group in rates}

    def __iter__(self) -> Iterator[Draw]:
        """Draws of one epoch that are this process's."""
        epoch = self.now()
        rng = np.random.default_rng([self.seed, epoch])
        kinds = rng.permutation(_shared_out(self.rates, self.length))
        queues = {group: endless(numbers, rng.spawn(1)[0]) for group, numbers in self.groups.items()}
        for place, group in enumerate(kinds.tolist()):
            number = next(queues[group])
            window = self._moved(number, group, np.random.default_rng([self.seed, epoch, place]))
            if self.mine(place):
                yield Draw(group, number, window)

    def _moved(self, number: int, group: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """The window, moved by chance where it may be."""
        stays = self.windows[number]
        for _ in range(_TRIES if any(self.jitter) else 0):
            moved = stays.copy()
            for axis, most in enumerate(self.jitter):
                here = slice(2 * axis, 2 * axis + 2)
                low, high = -int(stays[2 * axis]), self.shape[axis] - int(stays[2 * axis + 1])
                moved[here] += int(np.clip(rng.integers(-most, most + 1), low, high))
            if self.fits is None or self.fits(moved[None], group):
                stays = moved
                break
        top, bottom, left, right = (int(value) for value in stays)
        return top, bottom, left, right


def members(presence: NDArray[np.bool_], group: int) -> NDArray[np.intp]:
    """Numbers of the windows of a group."""
    if group >= 0:
        return np.flatnonzero(presence[:, group])
    some = presence.any(axis=1)
    return np.flatnonzero(some if group == ANYTHING else ~some)


def _shared_out(rates: Mapping[int, float], length: int) -> NDArray[np.int64]:
    """``length`` groups, each as often as its rate says, to within one (largest remainders)."""
    groups = list(rates)
    exact = np.array([rates[group] for group in groups]) * length
    counts = np.floor(exact + 1e-9).astype(np.int64)
    rest = np.argsort(-(exact - counts), kind="stable")[: length - int(counts.sum())]
    counts[rest] += 1
    return np.repeat(np.array(groups, dtype=np.int64), counts)
