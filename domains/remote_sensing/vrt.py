"""Pixels of a VRT that resamples its sources: GDAL computes them for every request anew, and differently.

A source whose pixels are not those of the VRT (another pixel size, a place between pixels) is scaled for the rectangle
that was asked for, so one pixel has as many values as there are windows that show it. Read in squares of one lattice,
each pixel has one value.

Source:
    Observed with GDAL 3.10.3: 48 aerial chips whose pixels follow their latitude, as one VRT: 20,518 values in windows
    of 512 pixels differ from those of the whole, by up to 170 of 255.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from samgraft.domains.scene import Array, Window

SQUARE = 512
"""Side of what is read at once, in pixels."""
NESTED = 4
"""VRTs in VRTs that are followed."""
_SOURCES = ("SimpleSource", "ComplexSource", "AveragedSource", "KernelFilteredSource")
_EXACT = 1e-9


def resamples(path: Path, nested: int = NESTED) -> bool:
    """Whether pixels of a VRT depend on the window that is read; False for what is no XML file.

    Args:
        path: The VRT.
        nested: How many VRTs in VRTs are followed; deeper ones count as resampled.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError):
        return False
    for source in (node for kind in _SOURCES for node in root.iter(kind)):
        if source.tag in ("AveragedSource", "KernelFilteredSource") or not _copies(source):
            return True
        name = source.find("SourceFilename")
        if name is not None and (name.text or "").lower().endswith(".vrt"):
            inner = Path(name.text or "")
            inner = path.parent / inner if name.get("relativeToVRT") == "1" else inner
            if not nested or resamples(inner, nested - 1):
                return True
    return False


def _copies(source: ElementTree.Element) -> bool:
    """Whether a source's rectangle goes pixel by pixel to that of the VRT."""
    taken, given = source.find("SrcRect"), source.find("DstRect")
    if taken is None or given is None:
        return True
    try:
        a, b = ([float(node.get(key, "")) for key in ("xOff", "yOff", "xSize", "ySize")] for node in (taken, given))
    except ValueError:
        return False
    whole = all(abs(value - round(value)) < _EXACT for value in a + b)
    return whole and a[2:] == b[2:]


def in_squares(read: Callable[[Window], Array], window: Window, shape: tuple[int, ...]) -> Array:
    """A window put together from squares of one lattice.

    Args:
        read: Gives (..., h, w) of a window.
        window: Rows and columns that are wanted.
        shape: (H, W) of the raster.
    """
    first = read(_square(window[0].start // SQUARE, window[1].start // SQUARE, shape))
    whole = np.empty((*first.shape[:-2], *(part.stop - part.start for part in window)), dtype=first.dtype)
    for number, square in enumerate(_squares(window, shape)):
        both = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(window, square, strict=True))
        rows, cols = (slice(c.start - a.start, c.stop - a.start) for a, c in zip(window, both, strict=True))
        down, right = (slice(c.start - b.start, c.stop - b.start) for b, c in zip(square, both, strict=True))
        pixels = first if number == 0 else read(square)
        whole[..., rows, cols] = pixels[..., down, right]
    return whole


def _squares(window: Window, shape: tuple[int, ...]) -> Iterator[Window]:
    """Squares that touch a window, row by row."""
    rows, cols = (range(part.start // SQUARE, -(-part.stop // SQUARE)) for part in window)
    for row in rows:
        for col in cols:
            yield _square(row, col, shape)


def _square(row: int, col: int, shape: tuple[int, ...]) -> Window:
    return tuple(slice(at * SQUARE, min((at + 1) * SQUARE, n)) for at, n in zip((row, col), shape, strict=True))
