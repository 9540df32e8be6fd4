"""Weak labels of target cases, made of the masks of a full data set by ``samgraft.recipes.weak.simulate``.

Boxes are tight; of volumes and of classes every connected part of a slice has its own. A point is a random pixel of the
inner half of a part.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

from samgraft.recipes.commands.parsing import config_path, read_fit_config
from samgraft.recipes.config import DataConfig, FitConfig
from samgraft.recipes.weak.simulate import simulate
from samgraft.recipes.weak_config import Supervision
from tests.benchmarks._shift_folders import Item, data_set, describe

Recipe = str
WeakWriter = Callable[[Recipe, Path, Path, int], None]
"""(recipe, full data set, data set to write into, seed)."""
KINDS: tuple[Supervision, ...] = ("boxes", "points", "scribbles")


@cache
def shipped(recipe: Recipe) -> FitConfig:
    """A shipped recipe, parsed once."""
    return read_fit_config(config_path(recipe))


def write_weak(supervision: Supervision, recipe: Recipe, full: Path, root: Path, seed: int) -> None:
    """Write weak labels of all cases of ``full`` into ``root``, where ``data.supervision`` finds them."""
    config = shipped(recipe)
    data = DataConfig(path=str(full), layout=config.data.layout, labels=config.data.labels)
    simulate(data, config.task.kind, supervision, root, class_names=config.task.class_names, seed=seed)


WRITERS: dict[str, WeakWriter] = {kind: partial(write_weak, kind) for kind in KINDS}


def weak_set(
    items: Sequence[Item], images: dict[str, Path], root: Path, *, write: WeakWriter, recipe: Recipe, seed: int
) -> Path:
    """A data set with weak labels only, beside ``all``, which has the masks; of volumes with the names of classes."""

    def labels(cases: Sequence[Item], linked: Sequence[Path], root: Path) -> None:
        del linked
        if cases[0].layout == "nnunet":
            describe(cases[0], root)
        write(recipe, root.parent / "all", root, seed)

    return data_set(items, images, root, labels=labels)
