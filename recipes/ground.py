"""Pixel sizes of rasters: what an adapter was trained at, and seeing a new raster at that size.

An adapter knows objects by their size in pixels. Where a raster has other pixels than those of training, it is seen
through a resampled view, and the labels go back to the raster's own pixels.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from samgraft.domains.scene import Scene
from samgraft.domains.segmentation import InstanceRecord, Segmentation
from samgraft.errors import ConfigError

SAME_SIZE = 0.1
"""Pixel sizes that differ by less than this share count as the same; training varies sizes by more."""


def common_gsd(scenes: Sequence[Scene]) -> tuple[float, float] | None:
    """Metres on the ground from row to row and from column to column that all rasters have in common.

    Args:
        scenes: What training sees.

    Returns:
        Medians, or None where a scene is no raster or has no place, or a size differs from the median by a tenth.
    """
    from samgraft.domains.remote_sensing.georeference import ground_step

    return common_step([ground_step(scene.grid) if scene.kind == "raster" else None for scene in scenes])


def common_step(steps: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    """Medians of (row step, column step) in metres; None where one is unknown or a tenth off, or there is none."""
    known = np.array([step for step in steps if step is not None], dtype=np.float64)
    if not len(known) or len(known) < len(steps):
        return None
    rows, cols = np.median(known, axis=0).tolist()
    if np.abs(known / [rows, cols] - 1.0).max() > SAME_SIZE:
        return None
    return round(rows, 6), round(cols, 6)


def at_trained_gsd(scene: Scene, gsd: tuple[float, float] | None) -> Scene:
    """The scene as an adapter wants to see it.

    Args:
        scene: What is to be segmented.
        gsd: From the adapter's header (``InputRecipe.gsd``), or None.

    Returns:
        The scene itself where its pixels have that size within a tenth, where its size is not known, or where the
        header does not say; else a ``ResampledScene`` on the same ground.
    """
    if gsd is None or scene.kind != "raster":
        return scene
    from samgraft.domains.remote_sensing.geo_scene import GeoScene
    from samgraft.domains.remote_sensing.georeference import ground_step
    from samgraft.domains.remote_sensing.resample import at_gsd

    if not isinstance(scene, GeoScene) or ground_step(scene.grid) is None:
        return scene
    return at_gsd(scene, gsd, tolerance=SAME_SIZE)


def require_trained_gsd(scene: Scene, gsd: tuple[float, float] | None) -> None:
    """Refuse a raster whose pixels have another size than those of training, where results lie on its own pixels.

    Args:
        scene: What is to be segmented.
        gsd: From the adapter's header, or None.

    Raises:
        ConfigError: the sizes differ by more than a tenth.
    """
    if at_trained_gsd(scene, gsd) is scene or gsd is None:
        return
    from samgraft.domains.remote_sensing.georeference import ground_step

    own = ground_step(scene.grid) or gsd
    wanted, kept = (f"{float(np.mean(size)):.6g}" for size in (gsd, own))
    raise ConfigError(
        f"{scene.path.name} has pixels of {kept} m, and the adapter was trained on pixels of {wanted} m; it knows "
        f"objects by their size in pixels. Add --gsd {wanted} to see the raster at that size (labels come back on "
        f"its own pixels), or --gsd {kept} to use the raster as it is"
    )


def on_source(result: Segmentation, view: Scene) -> Segmentation:
    """Bring a result that was found on a resampled view back to the pixels of the raster.

    What has no data there is 0, and an object that covers no centre of a pixel with data is lost.

    Args:
        result: On the grid of ``view``.
        view: What :func:`at_trained_gsd` gave; any other scene gives the result as it is.
    """
    from samgraft.domains.remote_sensing.resample import ResampledScene

    if not isinstance(view, ResampledScene):
        return result
    labels = view.to_source(result.labels) * view.source.valid()
    rows, cols = view.grid.spacing
    meta = {**result.meta, "seen_at": f"{view.grid.shape[0]} x {view.grid.shape[1]} pixels of {rows:.6g} x {cols:.6g}"}
    places = ndimage.find_objects(labels) if result.instances else []
    records: list[InstanceRecord] = []
    for record in result.instances:
        place = places[record.id - 1] if record.id <= len(places) else None
        if place is not None:
            y, x = place
            records.append(replace(record, box=(float(x.start), float(y.start), float(x.stop - 1), float(y.stop - 1))))
    return replace(result, labels=labels, grid=view.source.grid, instances=tuple(records), meta=meta)
