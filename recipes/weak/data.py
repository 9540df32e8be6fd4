"""The data module of weak and partial labels: tiles whose labels are places, and validation cases with weak labels.

No mask of a weakly labelled set is opened, neither to train nor to validate.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from samgraft.adapters.backbones.base import Backbone
from samgraft.domains.scene import Array
from samgraft.errors import InputError
from samgraft.recipes.config import DataConfig, Kind
from samgraft.recipes.data.cases import CaseArrays, CaseRef
from samgraft.recipes.data.module import SegmentationData
from samgraft.recipes.losses import IGNORE
from samgraft.recipes.sheet import contact_sheet
from samgraft.recipes.weak.pseudo import PseudoLabels
from samgraft.recipes.weak_config import WeakConfig
from samgraft.recipes.weak_learning.tiles import WeakTiles

SHOWN = 12
"""Tiles on the picture."""


def needs_weak(config: DataConfig) -> bool:
    """Whether labels are no masks, or not all classes were annotated."""
    return config.supervision != "masks" or config.partial


class WeakData(SegmentationData):
    """Training tiles and validation cases without masks, or with masks of some classes.

    Args:
        config: What to read and how; ``supervision`` or ``partial`` is set.
        weak: What is made of it.
        kind: "semantic" or "instance".
        size: Side of the network input.
        steps: Batches per epoch.
        val_cases: Validate on the first few cases only; None takes all.
        class_names: Names of the foreground classes, where the data set does not know them.
        deal_validation: Several processes share the validation cases.
    """

    def __init__(
        self,
        config: DataConfig,
        weak: WeakConfig,
        *,
        kind: Kind,
        size: int,
        steps: int = 200,
        val_cases: int | None = None,
        class_names: Sequence[str] | None = None,
        deal_validation: bool = True,
    ) -> None:
        """Index the data set; only headers are read."""
        super().__init__(
            config,
            kind=kind,
            size=size,
            steps=steps,
            val_cases=val_cases,
            class_names=class_names,
            deal_validation=deal_validation,
        )
        self.weak, self.made = weak, (0, 0)
        if not self.index.train:
            raise InputError(f"{config.path}: no training case has {config.supervision}; check data.weak and the split")

    @property
    def tiles(self) -> WeakTiles:
        """The training tiles.

        Raises:
            InputError: :meth:`prepare` was not called.
        """
        if not isinstance(self._tiles, WeakTiles):
            raise InputError("the pseudo-labels of weakly labelled cases are not made yet; call prepare() first")
        return self._tiles

    def setup(self, stage: str) -> None:
        """Nothing is left to be read."""
        if stage == "fit":
            assert self.tiles  # noqa: S101 - says what is missing

    def prepare(self, backbone: Backbone, *, tell: Callable[[str], None] | None = None) -> None:
        """Read all cases, ask the frozen backbone what is where, and cut tiles.

        Args:
            backbone: Without grafts.
            tell: Called with a line per case.
        """
        config, instance = self.config, self.kind == "instance"
        make = PseudoLabels(backbone, self.weak, instance=instance)
        tiles = WeakTiles(
            size=self.size,
            window=config.window,
            overlap=config.overlap,
            classes=len(self.class_names),
            instance=instance,
            radius=self.weak.point_radius,
        )
        total = len(self.index.train) + len(self.val_refs)
        for number, ref in enumerate(self.seen.watching(self.index.train), start=1):
            tiles.add(self._made(make, ref, f"{number}/{total}", tell))
        if not len(tiles):
            raise InputError(f"{config.path}: no training case shows anything that is labelled; check {config.weak}")
        done = len(self.index.train)
        val = [self._made(make, ref, f"{done + n}/{total}", tell) for n, ref in enumerate(self.val_refs, start=1)]
        self.val_refs = tuple(CaseRef(id=case.id, read=partial(_same, case)) for case in val)
        self._tiles, self.made = tiles, (make.trusted, make.asked)

    @staticmethod
    def _made(make: PseudoLabels, ref: CaseRef, place: str, tell: Callable[[str], None] | None) -> CaseArrays:
        before = make.trusted, make.asked
        case = make(ref.read())
        if tell is not None and case.weak is not None:
            tell(f"[{place}] {ref.id}: {make.trusted - before[0]} of {make.asked - before[1]} masks can be trusted")
        return case

    def describe(self) -> dict[str, object]:
        """What an adapter's header says about its training data."""
        facts: dict[str, object] = {"supervision": self.config.supervision}
        if self.config.partial:
            facts["partial"] = True
        if self.config.supervision != "masks":
            facts |= {"pseudo_masks": self.made[0], "prompts_asked": self.made[1]}
        return super().describe() | facts

    def picture(self, path: Path) -> None:
        """Write some tiles with their pseudo-labels in colour and what is unknown outlined in white."""
        contact_sheet(path, tile_panels(self.tiles))


def tile_panels(tiles: WeakTiles) -> list[tuple[str, Array, Array, Array]]:
    """Evenly chosen tiles with foreground, for ``contact_sheet``."""
    with_objects = [n for n in range(len(tiles)) if tiles.foreground[n]] or list(range(len(tiles)))
    chosen = with_objects[:: max(1, len(with_objects) // SHOWN)][:SHOWN]
    found = []
    for n in chosen:
        label = tiles.labels[n].numpy()
        unknown = (label == IGNORE) | tiles.unsure[n].numpy()
        found.append((tiles.names[n], tiles.images[n].numpy(), label.clip(0), unknown.astype(label.dtype)))
    return found


def compact(labels: Sequence[torch.Tensor]) -> torch.Tensor:
    """Labels of all tiles (T, S, S) in the smallest type that holds them, for a checkpoint."""
    whole = torch.stack(list(labels))
    top = int(whole.max())
    return whole.to(torch.int8 if top < 128 else torch.int16 if top < 2**15 else torch.int32)


def _same(case: CaseArrays) -> CaseArrays:
    return case
