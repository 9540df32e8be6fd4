"""A set of images on disk: which files it has, and which patient or scene each belongs to. No label is opened.

Takes a file, a folder of images, a data set in one of the layouts of ``samgraft fit``, or a text file that lists files.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from samgraft.domains.atomic import full_suffix
from samgraft.domains.datasets.index import Case, make_splits, read_json
from samgraft.domains.datasets.stack import StackedScene
from samgraft.domains.medical.intensity import modality_of_channel
from samgraft.domains.opening import open_scene
from samgraft.domains.scene import Scene
from samgraft.errors import ConfigError, InputError
from samgraft.recipes.predicting import find_inputs

IMAGE_FOLDERS = ("imagesTr", "images", "rasters", "oam")
"""Folders of images inside a data set, in the order in which they are looked for."""
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})$")


@dataclass(frozen=True, kw_only=True)
class Member:
    """One image of a set."""

    name: str
    """File name without suffix."""
    files: tuple[Path, ...]
    """One file, or one per channel."""
    group: str
    """Patient, site or scene."""

    def open(self) -> Scene:
        """Open it lazily; NaN and Inf become missing pixels.

        Raises:
            InputError: a damaged or unreadable file.
        """
        scenes = [open_scene(path, nan="fill") for path in self.files]
        return scenes[0] if len(scenes) == 1 else StackedScene(scenes)


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images of one domain."""

    path: Path
    """What was given."""
    members: tuple[Member, ...]
    """Sorted by name."""
    modality: str | None = None
    """"CT" or "MR" where the data set says so."""
    grouped_by: str = "file"
    """Where groups come from, in words."""

    @property
    def title(self) -> str:
        """Short name."""
        return self.path.name or str(self.path)


def find_set(path: str | PathLike[str], *, group: str | None = None) -> ImageSet:
    """Find the images of a set.

    Args:
        path: An image file, a DICOM folder, a folder of images, a data set (its folder ``imagesTr``, ``images``,
            ``rasters`` or ``oam`` is taken, labels are left alone), or a ``.txt`` file with one path per line.
        group: Regular expression; its first group (or whole match) in a file's name is the patient or scene. None takes
            the split file of a data set where names start with a patient, else every file is its own.

    Raises:
        InputError: nothing there, or a name without a match.
        ConfigError: ``group`` is no regular expression.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise InputError(f"{root}: no such file or folder; give images, a data set, a list (.txt) or an adapter")
    folder = next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), root)
    files = _listed(root) if full_suffix(root) == ".txt" else find_inputs([folder])
    members = _members(files, channels=folder.name == "imagesTr")
    found = ImageSet(path=root, members=members, modality=_modality(root))
    return _named_groups(found, group) if group is not None else _split_groups(found, root)


def _listed(path: Path) -> tuple[Path, ...]:
    """Paths of a list, relative to its folder."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a list of files: {error}") from error
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise InputError(f"{path} lists no file; expected one path per line")
    return find_inputs([path.parent / name for name in names])


def _members(files: Sequence[Path], *, channels: bool) -> tuple[Member, ...]:
    """Files as members; with ``channels``, NAME_0000, NAME_0001, ... are the channels of NAME."""
    cases: dict[str, list[Path]] = {}
    for file in sorted(files):
        stem = file.name if file.is_dir() else file.name[: len(file.name) - len(full_suffix(file))]
        match = _CHANNEL.match(stem) if channels else None
        cases.setdefault(match["case"] if match else stem, []).append(file)
    return tuple(Member(name=name, files=tuple(parts), group=name) for name, parts in sorted(cases.items()))


def _modality(root: Path) -> str | None:
    """CT or MR where ``dataset.json`` names the first channel so; else None."""
    if not (root / "dataset.json").is_file():
        return None
    header = read_json(root / "dataset.json")
    names = header.get("channel_names", header.get("modality")) if isinstance(header, dict) else None
    return modality_of_channel(str(next(iter(names.values()), ""))) if isinstance(names, dict) else None


def _named_groups(found: ImageSet, group: str) -> ImageSet:
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise ConfigError(f"--group {group!r} is no regular expression: {error}") from error
    members = []
    for member in found.members:
        match = pattern.search(member.name)
        if match is None:
            raise InputError(f"{member.name} has no match for --group {group!r}; correct the expression")
        members.append(replace(member, group=match[1] if pattern.groups else match[0]))
    return replace(found, members=tuple(members), grouped_by=f"names, {group}")


def _split_groups(found: ImageSet, root: Path) -> ImageSet:
    """Patients of the split file, where it has any."""
    if not root.is_dir():
        return found
    cases = [Case(id=member.name, image=member.files) for member in found.members]
    try:
        grouped, _ = make_splits(root, cases)
    except InputError:  # a split of other files says nothing about these
        return found
    groups = {case.id: case.group for case in grouped}
    if all(groups[member.name] == member.name for member in found.members):
        return found
    members = tuple(replace(member, group=groups[member.name]) for member in found.members)
    return replace(found, members=members, grouped_by="split file")
