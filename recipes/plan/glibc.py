"""How large a heap becomes that serves a sequence of blocks: the holes that freed tensors leave between living ones.

A model of glibc's allocator, for blocks of tensor size: the smallest hole that is large enough is used, its rest stays
a hole, neighbours join; what is above the threshold has a mapping of its own that goes when it is freed. The threshold
rises to the largest mapping that was freed, up to 32 MiB, unless it is set. The end of the heap is given back when it
is larger than twice the threshold.

torch asks for addresses that are multiples of 64. Before 2.38 glibc then looks for a hole that is 96 bytes longer than
the block, and frees what is left at both sides. Where a small object has taken that, the hole which the tensor leaves
is too small for the next tensor of its size, and does not join its neighbour. How often that happens cannot be known
beforehand; one block in eight gives 2.13 GB for a step of SAM-B with LoRA in the last four blocks, where the process
takes 2.29 GB beside its libraries; no block at all gives 1.54 GB.

Source:
    mallopt(3) and malloc(3) of the Linux manual; the algorithm as the wiki of the GNU C library describes it
    (MallocInternals); aligned blocks: bug 14581 of the GNU C library, fixed in 2.38.
"""

import bisect
import platform

from samgraft.recipes.plan.trace import Trace

START, LARGEST = 128 * 2**10, 32 * 2**20
"""Bytes: the threshold at the start, and the most it rises to."""
ALIGNED = 96
"""Bytes by which a hole must be longer than an aligned block, before glibc 2.38."""
LOST = 8
"""One in so many blocks loses them to small objects; fitted, see above."""
MOST = 1.55
"""Most that a heap was seen to hold, as a multiple of what lives at the peak (SAM-B as above; full training 1.15). The
model does not heal: over many more blocks its losses would grow for ever."""
_SMALL = 1024
"""Bytes that never matter here; they live in other lists of the allocator."""


class HeapModel:
    """Bytes held for a process.

    Args:
        threshold: Fixed threshold in bytes; None lets it rise, as glibc does by itself.
        extra: Bytes that every ``LOST``-th block needs beside its own, and does not give back.

    Attributes:
        held: Bytes now: the heap's length and all mappings.
        peak: Most so far.
    """

    def __init__(self, threshold: int | None = None, *, extra: int = 0) -> None:
        """An empty heap."""
        self.extra, self._taken = extra, 0
        self.fixed, self.threshold = threshold is not None, threshold or START
        self.end = self.mapped = self.held = self.peak = 0
        self._holes: list[tuple[int, int]] = []  # (size, address), sorted
        self._from: dict[int, int] = {}  # address of a hole -> size
        self._upto: dict[int, int] = {}  # end of a hole -> address
        self._placed: dict[int, int | None] = {}

    def allocate(self, name: int, size: int) -> None:
        """Find ``size`` bytes for the block ``name``."""
        size = -(-max(size, 16) // 16) * 16 + 16
        if size >= self.threshold:
            self.mapped += size
            self._placed[name] = None
        else:
            self._placed[name] = self._take(size)
        self._count()

    def free(self, name: int, size: int) -> None:
        """Give the block back."""
        size = -(-max(size, 16) // 16) * 16 + 16
        address = self._placed.pop(name)
        if address is None:
            self.mapped -= size
            if not self.fixed and size <= LARGEST:
                self.threshold = max(self.threshold, size + 1)
        else:
            self._give(address, size)
        self._count()

    def _count(self) -> None:
        self.held = self.end + self.mapped
        self.peak = max(self.peak, self.held)

    def _take(self, size: int) -> int:
        self._taken += 1
        room = size + (self.extra if self._taken % LOST == 0 else 0)
        at = bisect.bisect_left(self._holes, (room, -1))
        if at < len(self._holes):
            hole, address = self._holes[at]
            self._drop(address, hole)
            if hole - room > _SMALL:
                self._add(address + room, hole - room)
            return address
        start = self._upto.get(self.end, self.end)  # a hole at the very end grows
        if start != self.end:
            self._drop(start, self.end - start)
        self.end = start + room
        return start

    def _give(self, address: int, size: int) -> None:
        before = self._upto.get(address)
        if before is not None:
            self._drop(before, address - before)
            address, size = before, size + address - before
        after = self._from.get(address + size)
        if after is not None:
            self._drop(address + size, after)
            size += after
        if address + size == self.end and size > 2 * self.threshold:
            self.end = address
        else:
            self._add(address, size)

    def _add(self, address: int, size: int) -> None:
        bisect.insort(self._holes, (size, address))
        self._from[address], self._upto[address + size] = size, address

    def _drop(self, address: int, size: int) -> None:
        del self._holes[bisect.bisect_left(self._holes, (size, address))]
        del self._from[address], self._upto[address + size]


def heap_peak(trace: Trace, threshold: int | None = None) -> int:
    """Most bytes that a heap holds for the blocks of ``trace``; at most :data:`MOST` times what lives.

    Args:
        trace: What is allocated and freed, in order.
        threshold: See :class:`HeapModel`.
    """
    heap = HeapModel(threshold, extra=aligned_extra())
    for event in trace.events:
        size = trace.blocks[abs(event) - 1].size
        if size <= _SMALL:
            continue
        if event > 0:
            heap.allocate(event, size)
        else:
            heap.free(-event, size)
    return min(heap.peak, max(round(MOST * sum(trace.peak().values())), 1))


def aligned_extra(version: str | None = None) -> int:
    """:data:`ALIGNED` for a glibc before 2.38, else 0.

    Args:
        version: Such as "2.36"; None asks the C library of this process, "" is none of glibc.
    """
    found = platform.libc_ver()[1] if version is None else version
    numbers = [int(part) for part in found.split(".")[:2] if part.isdigit()]
    return ALIGNED if numbers and numbers < [2, 38] else 0
