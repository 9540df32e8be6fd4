"""Files of weak labels, written by hand."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path


def write_csv(path: Path, columns: str, *rows: Sequence[object]) -> Path:
    """A table with these columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns.split())
        writer.writerows(rows)
    return path


def write_coco(path: Path, images: dict[str, tuple[int, int]], annotations: Sequence[dict[str, object]]) -> Path:
    """COCO with categories 1 "a" and 2 "b"; images are name -> (height, width), in order of their ids from 0."""
    entries = [{"id": n, "file_name": name, "height": h, "width": w} for n, (name, (h, w)) in enumerate(images.items())]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    path.write_text(json.dumps({"images": entries, "categories": categories, "annotations": list(annotations)}))
    return path
