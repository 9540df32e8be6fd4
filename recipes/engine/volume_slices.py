"""A volume on disk and a backbone as the slices that a propagation walks through.

Every ask is one look of ``prompted.py``: square crops around the object at network size, averaged. A mirrored volume
shows every slice flipped and turns prompts and answers accordingly, for test-time flips.
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from samgraft.domains.scene import Scene
from samgraft.recipes.engine.planes import Look, Plane, plane_shape
from samgraft.recipes.engine.prompted import AskSettings, ask_objects
from samgraft.recipes.engine.windows import to_network, window_around
from samgraft.recipes.prompt_files import mask_prompt
from samgraft.recipes.prompting import ObjectPrompt
from samgraft.volumetric.propagation.slices import Box, Float, RegionFeatures, SliceAnswer, SlicePrompt

KEPT = 8
"""Slices whose pixels stay in memory."""
FEATURE_CONTEXT = 2.0
"""Side of the region whose features are remembered, over the longest side of the object's box."""
FLIPS = {"none": (False, False), "rows": (True, False), "cols": (False, True), "both": (True, True)}
"""Name -> whether rows and columns of every slice are turned round."""


class MirroredPlane(Plane):
    """A slice with rows, columns or both turned round."""

    mirror: tuple[bool, bool] = (False, False)

    def read(self, rows: slice, cols: slice) -> NDArray[np.float32]:
        """(3, h, w) of a part of the mirrored slice."""
        whole = super().read(slice(0, self.shape[0]), slice(0, self.shape[1]))
        axes = tuple(axis + 1 for axis, turned in enumerate(self.mirror) if turned)
        return np.ascontiguousarray(np.flip(whole, axes)[:, rows, cols])


@dataclass(eq=False)
class SceneSlices:
    """One volume, cut along one axis; implements ``samgraft.volumetric.propagation.Slices``."""

    scene: Scene
    look: Look
    axis: int
    settings: AskSettings
    mirror: tuple[bool, bool] = (False, False)
    """Rows and columns of every slice are turned round before the network sees them."""

    def __post_init__(self) -> None:
        """Keep nothing yet."""
        self._planes: OrderedDict[int, MirroredPlane] = OrderedDict()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W), the cut axis first."""
        return (self.scene.grid.shape[self.axis], *plane_shape(self.scene.grid.shape, self.axis))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Of the same axes, mm."""
        rows, cols = (v for i, v in enumerate(self.scene.grid.spacing) if i != self.axis)
        return self.scene.grid.spacing[self.axis], rows, cols

    def ask(self, index: int, prompt: SlicePrompt) -> SliceAnswer:
        """What the network answers; always in original, unmirrored pixels."""
        height, width = self.shape[1:]
        given = mirrored_prompt(prompt, (height, width), self.mirror)
        (found,) = ask_objects(self._plane(index), [as_object(given)], self.settings)
        rows, cols = found.place
        logits = found.logits.numpy()
        top = height - rows.stop if self.mirror[0] else rows.start
        left = width - cols.stop if self.mirror[1] else cols.start
        turned = np.ascontiguousarray(np.flip(logits, _axes(self.mirror)), dtype=np.float32)
        return SliceAnswer(shape=(height, width), top=top, left=left, logits=turned, iou=found.iou)

    def picture(self, index: int) -> Float:
        """(H, W) in [0, 1]: mean of the channels, unmirrored."""
        mean = self._plane(index).whole().numpy().mean(axis=0, dtype=np.float32)
        turned: Float = np.flip(mean, _axes(self.mirror))
        return turned

    def features(self, index: int, around: Box) -> RegionFeatures:
        """Features of a square region around a box, of the unmirrored slice."""
        shape = (self.shape[1], self.shape[2])
        backbone, size = self.settings.backbone, self.settings.size
        window = window_around(around, shape, FEATURE_CONTEXT)
        plane = (
            self._plane(index)
            if self.mirror == (False, False)
            else Plane(self.scene, self.look, axis=self.axis, index=index)
        )
        with torch.no_grad():
            image = to_network(plane.crop(window), size)[None].to(next(backbone.parameters()).device)
            neck = backbone.encode(image).neck[0].float().cpu()
        return RegionFeatures(top=window.top, left=window.left, height=window.side, width=window.side, neck=neck)

    def _plane(self, index: int) -> MirroredPlane:
        """Pixels of a slice; those of the last few are kept."""
        if index not in self._planes:
            plane = MirroredPlane(self.scene, self.look, axis=self.axis, index=index)
            plane.mirror = self.mirror
            self._planes[index] = plane
        self._planes.move_to_end(index)
        while len(self._planes) > KEPT:
            self._planes.popitem(last=False)
        return self._planes[index]


def _axes(mirror: tuple[bool, bool]) -> tuple[int, ...]:
    """Axes of (H, W) that are turned round."""
    return tuple(axis for axis, turned in enumerate(mirror) if turned)


def mirrored_prompt(prompt: SlicePrompt, shape: tuple[int, int], mirror: tuple[bool, bool]) -> SlicePrompt:
    """The same prompt on a slice (H, W) with rows, columns or both turned round."""
    height, width = shape
    down, across = mirror

    def row(value: float) -> float:
        return height - 1 - value if down else value

    def col(value: float) -> float:
        return width - 1 - value if across else value

    box = prompt.box
    if box is not None:
        xs, ys = sorted((col(box[0]), col(box[2]))), sorted((row(box[1]), row(box[3])))
        box = (xs[0], ys[0], xs[1], ys[1])
    return SlicePrompt(
        box=box,
        points=tuple((col(x), row(y), label) for x, y, label in prompt.points),
        mask=None if prompt.mask is None else np.flip(prompt.mask, _axes(mirror)),
        tight=prompt.tight,
    )


def as_object(prompt: SlicePrompt) -> ObjectPrompt:
    """A prompt on a slice as the engine takes it."""
    masked = prompt.mask is not None and prompt.mask.any()
    return ObjectPrompt(
        box=prompt.box,
        points=prompt.points,
        mask=mask_prompt(prompt.mask) if masked and prompt.mask is not None else None,
        tight=prompt.tight,
    )


def as_slice(prompt: ObjectPrompt, shape: tuple[int, int]) -> SlicePrompt:
    """A prompt of a user on a slice (H, W) as a propagation takes it."""
    mask = None
    if prompt.mask is not None:
        mask = np.zeros(shape, dtype=np.bool_)
        height, width = prompt.mask.inside.shape
        rows = slice(prompt.mask.top, prompt.mask.top + height)
        mask[rows, prompt.mask.left : prompt.mask.left + width] = prompt.mask.inside
    return SlicePrompt(box=prompt.box, points=prompt.points, mask=mask, tight=prompt.tight and prompt.box is not None)
