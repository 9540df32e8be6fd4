"""Folders of pictures: ``images/NAME.png`` with ``masks/NAME.png`` (classes) or ``instances/NAME.png`` (objects).

Takes the folder; gives an index. Masks may be gray, palette or 0/255; patients come from the split file where names
of cases start with them (see :func:`samgraft.domains.datasets.index.make_splits`), or from a function.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from samgraft.domains.datasets.index import Case, DatasetIndex, LabelKind, list_files, make_splits
from samgraft.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
"""Picture files that are looked for."""
LABEL_FOLDERS: Mapping[str, LabelKind] = {"masks": "semantic", "labels": "semantic", "instances": "instance"}
"""Folder names of labels, in the order in which they are looked for, and what they hold."""
_MARKS = ("", "_mask", "_masks", "_label", "_labels", "_seg")


def read_image_mask(
    root: Path | str,
    *,
    label_folder: str | None = None,
    kind: LabelKind | None = None,
    classes: Mapping[int, str] | None = None,
    values: Mapping[int, int] | None = None,
    group: Callable[[str], str] | None = None,
    split: Path | Callable[[str], str | None] | None = None,
    masks: bool = True,
) -> DatasetIndex:
    """Index a folder of pictures with masks.

    Args:
        root: Folder with ``images`` and a folder of labels.
        label_folder: Name of the folder of labels; None takes ``masks``, ``labels`` or ``instances``.
        kind: What the labels hold; None decides by the folder's name.
        classes: Class label -> name; None leaves it to ``scan_classes`` (objects: one class, "object").
        values: Value in the file -> label, for masks with other numbers; masks of 0 and 255 need none.
        group: Patient of a case id; None takes it from the split file, or treats every picture as its own.
        split: Split file or function; None looks for ``splits.json`` in ``root``.
        masks: False takes the pictures only; no folder of labels is looked at, and none need be there.

    Returns:
        Cases sorted by id, the file name without suffix. A picture without a mask becomes a case without a label.

    Raises:
        InputError: missing folders, a mask without a picture, two pictures of one name, an unknown name in the split.
    """
    root = Path(root)
    folder = label_folder or next((name for name in LABEL_FOLDERS if (root / name).is_dir()), None)
    if folder is None and masks:
        raise InputError(f"{root} has no folder {', '.join(LABEL_FOLDERS)}; expected images/ and one of these")
    what: LabelKind = kind or LABEL_FOLDERS.get(folder or "", "semantic")
    names = dict(classes or {}) or ({1: "object"} if what == "instance" else {})
    images = _by_stem(list_files(root / "images", SUFFIXES))
    labels = _by_stem(list_files(root / folder, SUFFIXES)) if masks and folder is not None else {}
    cases, used = [], set()
    for stem, image in images.items():
        label = next((labels[stem + mark] for mark in _MARKS if stem + mark in labels), None)
        used.add(label)
        cases.append(Case(id=stem, image=(image,), label=label, kind=what, classes=names, values=dict(values or {})))
    orphans = sorted(p.name for p in labels.values() if p not in used)
    if orphans:
        raise InputError(f"{root / str(folder)}: masks without a picture of that name: {orphans[:10]}")
    if group is not None:
        cases = [replace(case, group=group(case.id)) for case in cases]
    grouped, splits = make_splits(root, cases, split)
    return DatasetIndex(root=root, name=root.name, kind=what, cases=grouped, classes=names, splits=splits)


def _by_stem(files: tuple[Path, ...]) -> dict[str, Path]:
    """Files by name without suffix."""
    found: dict[str, Path] = {}
    for path in files:
        if path.stem in found:
            raise InputError(f"{found[path.stem]} and {path.name} have the same name; keep one of them")
        found[path.stem] = path
    return found
