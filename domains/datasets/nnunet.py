"""The nnU-Net layout: ``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz``, ``dataset.json``, ``splits.json``.

Takes the folder; gives an index. Older files (Medical Segmentation Decathlon: labels as {"1": "name"}, images without a
channel number) are read as well. A ``dataset.json`` is not required: then classes are found by ``scan_classes``.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from samgraft.domains.datasets.index import Case, DatasetIndex, list_files, make_splits, read_json
from samgraft.errors import InputError

ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd", ".png", ".tif", ".tiff")
"""File endings that are recognised when ``dataset.json`` names none."""
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})$")


def read_nnunet(root: Path | str, *, split: Path | None = None, labels: bool = True) -> DatasetIndex:
    """Index a data set in nnU-Net layout.

    Args:
        root: Folder with ``imagesTr`` and ``labelsTr``.
        split: Split file; None looks for ``splits.json`` or ``splits_final.json`` in ``root``.
        labels: False takes the images only; ``labelsTr`` is not looked at, and need not be there.

    Returns:
        Cases sorted by id. An image without a label becomes a case without a label.

    Raises:
        InputError: missing folders, a label without an image, missing channels, a contradictory ``dataset.json``.
    """
    root = Path(root)
    header = _header(root)
    ending = header.get("file_ending")
    endings = (str(ending),) if ending else ENDINGS
    files = {_stem(p, endings): p for p in list_files(root / "labelsTr", endings)} if labels else {}
    images = _channels(list_files(root / "imagesTr", endings), endings, files)
    orphans = sorted(set(files) - set(images))
    if orphans:
        raise InputError(
            f"{root}: labels without an image: {orphans[:10]}; expected imagesTr/{orphans[0]}_0000{endings[0]}"
        )
    names = _channel_names(header)
    counts = {case: len(files) for case, files in images.items()}
    expected = len(names) or max(counts.values())
    wrong = sorted(case for case, count in counts.items() if count != expected)
    if wrong:
        raise InputError(
            f"{root}: {wrong[0]} has {counts[wrong[0]]} channel files, expected {expected} ({len(wrong)} such)"
        )
    classes = _classes(root, header)
    cases = [
        Case(id=case, image=channels, label=files.get(case), classes=classes)
        for case, channels in sorted(images.items())
    ]
    grouped, splits = make_splits(root, cases, split)
    return DatasetIndex(
        root=root,
        name=str(header.get("name", root.name)),
        kind="semantic",
        cases=grouped,
        classes=classes,
        channel_names=names,
        splits=splits,
    )


def _header(root: Path) -> Mapping[str, object]:
    """Content of ``dataset.json``, or nothing."""
    path = root / "dataset.json"
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object with 'labels' and 'channel_names'")
    return content


def _stem(path: Path, endings: tuple[str, ...]) -> str:
    """Name without the longest ending that fits."""
    ending = max((e for e in endings if path.name.lower().endswith(e)), key=len)
    return path.name[: -len(ending)]


def _channels(
    files: tuple[Path, ...], endings: tuple[str, ...], labels: Mapping[str, Path]
) -> dict[str, tuple[Path, ...]]:
    """Group image files by case; a file whose whole name is a labelled case is a single channel."""
    grouped: dict[str, dict[int, Path]] = {}
    for path in files:
        stem = _stem(path, endings)
        match = _CHANNEL.match(stem)
        if match and stem not in labels:
            case, channel = match["case"], int(match["channel"])
        else:
            case, channel = stem, 0
        if channel in grouped.setdefault(case, {}):
            raise InputError(
                f"two files for channel {channel} of {case}: {grouped[case][channel].name} and {path.name}"
            )
        grouped[case][channel] = path
    for case, channels in grouped.items():
        if sorted(channels) != list(range(len(channels))):
            raise InputError(
                f"{case} has the channels {sorted(channels)}; expected 0000 to {len(channels) - 1:04d} without gaps"
            )
    return {case: tuple(channels[c] for c in sorted(channels)) for case, channels in grouped.items()}


def _channel_names(header: Mapping[str, object]) -> tuple[str, ...]:
    """Channel names of either version of the format."""
    names = header.get("channel_names", header.get("modality", {}))
    if not isinstance(names, Mapping):
        raise InputError(f"dataset.json: channel_names is {names!r}; expected an object such as {{'0': 'CT'}}")
    return tuple(str(names[key]) for key in sorted(names, key=int))


def _classes(root: Path, header: Mapping[str, object]) -> dict[int, str]:
    """Label -> name without background, from {"name": 1} or {"1": "name"}."""
    labels = header.get("labels", {})
    if not isinstance(labels, Mapping):
        raise InputError(f"{root / 'dataset.json'}: labels is {labels!r}; expected an object such as {{'tumour': 1}}")
    found: dict[int, str] = {}
    for key, value in labels.items():
        if isinstance(value, list):
            raise InputError(f"{root / 'dataset.json'}: label {key!r} is a region {value}; give one value per label")
        text, number = (str(value), str(key)) if str(key).isdigit() else (str(key), str(value))
        if not number.isdigit():
            raise InputError(
                f"{root / 'dataset.json'}: label {key!r}: {value!r}; one of the two must be a whole number"
            )
        if int(number) in found:
            raise InputError(f"{root / 'dataset.json'}: {found[int(number)]!r} and {text!r} share the value {number}")
        found[int(number)] = text
    if 0 in found and found[0].lower() != "background":
        raise InputError(f"{root / 'dataset.json'}: label 0 is {found[0]!r}; 0 must be background")
    return {value: name for value, name in sorted(found.items()) if value}
