"""Statistics of a set of images as the network sees them: small enough for an adapter's header, enough to align with.

Takes (3, h, w) float32 images in [0, 1], one at a time; gives one :class:`ImageStatistics`. Every image counts the
same, whatever its size. Pixels with NaN in any channel are missing and left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samgraft.domains.shift.spectra import RINGS, low_frequencies, radial_spectrum
from samgraft.domains.shift.stain_basis import StainBasis, stain_basis
from samgraft.errors import CheckpointError, InputError, ShapeError

LEVELS = 256
"""Bins of a histogram; bin i holds values from i / 256 up to, not including, (i + 1) / 256; 1 is in the last."""
AMPLITUDE_SIDE = 15
"""Frequencies kept per axis, -7 to 7 cycles per image."""
_COLOUR_PIXELS = 65_536
"""Pixels per image, about, that go through the CIELAB conversion."""
_STAIN_PIXELS = 4_096
"""Pixels per image, about, that stain vectors are estimated from."""
_ROUNDING = 1e-6
_VERSION = 1
_NO_ARRAYS = ("stain", "count", "spacing", "shape")

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageStatistics:
    """Statistics of a set of images, each (3, h, w) in [0, 1] as the network sees it.

    Raises:
        ShapeError: an array has another shape, or is not finite.
    """

    histogram: Floats
    """(3, 256) shares of pixels per channel; each row sums to 1."""
    mean: Floats
    """(3,) per channel, in [0, 1]."""
    std: Floats
    """(3,) per channel, over all pixels of all images."""
    lab_mean: Floats
    """(3,) in CIELAB (sRGB, D65): lightness 0 to 100, then a and b."""
    lab_std: Floats
    """(3,) in CIELAB."""
    stain: StainBasis | None
    """Macenko's two stains; None where the images are not of stained tissue in bright field."""
    amplitude: Floats
    """(3, 15, 15) mean amplitude of the lowest frequencies of the image resized to 256 x 256; the constant (DC) is in
    the middle and equals the mean (the transform is divided by the number of pixels)."""
    spectrum: Floats
    """(32,) radial power spectrum of the gray image, 0 to 0.5 cycles per pixel in equal rings: mean power of a ring,
    scaled to sum 1. All zero where every image is constant."""
    count: int
    """Images that were measured."""
    spacing: tuple[float, float] | None
    """Median pixel size, (row, column), in mm or metres; None where no file says it."""
    shape: tuple[float, float] | None = None
    """Median (height, width) in pixels; None where it was not measured."""

    def __post_init__(self) -> None:
        """Check shapes and values."""
        shapes = {
            "histogram": (3, LEVELS),
            "mean": (3,),
            "std": (3,),
            "lab_mean": (3,),
            "lab_std": (3,),
            "amplitude": (3, AMPLITUDE_SIDE, AMPLITUDE_SIDE),
            "spectrum": (RINGS,),
        }
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or not np.isfinite(array).all():
                raise ShapeError(
                    f"{name} is {array.shape}, finite: {np.isfinite(array).all()}; expected finite {shape}"
                )
        if not np.allclose(self.histogram.sum(axis=1), 1, atol=1e-6) or (self.histogram < 0).any():
            raise ShapeError(f"histogram rows sum to {self.histogram.sum(axis=1)}; expected shares that sum to 1")
        if self.count < 1:
            raise ShapeError(f"statistics of {self.count} images; expected at least one")

    @property
    def gray(self) -> bool:
        """True when the three channels are the same picture: one channel shown as gray."""
        return bool(np.abs(self.lab_mean[1:]).max() < 0.5 and self.lab_std[1:].max() < 0.5)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, exact to the last bit; about 30 kB as text."""
        plain = {f.name: getattr(self, f.name).tolist() for f in fields(self) if f.name not in _NO_ARRAYS}
        return plain | {
            "version": _VERSION,
            "stain": None if self.stain is None else self.stain.to_json(),
            "count": self.count,
            "spacing": None if self.spacing is None else list(self.spacing),
            "shape": None if self.shape is None else list(self.shape),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ImageStatistics":
        """Inverse of :meth:`to_json`.

        Raises:
            CheckpointError: another version, a missing or unknown key, or values of another shape.
        """
        names = {f.name for f in fields(cls)}
        if values.get("version") != _VERSION or set(values) != names | {"version"}:
            raise CheckpointError(
                f"image statistics of version {values.get('version')!r} with the keys {sorted(map(str, values))}; "
                f"expected version {_VERSION} with {sorted(names)}; write the adapter again with this samgraft"
            )
        try:
            arrays = {n: np.array(values[n], dtype=np.float64) for n in names - set(_NO_ARRAYS)}
            spacing, shape = values["spacing"], values["shape"]
            return cls(
                **arrays,
                stain=None if values["stain"] is None else StainBasis.from_json(values["stain"]),
                count=int(values["count"]),
                spacing=None if spacing is None else (float(spacing[0]), float(spacing[1])),
                shape=None if shape is None else (float(shape[0]), float(shape[1])),
            )
        except (ShapeError, TypeError, ValueError, IndexError, KeyError) as error:
            raise CheckpointError(f"image statistics cannot be read: {error}") from error


class StatisticsSums:
    """Statistics of images that come one at a time; each image adds averages over its own valid pixels."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.count = 0
        self._histogram = np.zeros((3, LEVELS))
        self._amplitude = np.zeros((3, AMPLITUDE_SIDE, AMPLITUDE_SIDE))
        self._spectrum = np.zeros(RINGS)
        self._moments = np.zeros((4, 3))  # mean and mean square of the values, then of CIELAB
        self._pixels: list[NDArray[np.float32]] = []
        self._spacings: list[tuple[float, float]] = []
        self._shapes: list[tuple[float, float]] = []

    def add(self, image: NDArray[np.floating[Any]], spacing: tuple[float, float] | None = None) -> bool:
        """Add one image; False where it has no valid pixel, and is passed over.

        Args:
            image: (3, h, w) in [0, 1], NaN where pixels are missing.
            spacing: Pixel size (row, column) in mm or metres.

        Raises:
            ShapeError: not (3, h, w) of floating point numbers.
            InputError: a value outside [0, 1].
        """
        _check(image)
        valid = np.isfinite(image).all(axis=0)
        values = np.asarray(image[:, valid], dtype=np.float64)  # (3, n)
        if not values.shape[1]:
            return False
        bins = np.clip((values * LEVELS).astype(np.int64), 0, LEVELS - 1)  # 1 belongs to the last
        self._histogram += np.stack([np.bincount(row, minlength=LEVELS) for row in bins]) / values.shape[1]
        colour = _lab(_every(values, _COLOUR_PIXELS))
        self._moments += np.stack([f.mean(axis=1) for v in (values, colour) for f in (v, v**2)])
        filled = np.where(valid, image, values.mean(axis=1)[:, None, None])
        self._amplitude += low_frequencies(filled, AMPLITUDE_SIDE)
        self._spectrum += radial_spectrum(filled.mean(axis=0))
        self._pixels.append(_every(values, _STAIN_PIXELS).T.astype(np.float32))
        self._shapes.append((image.shape[1], image.shape[2]))
        if spacing is not None:
            self._spacings.append(spacing)
        self.count += 1
        return True

    def result(self, *, stained: bool | None = None) -> ImageStatistics:
        """Statistics of the images so far.

        Args:
            stained: As for :func:`image_statistics`.

        Raises:
            InputError: no image had a valid pixel.
        """
        if not self.count:
            raise InputError("no image with a valid pixel was given; expected at least one")
        mean, square, lab_mean, lab_square = self._moments / self.count
        total = float(self._spectrum.sum())
        return ImageStatistics(
            histogram=self._histogram / self.count,
            mean=mean,
            std=np.sqrt(np.maximum(square - mean**2, 0)),
            lab_mean=lab_mean,
            lab_std=np.sqrt(np.maximum(lab_square - lab_mean**2, 0)),
            stain=stain_basis(np.concatenate(self._pixels), stained=stained),
            amplitude=self._amplitude / self.count,
            spectrum=self._spectrum / total if total else self._spectrum,
            count=self.count,
            spacing=median_pair(self._spacings),
            shape=median_pair(self._shapes),
        )


def image_statistics(
    images: Iterable[NDArray[np.floating[Any]]],
    spacings: Iterable[tuple[float, float] | None] | None = None,
    *,
    stained: bool | None = None,
) -> ImageStatistics:
    """Measure a set of images in one pass; one image is held at a time.

    Args:
        images: Each (3, h, w) in [0, 1], sizes may differ; NaN marks missing pixels. An image without any valid pixel
            is passed over.
        spacings: Pixel size (row, column) of each image in mm or metres, None where unknown.
        stained: Whether the images are stained tissue in bright field, so that stains are estimated; None decides from
            the colours (see :func:`samgraft.domains.shift.stain_basis.looks_stained`).

    Raises:
        ShapeError: an image is not (3, h, w).
        InputError: no image has a valid pixel, or a value lies outside [0, 1].
    """
    sums = StatisticsSums()
    pairs = zip(images, repeat(None)) if spacings is None else zip(images, spacings, strict=True)  # noqa: B905
    for image, spacing in pairs:
        sums.add(image, spacing)
    return sums.result(stained=stained)


def median_pair(pairs: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Median of each of the two numbers, or None without any."""
    if not pairs:
        return None
    first, second = np.median(np.array(pairs, dtype=np.float64), axis=0)
    return float(first), float(second)


def _check(image: NDArray[np.floating[Any]]) -> None:
    if image.ndim != 3 or len(image) != 3 or not image.size or image.dtype.kind != "f":
        raise ShapeError(f"image is {image.dtype} {image.shape}; expected floating point (3, h, w) in [0, 1]")
    low, high = np.fmin.reduce(image, axis=None, initial=0), np.fmax.reduce(image, axis=None, initial=0)  # NaN passes
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise InputError(f"image has values from {low:g} to {high:g}; expected [0, 1]: apply its look first")


def _lab(values: Floats) -> Floats:
    """CIELAB of (3, n) sRGB values in [0, 1]."""
    from skimage.color import rgb2lab

    converted: Floats = np.asarray(rgb2lab(values.T[None]), dtype=np.float64)[0].T
    return converted


def _every(values: Floats, limit: int) -> Floats:
    """About ``limit`` evenly spaced columns of (3, n)."""
    return values[:, :: max(1, -(-values.shape[1] // limit))]
