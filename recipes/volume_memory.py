"""What segmenting a volume takes beside the network: the label map, and as much of the volume as has to be held.

Slices along the first axis are read one by one where the file allows it; across it, or from a packed file that is too
large to keep, the whole volume is read at once. The estimate is made from the header, before any voxel is read.
"""

from dataclasses import dataclass

import numpy as np

from samgraft.domains.scene import Scene, label_dtype
from samgraft.errors import ConfigError
from samgraft.recipes.free_memory import free_memory

_AROUND = 25_000_000
"""Bytes that threads and the reader of the format take, whatever the volume."""
_PER_PIXEL = 160
"""Bytes per pixel of the square around a slice: its values, what is shown of it and what comes back, in three threads.

Both measured on int16 volumes of 6 to 157 million voxels (``python -m tests.benchmarks.volume_memory``).
"""


@dataclass(frozen=True, kw_only=True)
class VolumeMemory:
    """Bytes, estimated."""

    labels: int
    """The result."""
    pixels: int
    """Voxels and their validity, held at once at the peak, and what is made of the slices that are on their way."""
    free: int
    """What the machine can give."""
    whole: bool
    """True if the whole volume is read at once."""

    @property
    def total(self) -> int:
        """Labels and voxels together."""
        return self.labels + self.pixels

    def text(self) -> str:
        """One line."""
        how = "read at once" if self.whole else "read slice by slice"
        return (
            f"memory beside the network: {_bytes(self.total)} (labels {_bytes(self.labels)}, "
            f"voxels {_bytes(self.pixels)}, {how}), free: {_bytes(self.free)}"
        )


def volume_memory(scene: Scene, axis: int, *, classes: int = 1) -> VolumeMemory:
    """Estimate what a volume takes.

    Args:
        scene: a volume; only its header is used.
        axis: array axis that is cut into slices.
        classes: largest label of the result.
    """
    voxels = int(np.prod(scene.grid.shape, dtype=np.int64))
    whole = axis != 0 or not scene.cheap_slabs
    labels = voxels * label_dtype(classes).itemsize
    side = max(length for at, length in enumerate(scene.grid.shape) if at != axis)
    pixels = scene.kept_bytes + _AROUND + _PER_PIXEL * side**2
    if whole:  # the label map is filled only after everything was read
        held = scene.nbytes + (voxels if scene.may_hide else 0)
        pixels = max(pixels + held, scene.kept_bytes + scene.reading_bytes - labels)
    return VolumeMemory(labels=labels, pixels=pixels, free=free_memory(), whole=whole)


def require_memory(scene: Scene, axis: int, *, classes: int = 1) -> VolumeMemory:
    """The estimate, if it fits.

    Raises:
        ConfigError: it does not; the message says how much is missing and what needs less.
    """
    need = volume_memory(scene, axis, classes=classes)
    if need.total > need.free:
        less = "unpack the file (.nii, .mha uncompressed) and cut along axis 0, so that slices are read one by one"
        raise ConfigError(
            f"{scene.path}: {scene.grid.shape} voxels do not fit: {need.text()}; "
            + (less if need.whole else "crop the volume, or use a machine with more memory")
        )
    return need


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
