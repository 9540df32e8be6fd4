"""Checks of a whole data set: every case, its label beside its image, and cases against each other.

Folders are listed loosely here, so that one bad name does not hide the others; ``samgraft fit`` reads them strictly.
"""

import json
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from samgraft.domains.atomic import full_suffix
from samgraft.domains.datasets.image_mask import LABEL_FOLDERS
from samgraft.domains.datasets.image_mask import SUFFIXES as PICTURES
from samgraft.domains.datasets.index import SPLIT_FILES
from samgraft.domains.datasets.nnunet import ENDINGS
from samgraft.domains.opening import open_scene
from samgraft.domains.scene import Scene
from samgraft.errors import SamgraftError
from samgraft.recipes.doctor.finding import Finding, Report, Severity, from_error, place_of
from samgraft.recipes.doctor.volumes import Patient, Pixels, examine_image, measure

Track = Callable[[Iterable[Path], int], Iterable[Path]]
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})$")
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class LooseCase:
    """Files that seem to belong together."""

    id: str
    images: tuple[Path, ...] = ()
    label: Path | None = None


@dataclass(frozen=True, kw_only=True)
class LooseSet:
    """What the folders of a data set hold, right or wrong."""

    root: Path
    cases: tuple[LooseCase, ...]
    classes: Mapping[int, str] = field(default_factory=dict)
    """Declared labels; empty if none are declared."""
    modality: str = ""
    channels: int | None = None
    """Declared number of channels."""
    findings: tuple[Finding, ...] = ()
    """What listing alone found."""
    pictures: bool = False
    """Masks may use 0 and 255."""


@dataclass(kw_only=True)
class Seen:
    """What is remembered of every case, for comparisons between cases."""

    digests: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Hash of image values -> case ids."""
    spacing: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Case id -> spacing in mm."""


def loose_nnunet(root: Path) -> LooseSet:
    """List a folder in nnU-Net layout."""
    findings: list[Finding] = []
    header = _header(root / "dataset.json", findings)
    images: dict[str, list[Path]] = defaultdict(list)
    labels = {_stem(p): p for p in _list(root / "labelsTr", ENDINGS, findings)}
    for file in _list(root / "imagesTr", ENDINGS, findings):
        stem = _stem(file)
        match = _CHANNEL.match(stem)
        images[match["case"] if match and stem not in labels else stem].append(file)
    names = header.get("channel_names", header.get("modality", {}))
    first = str(next(iter(names.values()), "")) if isinstance(names, dict) else ""
    return LooseSet(
        root=root,
        cases=tuple(
            LooseCase(id=i, images=tuple(images.get(i, ())), label=labels.get(i)) for i in sorted({*images, *labels})
        ),
        classes=_classes(header.get("labels", {})),
        modality="CT" if first.upper().startswith("CT") else first,
        channels=len(names) if isinstance(names, dict) and names else None,
        findings=tuple(findings),
    )


def loose_pairs(root: Path) -> LooseSet:
    """List a folder with images and masks of the same names."""
    findings: list[Finding] = []
    folder = next(name for name in LABEL_FOLDERS if (root / name).is_dir())
    masks = {p.stem.lower(): p for p in _list(root / folder, PICTURES, findings)}
    cases = []
    for image in _list(root / "images", PICTURES, findings):
        near = [image.stem.lower() + mark for mark in ("", "_mask", "_masks", "_label", "_labels", "_seg")]
        cases.append(
            LooseCase(id=image.stem, images=(image,), label=next((masks[n] for n in near if n in masks), None))
        )
    used = {case.label for case in cases}
    cases += [LooseCase(id=p.stem, label=p) for p in masks.values() if p not in used]
    return LooseSet(root=root, cases=tuple(cases), findings=tuple(findings), pictures=True)


def examine_set(data: LooseSet, report: Report, *, modality: str | None, track: Track | None) -> None:
    """Examine every case, then the cases against each other."""
    report.add(data.findings)
    seen = Seen()
    by_file = {_first_file(case): case for case in data.cases}
    files = list(by_file)
    for file in track(files, len(files)) if track else files:
        case = by_file[file]
        report.files += len(case.images) + (case.label is not None)
        report.add(_case(case, data, modality or data.modality, seen))
    folds = list(_folds(data, report))
    for check in BETWEEN:
        report.add(check(data, seen, folds))


def _first_file(case: LooseCase) -> Path:
    return case.images[0] if case.images else Path(str(case.label))


def _case(case: LooseCase, data: LooseSet, modality: str, seen: Seen) -> Iterator[Finding]:
    """Findings about one case."""
    yield from _pairing(case, data)
    scenes: list[Scene] = []
    for file in case.images:
        try:
            scene = _open(file)
            pixels = measure(scene)
        except SamgraftError as error:
            yield from_error(error, file)
            continue
        yield from examine_image(Patient(scene=scene, pixels=pixels, modality=modality or scene.modality or ""))
        scenes.append(scene)
        seen.digests[pixels.digest].append(case.id)
        seen.spacing[case.id] = scene.grid.spacing
    for other in scenes[1:]:
        yield from _same_grid(other, scenes[0], "channel on another grid")
    if case.label is not None:
        yield from _label(case.label, scenes[0] if scenes else None, data)


def _open(file: Path) -> Scene:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_scene(file, nan="fill")


def _pairing(case: LooseCase, data: LooseSet) -> Iterator[Finding]:
    """Image without label, label without image, missing channels."""
    if not case.images:
        yield _finding("error", "label without image", case.label, f"no image for case {case.id}", "add or remove it")
        return
    if case.label is None:
        yield _finding("warning", "image without label", case.images[0], "no label file", "it trains nothing; label it")
    numbers = [int(m["channel"]) for f in case.images if (m := _CHANNEL.match(_stem(f))) and len(case.images) > 1]
    if data.channels is not None and len(case.images) != data.channels:
        what = f"{len(case.images)} channel files, dataset.json names {data.channels}"
        yield _finding("error", "missing channels", case.images[0], what, "add the files, or correct channel_names")
    elif numbers != list(range(len(numbers))):
        what = f"channel numbers {numbers}"
        yield _finding("error", "missing channels", case.images[0], what, "number them from 0000 without gaps")


def _label(file: Path, image: Scene | None, data: LooseSet) -> Iterator[Finding]:
    """Findings about one label file."""
    try:
        label = _open(file)
        if image is not None:
            yield from _same_grid(label, image, "label on another grid", loose=data.pictures)
        if label.channels != 1 and data.pictures:
            return
        label.read_labels()
        pixels = measure(label, labels=True)
    except SamgraftError as error:
        yield from_error(error, file)
        return
    for check in LABEL_CHECKS:
        yield from check(label, pixels, data)


def _same_grid(one: Scene, other: Scene, check: str, *, loose: bool = False) -> Iterator[Finding]:
    """Two files of a case must lie on one grid; pictures need only one shape."""
    if loose and one.grid.shape == other.grid.shape:
        return
    try:
        other.grid.require_equal(one.grid, f"beside {other.path.name}")
    except SamgraftError as error:
        yield from_error(error, one.path, check)


def _empty(label: Scene, pixels: Pixels, data: LooseSet) -> Iterator[Finding]:
    if pixels.high == 0:
        remedy = "right if nothing is there; otherwise export the label again"
        yield _finding("warning", "empty label", label.path, "no voxel is labelled", remedy)


def _undeclared(label: Scene, pixels: Pixels, data: LooseSet) -> Iterator[Finding]:
    known = set(data.classes) | {0}
    unknown = sorted(pixels.values - known)
    if data.classes and unknown:
        where = np.argwhere(label.read_labels() == unknown[0])[0]
        yield Finding(
            severity="error",
            check="undeclared label",
            file=str(label.path),
            what=f"holds {unknown[:_SHOWN]}; dataset.json declares {dict(data.classes)}",
            remedy="correct the file, or declare the label",
            place=f"{unknown[0]} first at {place_of(label.grid, [int(i) for i in where])}",
        )


def _overflow(label: Scene, pixels: Pixels, data: LooseSet) -> Iterator[Finding]:
    """A label too large for the file's dtype has wrapped around when it was written."""
    if label.dtype.kind not in "iu":
        return
    top = int(np.iinfo(label.dtype).max)
    size = 2 ** (8 * label.dtype.itemsize)
    lost = {value: value % size for value in data.classes if value > top}
    wrapped = {value: seen for value, seen in lost.items() if seen in pixels.values and seen not in data.classes}
    if lost:
        what = f"{label.dtype} holds labels up to {top}; declared are {sorted(lost)[:_SHOWN]}"
        if wrapped:
            what += "; " + ", ".join(f"{seen} is what {value} becomes" for value, seen in wrapped.items())
        severity: Severity = "error" if wrapped else "warning"
        yield _finding(severity, "label overflow", label.path, what, "export it again with a 16-bit dtype")


LABEL_CHECKS: tuple[Callable[[Scene, Pixels, LooseSet], Iterator[Finding]], ...] = (_empty, _undeclared, _overflow)
"""Checks of a label file."""


def _copies(data: LooseSet, seen: Seen, folds: Sequence[Mapping[str, set[str]]]) -> Iterator[Finding]:
    """Images with equal values: doubles, and leaks where they stand on both sides of a split."""
    for ids in seen.digests.values():
        several = sorted(set(ids))
        if len(several) < 2:
            continue
        leak = any(set(several) & fold["train"] and set(several) & fold["val"] for fold in folds)
        yield _finding(
            "error" if leak else "warning",
            "duplicate images in train and val" if leak else "duplicate images",
            data.root,
            f"{', '.join(several[:_SHOWN])} hold the same values",
            "remove the copies, or keep them on one side of the split",
        )


def _leaks(data: LooseSet, seen: Seen, folds: Sequence[Mapping[str, set[str]]]) -> Iterator[Finding]:
    for number, fold in enumerate(folds):
        both = sorted(fold["train"] & fold["val"])
        if both:
            what = f"fold {number}: {', '.join(both[:_SHOWN])} in train and in val"
            yield _finding("error", "train/val leak", data.root, what, "a patient belongs to one side only")


def _odd_spacing(data: LooseSet, seen: Seen, folds: Sequence[Mapping[str, set[str]]]) -> Iterator[Finding]:
    """A case far from the others, which is a wrong unit more often than not."""
    if data.pictures or len(seen.spacing) < 3:
        return
    volume = {case: float(np.prod(spacing)) for case, spacing in seen.spacing.items()}
    middle = float(np.median(list(volume.values())))
    for case, one in volume.items():
        if not 1 / 30 < one / middle < 30:
            spacing = " x ".join(f"{v:.4g}" for v in seen.spacing[case])
            what = f"case {case}: voxels of {spacing} mm, {one / middle:.3g} times the usual volume"
            yield _finding("warning", "doubtful spacing", data.root, what, "check its unit")


BETWEEN: tuple[Callable[[LooseSet, Seen, Sequence[Mapping[str, set[str]]]], Iterator[Finding]], ...] = (
    _copies,
    _leaks,
    _odd_spacing,
)
"""Checks of cases against each other."""


def _folds(data: LooseSet, report: Report) -> Iterator[Mapping[str, set[str]]]:
    """Case ids of both sides of every fold; a name may be the start of ids (a patient)."""
    file = next((data.root / name for name in SPLIT_FILES if (data.root / name).is_file()), None)
    if file is None:
        return
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        entries = content if isinstance(content, list) else [content]
        sides = [{side: [str(name) for name in entry[side]] for side in ("train", "val")} for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        report.add([_finding("error", "split file", file, f"unreadable: {error}", "expected train and val lists")])
        return
    ids = {case.id for case in data.cases}
    for entry in sides:
        fold = {}
        for side, names in entry.items():
            found = {name: {i for i in ids if _is_of(i, name)} for name in names}
            unknown = sorted(name for name, members in found.items() if not members)
            if unknown:
                what = f"{side} names {unknown[:_SHOWN]}, which are no cases"
                report.add([_finding("error", "split file", file, what, "correct the names")])
            fold[side] = set().union(*found.values())
        yield fold


def _is_of(case: str, name: str) -> bool:
    """True if a name of a split file is the case, or its patient."""
    return case == name or (case.startswith(name) and case[len(name)] in "-_.")


def _finding(severity: Severity, check: str, file: Path | None, what: str, remedy: str) -> Finding:
    return Finding(severity=severity, check=check, file=str(file), what=what, remedy=remedy)


def _list(folder: Path, endings: Sequence[str], findings: list[Finding]) -> list[Path]:
    """Files with a known ending; a missing or empty folder is a finding."""
    files = sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []
    found = [p for p in files if full_suffix(p) in endings]
    if not found:
        findings.append(_finding("error", "missing", folder, "no folder, or no image in it", "check the layout"))
    return found


def _stem(file: Path) -> str:
    return file.name[: len(file.name) - len(full_suffix(file))]


def _header(file: Path, findings: list[Finding]) -> dict[str, object]:
    """Content of dataset.json."""
    if not file.is_file():
        findings.append(_finding("note", "dataset.json", file, "absent; labels have no names", "add one"))
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        findings.append(_finding("error", "dataset.json", file, f"unreadable: {error}", "correct the file"))
        return {}
    return content if isinstance(content, dict) else {}


def _classes(labels: object) -> dict[int, str]:
    """Label -> name without background, of either version of the format."""
    found = {}
    for key, value in labels.items() if isinstance(labels, dict) else ():
        text, number = (str(value), str(key)) if str(key).isdigit() else (str(key), str(value))
        if number.isdigit() and int(number):
            found[int(number)] = text
    return found
