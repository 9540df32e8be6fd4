"""What every data set index is made of: cases, splits, and the checks that run before any training.

Making an index lists folders and reads small JSON files; pixels are read by a case when asked. Labels are always handed
out on the grid of their image.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from samgraft.domains.datasets.stack import StackedScene
from samgraft.domains.opening import open_scene
from samgraft.domains.scene import Array, Scene, Window, as_labels, explicit_window
from samgraft.errors import GeometryError, InputError, NoMatchError

LabelKind = Literal["semantic", "instance"]
Part = Literal["train", "val"]

SPLIT_FILES = ("splits.json", "splits_final.json", "split.json")
"""Names of split files, in the order in which they are looked for."""
_SEPARATORS = "-_."


@dataclass(frozen=True, kw_only=True)
class Split:
    """One fold: case ids, disjoint."""

    train: tuple[str, ...]
    """Ids of the training cases."""
    val: tuple[str, ...]
    """Ids of the validation cases."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image with its label."""

    id: str
    """Name of the case, unique in its data set."""
    image: tuple[Path, ...]
    """One file per channel; usually one file."""
    label: Path | None = None
    """Label file, or None."""
    group: str = ""
    """Patient or site; cases of one group never stand on both sides of a split. Defaults to the id."""
    kind: LabelKind = "semantic"
    """Whether labels are classes or objects."""
    classes: Mapping[int, str] = field(default_factory=dict)
    """Class label -> name; empty when not known without reading pixels (see :meth:`DatasetIndex.scan_classes`)."""
    values: Mapping[int, int] = field(default_factory=dict)
    """Value in the file -> label, for masks that use other numbers; the rest stays."""

    def __post_init__(self) -> None:
        """Fill the group."""
        if not self.group:
            object.__setattr__(self, "group", self.id)

    def load_image(self) -> Scene:
        """Open the image, lazily. Several files become the channels of one scene.

        Raises:
            InputError: a file is missing or damaged.
            GeometryError: the files lie on different grids.
        """
        scenes = [open_scene(path) for path in self.image]
        return scenes[0] if len(scenes) == 1 else StackedScene(scenes)

    def load_label(self, window: Window | None = None) -> Array:
        """Read the label on the image's grid.

        Args:
            window: Part of the image; None reads everything.

        Returns:
            Unsigned integers of the window's shape, 0 is background.

        Raises:
            InputError: no label, not a label map, or values that are no class.
            GeometryError: the label lies on another grid; the message gives the distance of the corners.
        """
        label, image = self._label_scene(), self.load_image()
        unplaced = label.kind == "picture" and image.kind != "volume" and label.grid.shape == image.grid.shape
        if not unplaced:
            image.grid.require_equal(label.grid, f"label {label.path.name} of {self.id}")
        labels = self._translate(_read_labels(label))
        self._check_values(labels)
        return labels if window is None else labels[explicit_window(window, labels.shape)]

    def object_classes(self) -> Mapping[int, int]:
        """Object id -> class label of an instance label.

        Raises:
            InputError: the label cannot be read.
        """
        only = next(iter(self.classes), 1)
        return {int(v): only for v in np.unique(self.load_label()) if v}

    def check(self, *, pixels: bool = True) -> None:
        """Open image and label, and compare their grids and values.

        Args:
            pixels: Also read the label and check its values.

        Raises:
            InputError: a file is missing or damaged, or holds values that are no class.
            GeometryError: image and label lie on different grids.
        """
        image = self.load_image()
        if pixels:
            self.load_label()
        elif self.label is not None:
            label = self._label_scene()
            if label.kind != "picture":
                image.grid.require_equal(label.grid, f"label {label.path.name} of {self.id}")

    def _label_scene(self) -> Scene:
        """Open the label file."""
        if self.label is None:
            raise InputError(f"case {self.id} has no label; leave it out, or add its label file")
        return open_scene(self.label)

    def _translate(self, labels: Array) -> Array:
        """Turn file values into labels: the ``values`` table, or 255 -> 1 in masks of 0 and 255."""
        table = dict(self.values)
        if self.kind == "semantic" and not table and 255 not in self.classes:
            present = np.unique(labels)
            if present.size and present[-1] == 255 and set(present.tolist()) <= {0, 255}:
                table = {255: 1}
        if not table:
            return labels
        translated = labels.copy()
        for value, label in table.items():
            translated[labels == value] = label
        return translated

    def _check_values(self, labels: Array) -> None:
        """Every label of a semantic map must be a class."""
        if self.kind != "semantic" or not self.classes:
            return
        unknown = sorted(set(np.unique(labels).tolist()) - set(self.classes) - {0})
        if unknown:
            raise InputError(
                f"label {self.label} of {self.id} holds the values {unknown[:10]}; classes are {dict(self.classes)}; "
                "correct the file or name the classes"
            )


@dataclass(frozen=True, kw_only=True)
class DatasetIndex:
    """All cases of a data set."""

    root: Path
    """Folder of the data set."""
    name: str
    """Title."""
    kind: LabelKind
    """Whether labels are classes or objects."""
    cases: tuple[Case, ...]
    """All cases, sorted by id."""
    classes: Mapping[int, str]
    """Class label -> name, without background; empty when not known without reading pixels."""
    channel_names: tuple[str, ...] = ()
    """Names of the channels, where the data set says so ("CT", "MR", ...)."""
    splits: tuple[Split, ...] = ()
    """Folds."""

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.cases)

    def __iter__(self) -> Iterator[Case]:
        """Iterate over the cases."""
        return iter(self.cases)

    def case(self, case_id: str) -> Case:
        """Return one case.

        Raises:
            NoMatchError: no such id.
        """
        for case in self.cases:
            if case.id == case_id:
                return case
        raise NoMatchError(f"{self.name} has no case {case_id!r}; it has {len(self)} cases from {self.cases[0].id!r}")

    def part(self, part: Part, fold: int = 0) -> tuple[Case, ...]:
        """Return the cases of one side of a fold.

        Raises:
            InputError: no split, or no such fold.
        """
        if not 0 <= fold < len(self.splits):
            raise InputError(
                f"{self.root}: fold {fold} asked, {len(self.splits)} known; add {SPLIT_FILES[0]} or a split"
            )
        wanted = set(self.splits[fold].train if part == "train" else self.splits[fold].val)
        return tuple(case for case in self.cases if case.id in wanted)

    def check(self, *, pixels: bool = True) -> None:
        """Check every case and report all problems at once.

        Raises:
            InputError: what is wrong, one line per case, 20 lines at most.
        """
        problems = []
        for case in self.cases:
            try:
                case.check(pixels=pixels)
            except (GeometryError, InputError) as error:
                problems.append(f"{case.id}: {error}")
        if problems:
            shown = "\n  ".join(problems[:20])
            raise InputError(f"{self.root}: {len(problems)} of {len(self)} cases cannot be used:\n  {shown}")

    def scan_classes(self) -> "DatasetIndex":
        """Return this index with classes found by reading every label; names are "class 1", ...

        Raises:
            InputError: a label cannot be read.
        """
        if self.classes:
            return self
        if self.kind == "instance":
            found = {1}
        else:
            labels = (case.load_label() for case in self.cases if case.label is not None)
            found = {int(v) for label in labels for v in np.unique(label) if v}
        classes = {value: f"class {value}" for value in sorted(found)}
        return replace(self, classes=classes, cases=tuple(replace(case, classes=classes) for case in self.cases))


def make_splits(
    root: Path, cases: Sequence[Case], split: Path | Callable[[str], str | None] | None = None
) -> tuple[tuple[Case, ...], tuple[Split, ...]]:
    """Find out which case belongs to which side.

    A name in a split file is a case id, or the start of one up to a separator (-, _ or .): then it is a patient, and
    becomes the group of its cases.

    Args:
        root: Folder of the data set, searched for a split file when ``split`` is None.
        cases: All cases.
        split: A JSON file ``[{"train": [...], "val": [...]}, ...]``, or a function from case id to "train", "val" or
            None (left out).

    Returns:
        Cases with their groups, and the folds (none if there is no split).

    Raises:
        InputError: unknown names, a case or group on both sides, an unreadable file.
    """
    if callable(split):
        sides = {case.id: split(case.id) for case in cases}
        wrong = sorted({str(s) for s in sides.values()} - {"train", "val", "None"})
        if wrong:
            raise InputError(f"the split function returned {wrong}; expected 'train', 'val' or None")
        fold = Split(
            train=tuple(i for i, side in sides.items() if side == "train"),
            val=tuple(i for i, side in sides.items() if side == "val"),
        )
        _check_leak(root, fold, cases)
        return tuple(cases), (fold,)
    path = split or next((root / name for name in SPLIT_FILES if (root / name).is_file()), None)
    if path is None:
        return tuple(cases), ()
    groups: dict[str, str] = {}
    folds = []
    for entry in _read_folds(path):
        sides_of = {side: _resolve(path, entry[side], cases, groups) for side in ("train", "val")}
        folds.append(Split(train=sides_of["train"], val=sides_of["val"]))
    grouped = tuple(replace(case, group=groups.get(case.id, case.group)) for case in cases)
    for fold in folds:
        _check_leak(path, fold, grouped)
    return grouped, tuple(folds)


def _read_labels(scene: Scene) -> Array:
    """Read a label scene; a mask saved as RGB with equal channels counts as gray.

    Raises:
        InputError: not a label map, or a coloured one.
    """
    try:
        return scene.read_labels()
    except InputError:
        if scene.kind != "picture" or scene.channels == 1:
            raise
    colors = scene.read()
    if not (colors == colors[:1]).all():
        raise InputError(f"{scene.path} is a colour image; a mask is gray or palette, with one value per class")
    return as_labels(colors[0], str(scene.path))


def read_json(path: Path) -> object:
    """Parse a JSON file.

    Raises:
        InputError: missing, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error


def list_files(folder: Path, suffixes: Sequence[str]) -> tuple[Path, ...]:
    """Files of a folder with one of the suffixes (lower case), sorted; hidden files are left out.

    Raises:
        InputError: the folder is missing or holds no such file.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; check the path and the layout of the data set")
    found = sorted(
        p for p in folder.iterdir() if not p.name.startswith(".") and p.name.lower().endswith(tuple(suffixes))
    )
    if not found:
        raise InputError(f"{folder} holds no file with {', '.join(suffixes)}")
    return tuple(found)


def _read_folds(path: Path) -> list[dict[str, list[str]]]:
    """Check the form of a split file."""
    content = read_json(path)
    entries = content if isinstance(content, list) else [content]
    folds = []
    for entry in entries:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(side), list) for side in ("train", "val")):
            raise InputError(f'{path}: expected [{{"train": [names], "val": [names]}}, ...]')
        folds.append({side: [str(name) for name in entry[side]] for side in ("train", "val")})
    return folds


def _resolve(path: Path, names: Sequence[str], cases: Sequence[Case], groups: dict[str, str]) -> tuple[str, ...]:
    """Turn the names of a split into case ids; names that are starts of ids become groups."""
    ids = {case.id for case in cases}
    chosen: list[str] = []
    for name in names:
        if name in ids:
            chosen.append(name)
            continue
        members = [i for i in sorted(ids) if i.startswith(name) and i[len(name)] in _SEPARATORS]
        if not members:
            raise InputError(
                f"{path} names {name!r}, which is no case and no start of one; cases: {sorted(ids)[:3]} ..."
            )
        chosen += members
        groups.update(dict.fromkeys(members, name))
    return tuple(chosen)


def _check_leak(where: Path, fold: Split, cases: Sequence[Case]) -> None:
    """No case and no group may stand on both sides."""
    group = {case.id: case.group for case in cases}
    both = sorted({group[i] for i in fold.train} & {group[i] for i in fold.val})
    if both:
        raise InputError(f"{where}: {both[:10]} stand in train and in val; a patient or site belongs to one side only")
