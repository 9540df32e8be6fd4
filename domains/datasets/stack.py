"""Several files of one case as the channels of one scene."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.scene import Array, Scene, Window
from samgraft.errors import InputError


class StackedScene(Scene):
    """Scenes on the same grid, their channels one after the other."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        """Compare the headers.

        Args:
            scenes: At least one; the first one gives path, grid and format.

        Raises:
            InputError: no scene.
            GeometryError: the grids differ.
        """
        if not scenes:
            raise InputError("no scene to stack; give at least one")
        first = scenes[0]
        for other in scenes[1:]:
            first.grid.require_equal(other.grid, f"channel {other.path.name} beside {first.path.name}")
        ranges = {scene.value_range for scene in scenes}
        dtypes: list[np.dtype[Any]] = [scene.dtype for scene in scenes]
        super().__init__(
            path=first.path,
            kind=first.kind,
            grid=first.grid,
            channels=sum(scene.channels for scene in scenes),
            dtype=np.result_type(*dtypes),
            format=first.format,
            modality=first.modality,
            value_range=ranges.pop() if len(ranges) == 1 else None,
            channel_names=[
                scene.path.name if scene.channels == 1 else f"{scene.path.name} {name}"
                for scene in scenes
                for name in scene.channel_names
            ],
            frame_known=all(scene.frame_known for scene in scenes),
        )
        self.scenes = tuple(scenes)
        """The scenes, in channel order."""

    def _read(self, window: Window, channels: tuple[int, ...]) -> Array:
        """Read the asked channels, each from its scene."""
        owner = [(scene, local) for scene in self.scenes for local in range(scene.channels)]
        parts = [owner[c][0].read(window, [owner[c][1]]) for c in channels]
        return np.concatenate(parts, axis=0).astype(self.dtype, copy=False)

    def _valid(self, window: Window) -> NDArray[np.bool_]:
        """Valid where every scene is."""
        valid = self.scenes[0].valid(window)
        for scene in self.scenes[1:]:
            valid = valid & scene.valid(window)
        return valid
