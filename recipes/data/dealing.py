"""What samplers share: an epoch's draws follow from a seed and the epoch's number, and processes deal them out."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from samgraft.errors import ConfigError
from samgraft.recipes.ranks import Share

T_co = TypeVar("T_co", covariant=True)


class DealtSampler(Sampler[T_co]):
    """Draws of an epoch; each process keeps its own run of every batch, so that together they see what one would.

    Args:
        length: Draws per epoch, over all processes.
        seed: With the epoch's number, decides everything.
        batch: Draws of a batch, over all processes; a multiple of their number.
        part: Which run of every batch this process takes.
        follow: Gives the epoch's number when an epoch begins, or None for what :meth:`set_epoch` was told.

    Raises:
        ConfigError: a batch that cannot be dealt to the processes.
    """

    def __init__(
        self, *, length: int, seed: int, batch: int, part: Share, follow: Callable[[], int | None] | None
    ) -> None:
        """Check that batches can be dealt."""
        if batch % part.world or (length % batch and part.world > 1):
            raise ConfigError(
                f"{length} draws in batches of {batch} cannot be dealt to {part.world} processes; data.batch_size has "
                f"to be a multiple of {part.world}"
            )
        self.length, self.seed, self.epoch = length, seed, 0
        self.own, self.part, self.follow = batch // part.world, part, follow

    def __len__(self) -> int:
        """Draws of this process per epoch."""
        return self.length // self.part.world

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch."""
        self.epoch = epoch

    def now(self) -> int:
        """Number of the epoch that begins."""
        told = self.follow() if self.follow is not None else None
        return self.epoch if told is None else told

    def mine(self, place: int) -> bool:
        """Whether the draw at ``place`` of the epoch is this process's."""
        return place // self.own % self.part.world == self.part.rank


def endless(group: NDArray[np.integer], rng: np.random.Generator) -> Iterator[int]:
    """Members of a group without end; each comes once before any comes twice."""
    while len(group):
        yield from (int(i) for i in rng.permutation(group))
