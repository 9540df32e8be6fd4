"""COCO JSON: detections of images, and masks as run lengths.

A box is ``[x, y, width, height]`` with x and y counted from the image's outer edge, so a box of width 5 at x = 3 holds
the pixels 3 to 7. Run lengths go down the columns and start with the number of zeros.

Source:
    COCO data format, cocodataset.org/#format-data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.datasets.index import read_json
from samgraft.domains.detections.base import DEFAULT_CLASS, Detection, Detections, box_of_edges, finite
from samgraft.errors import InputError


@dataclass(frozen=True, kw_only=True)
class CocoImage:
    """One image that a COCO file knows."""

    id: int
    file_name: str
    """As in the file; may have folders."""
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class CocoFile:
    """The boxes of a COCO file, image by image."""

    path: Path
    images: tuple[CocoImage, ...]
    """Empty for a file of results, which is a bare list of boxes."""
    categories: Mapping[int, str]
    """Id -> name; ids are the file's own, and may start at 0."""
    boxes: Mapping[int, Detections]
    """Image id -> its objects; images without any are missing."""

    def of(self, image: CocoImage) -> Detections:
        """Objects of one image."""
        return self.boxes.get(image.id, Detections(found=()))

    def of_file(self, name: str, shape: tuple[int, int]) -> Detections:
        """Objects of the image with this file name; the only image, if there is only one.

        Args:
            name: With or without folders, with or without a suffix.
            shape: (H, W) of the image that the boxes are wanted for.

        Raises:
            InputError: no such image or several, or the file knows it in another size.
        """
        if not self.images:
            if len(self.boxes) > 1:
                raise InputError(
                    f"{self.path} lists boxes of {len(self.boxes)} images without naming them; give a file with "
                    "'images', or the boxes of one image"
                )
            return next(iter(self.boxes.values()), Detections(found=()))
        wanted = Path(name)
        fits = [image for image in self.images if Path(image.file_name).name == wanted.name]
        fits = fits or [image for image in self.images if Path(image.file_name).stem == wanted.stem]
        if not fits and len(self.images) == 1:
            fits = list(self.images)
        if len(fits) != 1:
            known = ", ".join(image.file_name for image in self.images[:3])
            raise InputError(f"{self.path} has {len(fits)} images named {wanted.name!r}; it has {known}, ...")
        image = fits[0]
        if (image.height, image.width) != shape:
            raise InputError(
                f"{self.path} has boxes for {image.file_name} of {image.width} x {image.height} pixels; the image has "
                f"{shape[1]} x {shape[0]}; give the image that the boxes were drawn on"
            )
        return self.of(image)


def is_coco(content: object) -> bool:
    """Whether parsed JSON looks like COCO: an object with annotations, or a list of results."""
    if isinstance(content, dict):
        return "annotations" in content
    return isinstance(content, list) and all(isinstance(entry, dict) and "bbox" in entry for entry in content)


def read_coco(path: Path | str) -> CocoFile:
    """Read boxes; outlines of annotations are not looked at. Crowds are left out, since they are no single object.

    Args:
        path: A file with images, annotations and categories, or a list of results.

    Raises:
        InputError: missing, damaged, or not COCO.
    """
    path = Path(path)
    content = read_json(path)
    if not is_coco(content):
        raise InputError(f"{path} is no COCO file; expected 'images', 'annotations', 'categories', or a list of boxes")
    parts: Mapping[str, Any] = content if isinstance(content, dict) else {"annotations": content}
    images = tuple(_image(path, entry) for entry in parts.get("images", ()))
    categories = {int(entry["id"]): str(entry.get("name", entry["id"])) for entry in parts.get("categories", ())}
    known = {image.id for image in images}
    found: dict[int, list[Detection]] = {}
    left_out: dict[int, list[str]] = {}
    for number, entry in enumerate(parts["annotations"]):
        name = f"annotation {entry.get('id', number)}"
        owner = int(entry.get("image_id", 0))
        if images and owner not in known:
            raise InputError(f"{path}: {name} belongs to image {owner}, which is not among 'images'; correct the file")
        one = _detection(path, entry, name, categories)
        if isinstance(one, str):
            left_out.setdefault(owner, []).append(one)
        else:
            found.setdefault(owner, []).append(one)
    boxes = {
        owner: Detections(found=tuple(found.get(owner, ())), left_out=tuple(left_out.get(owner, ())))
        for owner in sorted({*found, *left_out})
    }
    return CocoFile(path=path, images=images, categories=categories, boxes=boxes)


def _image(path: Path, entry: Mapping[str, Any]) -> CocoImage:
    try:
        sides = int(entry["width"]), int(entry["height"])
        return CocoImage(id=int(entry["id"]), file_name=str(entry["file_name"]), width=sides[0], height=sides[1])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: image {entry!r} lacks an id, file_name, width or height ({error})") from error


def _detection(path: Path, entry: Mapping[str, Any], name: str, categories: Mapping[int, str]) -> Detection | str:
    """One object, or why it is left out."""
    numbers = entry.get("bbox")
    if not isinstance(numbers, Sequence) or len(numbers) != 4:
        raise InputError(f"{path}: {name} has bbox {numbers!r}; expected [x, y, width, height]")
    if entry.get("iscrowd"):
        return f"{name}: a crowd"
    x, y, width, height = finite(numbers, f"{path}: bbox of {name}")
    if width <= 0 or height <= 0:
        return f"{name}: a box of {width:g} x {height:g} pixels"
    label = int(entry.get("category_id", -1))
    score = None if entry.get("score") is None else finite([entry["score"]], f"{path}: score of {name}")[0]
    return Detection(
        box=box_of_edges(x, y, x + width, y + height),
        class_name=categories.get(label, f"class {label}") if label >= 0 else DEFAULT_CLASS,
        score=score,
        source=name,
    )


def to_rle(
    mask: NDArray[np.bool_], *, top: int = 0, left: int = 0, shape: tuple[int, int] | None = None
) -> dict[str, list[int]]:
    """Uncompressed COCO run lengths: ``{"size": [H, W], "counts": [zeros, ones, zeros, ...]}``.

    Args:
        mask: (h, w) bool.
        top: Row of the image that the mask's first row is.
        left: Column of the image that the mask's first column is.
        shape: (H, W) of the image; None takes the mask for the image.
    """
    height, width = mask.shape if shape is None else shape
    columns = np.zeros((height, mask.shape[1]), dtype=bool)
    columns[top : top + mask.shape[0]] = mask
    flat = columns.ravel(order="F")
    steps = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]]))) + left * height
    ends = np.concatenate([[0], steps, [height * width]])
    counts = np.diff(ends).tolist()
    if counts[-1] == 0 and len(counts) > 1:
        counts.pop()
    return {"size": [height, width], "counts": [int(count) for count in counts]}


def from_rle(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Mask (H, W) of uncompressed run lengths.

    Raises:
        InputError: compressed (text), or counts that do not fill the size.
    """
    counts, (height, width) = rle["counts"], rle["size"]
    if isinstance(counts, str | bytes):
        raise InputError("compressed run lengths cannot be read; write the counts as a list")
    if sum(counts) != height * width:
        raise InputError(f"run lengths add up to {sum(counts)}; the mask has {height} x {width} pixels")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")
