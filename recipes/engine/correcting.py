"""A session with one object of a volume: prompts first, then clicks that correct the mask, and undo.

For viewers and scripts in which a person looks at the mask between clicks. ``segment_volume`` does a whole list of
objects at once.
"""

from collections.abc import Sequence
from dataclasses import replace

from samgraft.adapters.backbones.base import Promptable
from samgraft.domains.scene import Scene
from samgraft.errors import PromptError
from samgraft.recipes.engine.focus import CONTEXTS
from samgraft.recipes.engine.planes import look_at
from samgraft.recipes.engine.propagated import (
    VolumeOptions,
    VolumeResult,
    as_object,
    asking,
    painted,
    said_on_slices,
    within_box,
)
from samgraft.recipes.engine.volume_slices import SceneSlices
from samgraft.recipes.prompting import ObjectPrompts, UserPrompts
from samgraft.recipes.volume_prompts import VolumePrompts, as_volume_prompts
from samgraft.volumetric.clicks import Session
from samgraft.volumetric.propagation.config import PropagationConfig
from samgraft.volumetric.shape_rules import ShapeRules


class VolumeSession:
    """One object of a volume under correction.

    A click changes its slice and what the change reaches on the slices around it, and nothing else (``pointed_at`` in
    ``samgraft.volumetric.clicks``).
    """

    def __init__(
        self,
        scene: Scene,
        backbone: Promptable,
        prompts: UserPrompts | ObjectPrompts | VolumePrompts,
        *,
        propagation: PropagationConfig | None = None,
        rules: ShapeRules | None = None,
        size: int | None = None,
        context: float | Sequence[float] = CONTEXTS,
        fit: bool = True,
        bands: Sequence[int] | None = None,
    ) -> None:
        """Propagate the first prompts.

        Args:
            scene: A volume.
            backbone: Any backbone, or one with parts attached that answers prompts.
            prompts: One object, on slices or in 3D. Its points off the object, on slices of which nothing else is said,
                are taken as the first clicks.
            propagation: What is carried, and when it stops.
            rules: Of shape, applied to results; clicks see the mask without them.
            size: Network size; None takes the native one.
            context: Side of the crop over the longest side of a box; several are averaged.
            fit: Boxes on annotated slices are tight: the mask fills its box.
            bands: Channels shown as red, green, blue.

        Raises:
            PromptError: more than one object, a prompt outside the volume, or nothing was found on the annotated
                slices.
        """
        self._scene, self._prompts = scene, as_volume_prompts(prompts, scene.grid)
        self._prompts.check(scene.grid)
        if len(self._prompts) > 1:
            raise PromptError(f"prompts for {len(self._prompts)} objects; a session corrects one, so open one for each")
        (prompt,) = self._prompts.objects
        self.axis = self._prompts.cut_axis(scene.grid)
        self._options = VolumeOptions(propagation=propagation or PropagationConfig(), rules=rules or ShapeRules())
        slices = SceneSlices(scene, look_at(scene, bands), self.axis, asking(backbone, size, context, fit))
        self._session = Session(within_box(slices, prompt), self._options.propagation, prompt.extent)
        said = said_on_slices(prompt, slices)
        self._session.start(said)
        self._past: list[Session] = []
        for index, points in prompt.points_by_slice().items():
            for x, y, label in points if index not in said else ():
                self._session.click((x, y, index, label))

    def click(self, x: float, y: float, index: int, label: int) -> VolumeResult:
        """Correct the mask.

        Args:
            x: Column of the pixel on its slice.
            y: Row.
            index: Slice along ``axis``.
            label: 1: this belongs to the object; 0: it does not.

        Raises:
            PromptError: the click lies outside the volume, the label is another one, or nothing of the object is left
                on any annotated slice; then nothing changes.
        """
        depth, height, width = self._session.slices.shape
        if not (0 <= index < depth and -0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5):
            raise PromptError(
                f"the click ({x:g}, {y:g}) on slice {index} lies outside the volume: x is in 0..{width - 1}, "
                f"y in 0..{height - 1}, slices in 0..{depth - 1}"
            )
        if label not in (0, 1):
            raise PromptError(f"the label of a click is {label!r}; expected 1 (on the object) or 0 (off it)")
        now = replace(self._session, annotated=dict(self._session.annotated), clicks=dict(self._session.clicks))
        now.click((x, y, index, label))
        self._past.append(self._session)
        self._session = now
        return self.result()

    def undo(self) -> VolumeResult:
        """Take the last click back.

        Raises:
            PromptError: there is none.
        """
        if not self._past:
            raise PromptError("there is no click to take back")
        self._session = self._past.pop()
        return self.result()

    def result(self) -> VolumeResult:
        """The mask so far, on the grid of the volume."""
        found = self._session.result
        if found is None:
            raise PromptError("the session was not started")
        one = as_object((found,), self._session.slices.spacing, self._options)
        labels = painted(self._scene, self._prompts, self.axis, (one,), self._options)
        return VolumeResult(segmentation=labels, objects=(one,), axis=self.axis)
