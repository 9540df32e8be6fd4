"""The Lightning data module: training tiles in memory, or read when they are drawn, validation case by case.

One epoch is the stretch between two validations, so that a resumed run continues at an epoch's start.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from samgraft.domains.scene import Scene
from samgraft.errors import InputError
from samgraft.recipes.alignment import evenly
from samgraft.recipes.config import AugmentConfig, DataConfig, Kind
from samgraft.recipes.data.amplitudes import bank_of_files, bank_of_tiles
from samgraft.recipes.data.cases import CaseArrays, CaseRef, DataIndex
from samgraft.recipes.data.dealing import DealtSampler, endless
from samgraft.recipes.data.fit import Fit, windows
from samgraft.recipes.data.layouts import choose_look, index_data
from samgraft.recipes.data.raster_windows import RasterWindows
from samgraft.recipes.data.seen import SLICES, Seen
from samgraft.recipes.data.shares import class_shares
from samgraft.recipes.data.slabs import SlabSet, flat_slabs
from samgraft.recipes.prompting import coarsest_axis
from samgraft.recipes.ranks import ALONE, Share, current

Tile = tuple[Tensor, Tensor]
"""Image (3, S, S) uint8 and label (S, S) int32, ``IGNORE`` in the padding."""


class TileSet(Dataset[Tile]):
    """All slices or windows of the training cases, scaled to the network's size once and kept as bytes.

    Args:
        cases: Training cases; read here.
        size: Side of the network input.
        window: Native side of windows, or None for whole slices.
        overlap: Overlap of windows as a share of their side.
    """

    def __init__(self, cases: Sequence[CaseRef], *, size: int, window: int | None, overlap: float) -> None:
        """Read and scale everything."""
        self.images: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.foreground: list[bool] = []
        for ref in cases:
            self._add(ref.read(), size, window, overlap)
        if not self.images:
            raise InputError("there is no training case; check data.path, the split and data.cases")

    def _add(self, case: CaseArrays, size: int, window: int | None, overlap: float) -> None:
        for rows, cols in windows(case.plane, window, overlap):
            fit = Fit(source=(rows.stop - rows.start, cols.stop - cols.start), size=size)
            for index in range(case.num_slices):
                picture = torch.from_numpy(np.ascontiguousarray(case.picture(index)[:, rows, cols]))
                label = torch.from_numpy(case.labels[index, rows, cols].astype(np.int32))
                if not (label >= 0).any():
                    continue
                self.images.append((fit.image(picture.float() / 255) * 255).round().clamp(0, 255).to(torch.uint8))
                self.labels.append(fit.labels(label))
                self.foreground.append(bool((label > 0).any()))

    def label_maps(self) -> Sequence[Tensor]:
        """All label maps."""
        return self.labels

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.images)

    def __getitem__(self, index: int) -> Tile:
        """One tile."""
        return self.images[index], self.labels[index]


class BalancedSampler(DealtSampler[int]):
    """Draw tiles so that a fixed share has foreground; every tile of a kind comes once before any comes twice.

    Where processes share the batches, each draws all of them and keeps its own run of every batch, so that together
    they see what one process would.

    Args:
        foreground: Which tiles have a label.
        share: Share of draws from those; the natural share counts if it is larger.
        length: Draws per epoch, over all processes.
        seed: With the epoch's number, decides everything.
        batch: Tiles of a batch, over all processes; a multiple of their number.
        part: Which run of every batch this process takes.
        follow: Gives the epoch's number when an epoch begins, or None for what :meth:`set_epoch` was told.
    """

    def __init__(
        self,
        foreground: Sequence[bool],
        *,
        share: float,
        length: int,
        seed: int,
        batch: int = 1,
        part: Share = ALONE,
        follow: Callable[[], int | None] | None = None,
    ) -> None:
        """Split the tiles."""
        super().__init__(length=length, seed=seed, batch=batch, part=part, follow=follow)
        flags = np.asarray(foreground, dtype=bool)
        self.groups = [np.flatnonzero(~flags), np.flatnonzero(flags)]
        natural = float(flags.mean())
        self.share = max(share, natural) if 0 < natural < 1 else natural

    def __iter__(self) -> Iterator[int]:
        """Indices of one epoch that are this process's."""
        rng = np.random.default_rng([self.seed, self.now()])
        wanted = np.floor(np.arange(1, self.length + 1) * self.share + 1e-9) - np.floor(
            np.arange(self.length) * self.share + 1e-9
        )
        kinds = rng.permutation(wanted.astype(int))
        queues = [endless(group, rng) for group in self.groups]
        for place, kind in enumerate(kinds):
            index = next(queues[kind])
            if self.mine(place):
                yield index


class SegmentationData(lightning.LightningDataModule):
    """Training tiles and validation cases of one data set.

    Args:
        config: What to read and how.
        kind: "semantic" or "instance": which labels are wanted.
        size: Side of the network input; already a multiple of the patch.
        steps: Batches per epoch.
        val_cases: Validate on the first few cases only; None takes all.
        class_names: Names of the foreground classes, where the data set does not know them.
        deal_validation: Several processes share the validation cases; False gives all cases to each, for networks whose
            forward pass needs all processes at once.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        kind: Kind,
        size: int | None = None,
        steps: int = 200,
        val_cases: int | None = None,
        class_names: Sequence[str] | None = None,
        deal_validation: bool = True,
    ) -> None:
        """Index the data set; only headers are read."""
        super().__init__()
        self.deal_validation = deal_validation
        self.config, self.kind, self.size, self.steps = config, kind, size or config.size, steps
        self.index: DataIndex = index_data(replace(config, size=self.size), kind, class_names)
        self.val_refs = self.index.val[:val_cases]
        if not self.val_refs:
            raise InputError(
                f"{config.path} has no validation case to judge training by; add splits.json with a 'val' list"
            )
        self._tiles: TileSet | SlabSet | RasterWindows | None = None
        self.seen = Seen(window=config.window, rasters=config.layout in ("raster_vector", "mosaic"))
        self._shares: list[float] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the foreground classes in order of label value."""
        return tuple(self.index.classes[k] for k in sorted(self.index.classes))

    def setup(self, stage: str) -> None:
        """Read the training cases, when they are needed."""
        if stage == "fit" and self._tiles is None:
            c = self.config
            options: dict[str, Any] = {"size": self.size, "window": c.window, "overlap": c.overlap}
            raster, cases = self.index.windows, self.seen.watching(self.index.train)
            labels: Iterable[Tensor]
            if raster is not None:
                shown = [raster.case(number) for number in evenly(len(raster), SLICES)]
                for case in shown:
                    self.seen.add(case)
                self._tiles, labels = raster, [torch.from_numpy(case.labels) for case in shown]
            else:
                tiles = TileSet(cases, **options) if c.slab is None else SlabSet(cases, slab=c.slab, **options)
                self._tiles, labels = tiles, tiles.label_maps()
            channels = 2 if self.kind == "instance" else 1 + len(self.class_names)
            self._shares = class_shares(labels, channels)

    def train_dataloader(self) -> DataLoader[Tile]:
        """Batches of (image (B, 3, S, S) uint8, label (B, S, S) int32), with ``data.slab`` slices D before S."""
        if self._tiles is None:
            self.setup("fit")
        tiles = self._tiles
        assert tiles is not None  # noqa: S101 - setup made it
        batch, part = self.config.batch_size, current()
        if isinstance(tiles, RasterWindows):
            options = {"length": self.steps * batch, "seed": self.config.seed, "batch": batch}
            draws = tiles.sampler(**options, part=part, follow=self._epoch)
            own, workers = batch // part.world, self.config.workers
            return DataLoader(tiles, own, sampler=draws, drop_last=True, num_workers=workers)
        sampler = BalancedSampler(
            tiles.foreground,
            share=self.config.foreground,
            length=self.steps * batch,
            seed=self.config.seed,
            batch=batch,
            part=part,
            follow=self._epoch,
        )
        return DataLoader(tiles, batch_size=batch // part.world, sampler=sampler, drop_last=True)

    def samples(self, most: int) -> tuple[Tensor, Tensor]:
        """At most ``most`` training inputs, evenly spaced over those that show something, slices of slabs one by one.

        Returns:
            (n, 3, S, S) uint8 and labels (n, S, S) int32 with ``IGNORE``.
        """
        self.setup("fit")
        tiles = self._tiles
        assert tiles is not None  # noqa: S101 - setup made it
        if isinstance(tiles, RasterWindows):
            draws = tiles.sampler(length=most, seed=self.config.seed, batch=1, part=ALONE, follow=lambda: None)
            chosen = [tiles[draw] for draw in draws]
        else:
            filled = [number for number, shows in enumerate(tiles.foreground) if shows] or [0]
            chosen = [tiles[filled[place]] for place in evenly(len(filled), most)]
        images, labels = (torch.stack(part) for part in zip(*chosen, strict=True))
        flat, flat_labels, _ = flat_slabs(images, labels)
        assert flat_labels is not None  # noqa: S101 - labels were given
        return flat, flat_labels

    def _epoch(self) -> int | None:
        """How many epochs lie behind, by the steps that were taken; None outside of training.

        Lightning tells samplers of a resumed run the number of an epoch that was finished already.
        """
        trainer = self.trainer
        if trainer is None or not trainer.training:
            return None
        return int(trainer.global_step * trainer.accumulate_grad_batches // self.steps)

    def val_dataloader(self) -> DataLoader[CaseArrays | None]:
        """One whole case at a time, native resolution; kept in memory after the first read.

        Processes get every n-th case, and None where there are too few: all of them take the same number of steps.
        """
        part = current() if self.deal_validation else ALONE
        missing = -len(self.val_refs) % part.world
        return DataLoader(_Cases(part.dealt([*self.val_refs, *[None] * missing])), batch_size=None)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move training batches; a case stays in memory as it is, slices are moved as they are predicted."""
        if batch is None or isinstance(batch, CaseArrays):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def amplitudes(self, config: AugmentConfig) -> Tensor:
        """Amplitudes for ``augment.fourier``, (n, 3, k, k): of the target images that it names, or of training tiles.

        Raises:
            InputError: there is no image.
        """
        if not isinstance(config.fourier, str):
            self.setup("fit")
            return bank_of_tiles(self._tiles, config.fourier_beta)
        c, modality = self.config, self.index.modality

        def axis(scene: Scene) -> int | None:
            if scene.grid.ndim != 3:
                return None
            return coarsest_axis(scene.grid) if c.slice_axis is None else c.slice_axis

        return bank_of_files(
            Path(config.fourier),
            lambda scene: choose_look(scene, c, modality),
            axis,
            size=self.size,
            window=c.window,
            beta=config.fourier_beta,
        )

    def describe(self) -> dict[str, object]:
        """What an adapter's header says about its training data."""
        tiles = len(self._tiles) if self._tiles is not None else 0
        return {
            "data": self.config.path.rstrip("/").rsplit("/", 1)[-1],
            "layout": self.config.layout,
            "train_cases": len(self.index.train),
            "val_cases": len(self.val_refs),
            "tiles": tiles,
            "class_shares": self._shares,
            "epochs_per_validation": round(self.steps * self.config.batch_size / max(tiles, 1), 3)
            if tiles
            else math.nan,
            **(self.index.windows.describe() if self.index.windows is not None else {}),
        }


class _Cases(Dataset[CaseArrays | None]):
    def __init__(self, refs: Sequence[CaseRef | None]) -> None:
        self.refs = refs

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, index: int) -> CaseArrays | None:
        ref = self.refs[index]
        return None if ref is None else ref.load()
