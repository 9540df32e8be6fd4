"""Windows of a raster larger than memory, with their labels, read when they are drawn.

Pixels come through one look that was measured once for the whole raster, labels are drawn by window. Neither of them
exists for the whole raster at any time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from samgraft.domains.labels.blocks import Blocks
from samgraft.domains.labels.source import UNKNOWN, LabelSource, Windows, window_of
from samgraft.domains.remote_sensing.geo_scene import GeoScene
from samgraft.domains.scene import Window
from samgraft.errors import InputError
from samgraft.recipes.config import Kind
from samgraft.recipes.data.cases import CaseArrays, CaseRef, small_labels, to_bytes
from samgraft.recipes.data.draws import ANYTHING, NOTHING, Draw, WindowSampler, members
from samgraft.recipes.data.fit import Fit
from samgraft.recipes.look import Look
from samgraft.recipes.ranks import ALONE, Share

_REPLACED = 64
"""Other windows of its group that are tried in the place of one without data."""
Known = Callable[[Window], NDArray[np.bool_]]
"""(h, w) bool of a window: where labels count."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RasterSource:
    """A raster and everything that is known of it, by window."""

    scene: GeoScene
    """Pixels."""
    look: Look
    """Channels and scale, the same for the whole raster."""
    labels: LabelSource
    """Labels."""
    kind: Kind
    """Classes, or objects."""
    known: tuple[Known, ...] = ()
    """Where labels count: inside of all of these."""
    val_only: tuple[Known, ...] = ()
    """The same, when a block validates."""

    def pixels(self, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Bytes (C, h, w) as the network sees them, 0 where there is no data, and (h, w) where there is."""
        raw, valid = self.scene.read_valid(window, self.look.channels)
        seen = self.look.apply(raw)
        image = to_bytes(seen[:1] if len(self.look.channels) == 1 else seen)
        image *= valid[None].astype(np.uint8)
        return image, valid

    def read(
        self, window: Window, *, hidden: NDArray[np.bool_] | None = None, validates: bool = False
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Bytes (C, h, w), and labels (h, w) with ``UNKNOWN`` where there is no data or where labels do not count.

        Args:
            window: Rows and columns.
            hidden: Objects that are not to be learned; see :meth:`LabelSource.draw`.
            validates: Also keep to where validation counts.
        """
        image, valid = self.pixels(window)
        labels = self.labels.draw(window, self.kind, hidden=hidden)
        for known in (*self.known, *(self.val_only if validates else ())):
            valid = valid & known(window)
        labels[~valid] = UNKNOWN
        return image, labels


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockRef(CaseRef):
    """A block that validates: read anew every time, since many of them would fill the memory."""

    def load(self) -> CaseArrays:
        """Read."""
        return self.read()


@dataclass(eq=False, kw_only=True)
class RasterWindows(Dataset[tuple[Tensor, Tensor]]):
    """All windows that may train; an index is a :class:`Draw`."""

    source: RasterSource
    """What is read."""
    windows: Windows
    """(n, 4), all of them at a distance from what validates."""
    presence: NDArray[np.bool_]
    """(n, classes): what they show."""
    blocks: Blocks
    """Which blocks validate."""
    size: int
    """Side of the network input."""
    hidden: NDArray[np.bool_] | None = None
    """Objects that reach into a block that validates; training does not learn them."""
    rates: Mapping[int, float] = field(default_factory=dict)
    """Share of draws per group."""
    jitter: tuple[int, int] = (0, 0)
    """Rows and columns by which a window is moved at most."""
    usable: Callable[[Windows], NDArray[np.bool_]] = field(default=lambda windows: np.ones(len(windows), dtype=bool))
    """Whether windows touch data and what was labelled."""

    def __len__(self) -> int:
        """Number of windows, before they are moved."""
        return len(self.windows)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Image (3, S, S) uint8 and label (S, S) int32, ``UNKNOWN`` in the padding.

        Raises:
            InputError: neither the window nor 64 others of its group have a pixel that counts.
        """
        for window in self._instead(draw):
            image, labels = self.source.read(window, hidden=self.hidden)
            if (labels != UNKNOWN).any():
                return self._square(image, labels)
        raise InputError(
            f"{_REPLACED} windows of {self.source.scene.path.name} have no pixel with data and a label, such as "
            f"{draw.window}; check nodata, data.aoi and data.labelled_area"
        )

    def case(self, number: int) -> CaseArrays:
        """A window that may train, as a case at its own pixels."""
        return read_block(self.source, self.windows[number].tolist(), f"window {number}", hidden=self.hidden)

    def sampler(
        self,
        *,
        length: int,
        seed: int,
        batch: int,
        part: Share = ALONE,
        follow: Callable[[], int | None] | None = None,
    ) -> WindowSampler:
        """What draws from these windows; arguments as for :class:`WindowSampler`."""
        return WindowSampler(
            self.windows,
            self.presence,
            self.rates,
            length=length,
            seed=seed,
            shape=self._shape,
            jitter=self.jitter,
            fits=self._fits,
            batch=batch,
            part=part,
            follow=follow,
        )

    def describe(self) -> dict[str, object]:
        """Facts for the header of an adapter: of what the windows are, and how many."""
        train = ~self.blocks.val.ravel()
        parts = self.blocks.parts()
        return {
            "data": self.source.scene.path.name,
            "windows": len(self),
            "windows_with_objects": int(self.presence.any(axis=1).sum()),
            "blocks": int(train.size),
            "val_blocks": int((~train).sum()),
            "block_pixels": list(self.blocks.side),
            "buffer_pixels": list(self.blocks.buffer),
            "train_objects": self.source.labels.count(self.windows),
            "val_objects": self.source.labels.count(parts[~train]),
        }

    def _square(self, image: NDArray[np.uint8], labels: NDArray[np.int32]) -> tuple[Tensor, Tensor]:
        fit = Fit(source=(labels.shape[0], labels.shape[1]), size=self.size)
        picture = torch.from_numpy(np.broadcast_to(image, (3, *labels.shape)).astype(np.float32)) / 255
        seen = (fit.image(picture) * 255).round().clamp(0, 255).to(torch.uint8)
        return seen, fit.labels(torch.from_numpy(labels))

    def _instead(self, draw: Draw) -> Iterator[Window]:
        """The window, the place it was moved from, and others of its group, always the same ones."""
        yield window_of(draw.window)
        yield window_of(self.windows[draw.number])
        numbers = members(self.presence, draw.group)
        order = np.random.default_rng([draw.number, *draw.window]).permutation(numbers)
        yield from (window_of(self.windows[number]) for number in order[:_REPLACED])

    def _fits(self, windows: Windows, group: int) -> bool:
        """Whether a moved window keeps its distance, has something to show, and is still of its group."""
        if not self.blocks.trains(windows)[0] or not self.usable(windows)[0]:
            return False
        shown = self.source.labels.presence(windows)[0]
        if group == NOTHING:
            return not shown.any()
        return bool(shown.any() if group == ANYTHING else shown[group])

    @property
    def _shape(self) -> tuple[int, int]:
        rows, cols = self.source.scene.grid.shape
        return rows, cols


def read_block(
    source: RasterSource,
    part: Sequence[int],
    name: str,
    *,
    hidden: NDArray[np.bool_] | None = None,
    validates: bool = False,
) -> CaseArrays:
    """A part of the raster, as a case at its own pixels.

    Args:
        source: The raster.
        part: Row start, row stop, column start, column stop.
        name: Of the case.
        hidden: Objects that are not to be learned.
        validates: It is a block that validates.
    """
    window = window_of(part)
    image, labels = source.read(window, hidden=hidden, validates=validates)
    return CaseArrays(
        id=name,
        image=image[None],
        labels=small_labels(labels)[None],
        grid=source.scene.grid.crop(window),
    )


def touches_all(scene: GeoScene, areas: tuple[Any, ...], windows: Windows) -> NDArray[np.bool_]:
    """(n,): whether windows touch the raster's data, as far as is known without reading, and every area."""
    found = np.ones(len(windows), dtype=np.bool_)
    for number, row in enumerate(windows.tolist()):
        window = window_of(row)
        found[number] = scene.touches(window) and all(area.touches(window) for area in areas)
    return found
