"""Labels of a large raster by window: objects with a spatial index, or another raster.

A :class:`LabelSource` draws what a window shows, and says which classes windows hold; nothing is drawn for the whole
raster. Windows are (n, 4) integers: first row, row after the last, first column, column after the last.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio import features
from scipy import ndimage

from samgraft.domains.datasets.index import LabelKind
from samgraft.domains.remote_sensing.geo_scene import GeoScene
from samgraft.domains.scene import Window
from samgraft.errors import InputError

UNKNOWN = -1
"""Label of a pixel of which nothing is known."""
Windows = NDArray[np.int64]
"""(n, 4): row start, row stop, column start, column stop."""
_CROSS = ndimage.generate_binary_structure(2, 1)
_PAIRS = 2_000_000
"""Most pairs of an object and a window that are measured at once."""


class LabelSource(ABC):
    """Where labels come from."""

    names: Mapping[int, str]
    """Label from 1 -> name of the class."""

    @abstractmethod
    def draw(self, window: Window, kind: LabelKind, *, hidden: NDArray[np.bool_] | None = None) -> NDArray[np.int32]:
        """Labels of a window.

        Args:
            window: Rows and columns of the raster.
            kind: "semantic" gives classes; "instance" numbers 1..n that are this window's own.
            hidden: (objects,), objects that are not to be shown: their pixels are ``UNKNOWN``. None hides none.

        Returns:
            (h, w) int32, 0 background, ``UNKNOWN`` where nothing is known.
        """

    @abstractmethod
    def presence(self, windows: Windows) -> NDArray[np.bool_]:
        """(n, classes): whether a window holds something of each class."""

    @abstractmethod
    def area(self, windows: Windows) -> NDArray[np.float64]:
        """(n, classes): pixels of each class in windows."""

    def touching(self, windows: Windows) -> NDArray[np.bool_] | None:
        """(objects,), which objects reach into any of the windows; None where objects cannot be told apart."""
        return None

    def count(self, windows: Windows) -> int:
        """Objects that reach into any of the windows; 0 where objects cannot be told apart."""
        found = self.touching(windows)
        return 0 if found is None else int(found.sum())


class ObjectLabels(LabelSource):
    """Outlines of objects in pixels of the raster, found by a spatial index.

    Args:
        geometries: (n,) polygons in (col, row) pixel coordinates; pixel corners are whole numbers.
        classes: (n,) label of each, from 1.
        names: Label -> name.
        unknown: Polygons of which nothing is known, such as crowds.
        least_visible: An object of which a window shows a smaller share is ``UNKNOWN`` there: nobody could tell it from
            so little. Only where objects are told apart.
    """

    def __init__(
        self,
        geometries: NDArray[Any],
        classes: NDArray[np.int32],
        names: Mapping[int, str],
        *,
        unknown: NDArray[Any] | None = None,
        least_visible: float = 0.1,
    ) -> None:
        """Sort by size, so that small objects are drawn last and stay visible."""
        order = np.argsort(-shapely.area(geometries), kind="stable")
        self.geometries, self.classes = geometries[order], classes[order]
        self.names, self.least_visible = dict(names), least_visible
        self.unknown = np.zeros(0, dtype=object) if unknown is None else unknown
        self._trees: tuple[shapely.STRtree, shapely.STRtree] | None = None

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.geometries)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the index, which another process builds anew."""
        return {**self.__dict__, "_trees": None}

    def draw(self, window: Window, kind: LabelKind, *, hidden: NDArray[np.bool_] | None = None) -> NDArray[np.int32]:
        """See :meth:`LabelSource.draw`.

        An object that a window cuts into several pieces becomes several objects, since the window does not show what
        connects them.
        """
        frame = _box(window)
        near = np.sort(self._tree(0).query(frame, predicate="intersects"))
        seen = np.ones(len(near), dtype=np.bool_) if hidden is None else ~hidden[near]
        values = self.classes[near] if kind == "semantic" else np.arange(1, len(near) + 1, dtype=np.int32)
        cut = np.zeros(len(near), dtype=np.bool_)
        if kind == "instance":
            cut = ~shapely.contains(frame, self.geometries[near])
            seen[cut] &= self._visible(near[cut], frame) >= self.least_visible
        drawn = _burn(self.geometries[near], np.where(seen, values, UNKNOWN), window)
        if cut.any():
            drawn = _apart(drawn, values[cut & seen])
        blank = self._tree(1).query(frame, predicate="intersects")
        if len(blank):
            drawn[_burn(self.unknown[blank], np.full(len(blank), UNKNOWN), window) == UNKNOWN] = UNKNOWN
        return drawn

    def presence(self, windows: Windows) -> NDArray[np.bool_]:
        """See :meth:`LabelSource.presence`; an object counts where its outline overlaps the window."""
        found = np.zeros((len(windows), len(self.names)), dtype=np.bool_)
        number, pair = self._tree(0).query(_boxes(windows), predicate="intersects")
        found[number, self.classes[pair] - 1] = True
        return found

    def area(self, windows: Windows) -> NDArray[np.float64]:
        """See :meth:`LabelSource.area`; of outlines, so overlapping objects count twice."""
        total = np.zeros((len(windows), len(self.names)))
        boxes = _boxes(windows)
        number, pair = self._tree(0).query(boxes, predicate="intersects")
        for start in range(0, len(pair), _PAIRS):
            some = slice(start, start + _PAIRS)
            inside = shapely.area(shapely.intersection(self.geometries[pair[some]], boxes[number[some]]))
            np.add.at(total, (number[some], self.classes[pair[some]] - 1), inside)
        return total

    def touching(self, windows: Windows) -> NDArray[np.bool_]:
        """See :meth:`LabelSource.touching`."""
        found = np.zeros(len(self), dtype=np.bool_)
        found[self._tree(0).query(_boxes(windows), predicate="intersects")[1]] = True
        return found

    def _visible(self, numbers: NDArray[np.intp], frame: Any) -> NDArray[np.float64]:
        """Share of each object's area inside the frame."""
        own = self.geometries[numbers]
        share: NDArray[np.float64] = shapely.area(shapely.intersection(own, frame)) / shapely.area(own)
        return share

    def _tree(self, which: int) -> shapely.STRtree:
        if self._trees is None:
            self._trees = shapely.STRtree(self.geometries), shapely.STRtree(self.unknown)
        return self._trees[which]


class RasterLabels(LabelSource):
    """A raster of classes, or of object numbers, on the grid of the raster that is learned from.

    Args:
        scene: One channel of whole numbers; pixels without data are ``UNKNOWN``.
        names: Label -> name.
        values: Value in the file -> label; other values are background.
        objects: The values are object numbers and not classes; all are of the first class.
    """

    def __init__(
        self, scene: GeoScene, names: Mapping[int, str], *, values: Mapping[int, int], objects: bool = False
    ) -> None:
        """Nothing is read yet."""
        self.scene, self.names, self.values, self.objects = scene, dict(names), dict(values), objects

    def draw(self, window: Window, kind: LabelKind, *, hidden: NDArray[np.bool_] | None = None) -> NDArray[np.int32]:
        """See :meth:`LabelSource.draw`; the objects of a map of classes are its connected parts."""
        del hidden
        array, valid = self.scene.read_valid(window, [0])
        stored = array[0]
        if stored.dtype.kind == "f" and not np.array_equal(stored[valid], np.round(stored[valid])):
            raise InputError(f"{self.scene.path} holds fractions; expected a map of labels, not of probabilities")
        if self.objects:
            drawn = _numbered(np.where(valid, stored, 0).astype(np.int64), kind)
        else:
            drawn = np.zeros(stored.shape, dtype=np.int32)
            for value, label in self.values.items():
                drawn[stored == value] = label
            if kind == "instance":
                drawn = ndimage.label(drawn > 0, structure=_CROSS, output=np.int32)[0]
        drawn[~valid] = UNKNOWN
        return drawn

    def presence(self, windows: Windows) -> NDArray[np.bool_]:
        """See :meth:`LabelSource.presence`; reads every window."""
        return self.area(windows) > 0

    def area(self, windows: Windows) -> NDArray[np.float64]:
        """See :meth:`LabelSource.area`; reads every window."""
        total = np.zeros((len(windows), len(self.names)))
        for number, window in enumerate(windows.tolist()):
            drawn = self.draw(window_of(window), "semantic")
            total[number] = np.bincount(drawn[drawn > 0], minlength=len(self.names) + 1)[1:]
        return total


def window_of(row: Any) -> Window:
    """One row of :data:`Windows` as slices."""
    top, bottom, left, right = (int(value) for value in row)
    return slice(top, bottom), slice(left, right)


def windows_of(*parts: Window) -> Windows:
    """Slices as :data:`Windows`."""
    rows = [(rows.start, rows.stop, cols.start, cols.stop) for rows, cols in parts]
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


def _boxes(windows: Windows) -> NDArray[Any]:
    """Windows as polygons, a thousandth of a pixel smaller: what only meets an edge is not inside."""
    rows = windows.astype(np.float64)
    boxes: NDArray[Any] = shapely.box(rows[:, 2] + 1e-3, rows[:, 0] + 1e-3, rows[:, 3] - 1e-3, rows[:, 1] - 1e-3)
    return boxes


def _box(window: Window) -> Any:
    rows, cols = window
    return shapely.box(cols.start, rows.start, cols.stop, rows.stop)


def _burn(geometries: NDArray[Any], values: NDArray[np.integer], window: Window) -> NDArray[np.int32]:
    """Draw polygons in order; a pixel belongs to a polygon if its centre does."""
    rows, cols = window
    size = (rows.stop - rows.start, cols.stop - cols.start)
    if not len(geometries):
        return np.zeros(size, dtype=np.int32)
    pairs = zip(geometries, values.tolist(), strict=True)
    place = Affine.translation(cols.start, rows.start)
    drawn = features.rasterize(pairs, out_shape=size, transform=place, fill=0, dtype="int32", all_touched=False)
    return np.asarray(drawn, dtype=np.int32)


def _apart(drawn: NDArray[np.int32], numbers: NDArray[np.integer]) -> NDArray[np.int32]:
    """Give every connected part of these objects a number of its own."""
    top = int(drawn.max(initial=0))
    places = ndimage.find_objects(np.maximum(drawn, 0))
    for number in numbers.tolist():
        place = places[number - 1] if number <= len(places) else None
        if place is None:
            continue
        parts, count = ndimage.label(drawn[place] == number, structure=_CROSS)
        for part in range(2, count + 1):
            top += 1
            drawn[place][parts == part] = top
    return drawn


def _numbered(stored: NDArray[np.int64], kind: LabelKind) -> NDArray[np.int32]:
    """Object numbers as 1..n of a window, or as one class."""
    if kind == "semantic":
        return (stored > 0).astype(np.int32)
    present, compact = np.unique(np.maximum(stored, 0), return_inverse=True)
    return compact.reshape(stored.shape).astype(np.int32) + (0 if present[0] == 0 else 1)
