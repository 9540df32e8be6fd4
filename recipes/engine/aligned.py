"""An adapter's header made ready for one scene: aligned to the training images, and at their pixel size in mm."""

from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from pathlib import Path

from samgraft.adapters.backbones.base import BackboneSpec
from samgraft.adapters.bundle import BundleMeta
from samgraft.domains.scene import Scene
from samgraft.domains.shift.alignment import NONE
from samgraft.errors import ConfigError
from samgraft.recipes.alignment import check_name, fit_scene, folder_statistics, plane_spacing, recorded_source
from samgraft.recipes.engine.planes import plane_shape
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.ground import SAME_SIZE, at_trained_gsd
from samgraft.recipes.prompting import coarsest_axis

ADAPTER = "adapter"
"""Word of ``spacing=`` for the pixel size that the adapter was trained at."""


def aligned(
    said: Recorded,
    scene: Scene,
    meta: BundleMeta,
    name: str | None,
    *,
    source: str | PathLike[str] | None = None,
    resampled: bool = True,
) -> Recorded:
    """The header with an alignment for one scene; fitted here, and the same for whatever part of the scene is read.

    Args:
        said: What the header says.
        scene: What will be segmented.
        meta: The header itself, which remembers the training images.
        name: "auto", "none", or one of ``domains.shift.alignment.ALIGNMENTS``; None asks for nothing, no note is left.
        source: Folder of training images (or one image), instead of what the header remembers.
        resampled: Rasters are seen at the pixel size of training, as ``segment_automatic`` does.

    Raises:
        ConfigError: the header remembers nothing and no source is named; a source without an alignment; "fourier" on a
            raster.
        NoMatchError: an unknown name. InputError: "macenko" where one side is not stained.
    """
    if name is None or name == NONE:
        if source is not None:
            raise ConfigError("align_source says what to align with; add align='auto' (--align auto), or leave it out")
        return said if name is None else replace(said, about={**said.about, "align": NONE})
    check_name(name)
    window, axis = said.recipe.window, _axis(said)
    if source is None:
        wanted = recorded_source(meta)
    else:
        wanted = folder_statistics(Path(source), said.look, axis, window=window)
    view = at_trained_gsd(scene, said.recipe.gsd) if resampled else scene
    found = fit_scene(name, view, said.look(view), wanted, axis=axis(view), window=window)
    return replace(said, alignment=found.alignment, about={**said.about, "align": found.words})


def at_trained_spacing(said: Recorded, scene: Scene, spacing: str | None, spec: BackboneSpec) -> Recorded:
    """The header with windows, or a network size, that show a volume at the millimetres per network pixel of training.

    The network knows objects by their size in its own pixels. An adapter for whole slices sees a larger field of view
    through windows as wide as the slices of training, and a smaller one as a smaller network input.

    Args:
        said: What the header says.
        scene: What will be segmented.
        spacing: "adapter", or None for nothing.
        spec: Of the backbone; inputs are a multiple of its patch.

    Raises:
        ConfigError: another word, no volume, or a header that does not know the size.
    """
    if spacing is None:
        return said
    wanted, axis = said.recipe.spacing, _axis(said)(scene)
    there = plane_spacing(scene, axis) if scene.kind == "volume" else None
    if spacing != ADAPTER or there is None:
        raise ConfigError(
            f"spacing {spacing!r} on {scene.path.name}: expected '{ADAPTER}', on a volume in mm; rasters are seen at "
            "the pixel size of training by themselves (see --gsd), and pictures have no known pixel size"
        )
    if wanted is None:
        raise ConfigError(
            "the adapter's header does not say how many millimetres a network pixel had in training; train it again "
            "on volumes with this samgraft, or leave spacing out"
        )
    shape = plane_shape(scene.grid.shape, axis)
    now = said.scale(shape) * sum(there) / 2
    if abs(now / wanted - 1) <= SAME_SIZE:
        return said
    side = wanted * said.size / (sum(there) / 2)  # native pixels that the network should see at once
    words = {"spacing": f"seen at {wanted:.4g} mm per network pixel, as in training, instead of {now:.4g} mm"}
    if side >= max(shape):
        size = spec.patch_size * max(2, round(said.size * max(shape) / side / spec.patch_size))
        recipe = replace(said.recipe, window=None, size=min(said.size, size))
    else:
        recipe = replace(said.recipe, window=max(16, round(side)))
    return replace(said, recipe=recipe, about={**said.about, **words})


def _axis(said: Recorded) -> Callable[[Scene], int | None]:
    """Which axis of a scene is cut."""

    def axis(scene: Scene) -> int | None:
        if scene.grid.ndim != 3:
            return None
        return coarsest_axis(scene.grid) if said.recipe.slice_axis is None else said.recipe.slice_axis

    return axis
