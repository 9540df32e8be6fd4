"""Which objects of two neighbouring tiles are one.

Only what both windows show is compared. There, each object falls into connected parts (4 neighbours); two parts are
the same thing if each is the other's best match and they share more than half of the smaller one; two objects are one
if any of their parts are the same thing and their classes agree. Looking at parts rather than at whole objects keeps
this exact for objects that enter the shared strip several times (U shapes, rings, networks of roads): an oracle's
parts are equal in both tiles, while its whole objects need not be. "Each the other's best" keeps a blob that covers two
objects of the other tile from gluing them together.

Source: none published; instance stitching by overlap votes is common, for example in cellpose's block-wise runs.
Deviations: votes are counted by connected part and must be mutual, see above.
"""

import numpy as np
from numpy.typing import NDArray

from samgraft.recipes.mosaic.found import TileObjects
from samgraft.recipes.mosaic.plan import Tile

Labels = NDArray[np.int32]
Pairs = NDArray[np.int64]

LEAST = 0.5
"""Share of the smaller of two parts that both tiles must show."""


def link(a_tile: Tile, a: TileObjects, b_tile: Tile, b: TileObjects) -> Pairs:
    """Local ids (m, 2) of objects of two tiles that are one object, sorted; (0, 2) if the windows do not meet."""
    raise NotImplementedError


def link_strips(a: Labels, a_classes: Labels, b: Labels, b_classes: Labels, least: float = LEAST) -> Pairs:
    """The same from labels (h, w) of both tiles over what they share, and the classes (n,) of all their objects."""
    raise NotImplementedError
