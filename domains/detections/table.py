"""CSV tables of boxes, points or measured diameters, with a header line.

    boxes    xmin, ymin, xmax, ymax (first and last pixel inside), or x, y, width, height (as in COCO)
    points   x, y; ``positive`` 0 for a point off the object; rows with the same ``object`` are one object
    lines    line_x0, line_y0, line_x1, line_y1: the ends of a diameter

Further columns, all optional: the image (``image``, ``image_path``, ``file_name``), the class (``class_name``,
``class``, ``label``, ``category``), ``score`` or ``confidence``, ``slice`` or ``z``. Upper and lower case are the same.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from samgraft.domains.detections.base import DEFAULT_CLASS, Detection, Detections, box_of_edges, finite
from samgraft.errors import InputError

LINE = ("line_x0", "line_y0", "line_x1", "line_y1")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
COCO = ("x", "y", "width", "height")
POINT = ("x", "y")
KINDS = (LINE, CORNERS, COCO, POINT)
"""Columns that say where an object is; the first that are all there count."""
IMAGE = ("image", "image_path", "file_name", "filename")
CLASS = ("class_name", "class", "label", "category")
SCORE = ("score", "confidence")
SLICE = ("slice", "z")

Row = Mapping[str, str]


def read_table(path: Path | str, image: str | None = None) -> Detections:
    """Read a table.

    Args:
        path: CSV with a header, UTF-8.
        image: File name of the image; rows that name another one (without regard to folders) do not count. None takes
            all rows.

    Raises:
        InputError: missing, damaged, without coordinates, or with a value that is no number.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = [str(name).strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            rows = [{k: (v or "").strip() for k, v in row.items() if isinstance(k, str)} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table: {error}") from error
    kind = next((columns for columns in KINDS if set(columns) <= set(names)), None)
    if kind is None:
        wanted = "; ".join(", ".join(columns) for columns in KINDS)
        raise InputError(f"{path} has the columns {', '.join(names) or 'none'}; expected one of: {wanted}")
    found: dict[str, Detection] = {}
    left_out = []
    for number, row in enumerate(rows, start=2):
        named = _first(row, IMAGE)
        if image is not None and named and Path(named).name != Path(image).name:
            continue
        one = _detection(row, kind, f"{path}: row {number}", f"row {number}")
        if isinstance(one, str):
            left_out.append(one)
            continue
        group = row.get("object", "") if kind is POINT else ""
        key = f"object {group}" if group else f"row {number}"
        found[key] = _joined(found[key], one) if key in found else replace(one, source=key)
    lonely = [key for key, one in found.items() if one.points and not any(label for _, _, label in one.points)]
    left_out += [f"{key}: no point on the object" for key in lonely]
    return Detections(found=tuple(one for key, one in found.items() if key not in lonely), left_out=tuple(left_out))


def _detection(row: Row, kind: Sequence[str], where: str, name: str) -> Detection | str:
    """One object, or why it is left out."""
    a, b, *rest = finite([row[column] for column in kind], where)
    common = Detection(
        class_name=_first(row, CLASS) or DEFAULT_CLASS,
        score=_number(row, SCORE, where),
        slice=None if (index := _number(row, SLICE, where)) is None else round(index),
        source=name,
    )
    if kind is POINT:
        label = _number(row, ("positive",), where)
        if label not in (None, 0.0, 1.0):
            raise InputError(f"{where}: positive is {label:g}; expected 1 (on the object) or 0 (off it)")
        return replace(common, points=((a, b, 1 if label is None else int(label)),))
    c, d = rest
    if kind is LINE:
        return f"{name}: a line without length" if (a, b) == (c, d) else replace(common, line=(a, b, c, d))
    box = box_of_edges(a, b, a + c, b + d) if kind is COCO else (a, b, c, d)
    if (kind is COCO and (c <= 0 or d <= 0)) or box[2] < box[0] or box[3] < box[1]:
        return f"{name}: a box that ends before it starts"
    return replace(common, box=box)


def _joined(one: Detection, other: Detection) -> Detection:
    """Two rows of the same object."""
    return replace(one, points=one.points + other.points)


def _first(row: Row, names: Sequence[str]) -> str:
    """Value of the first of these columns that is filled, or an empty text."""
    return next((row[name] for name in names if row.get(name)), "")


def _number(row: Row, names: Sequence[str], where: str) -> float | None:
    value = _first(row, names)
    return finite([value], where)[0] if value else None
