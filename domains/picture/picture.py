"""Pictures (PNG, JPEG, plain TIFF, BMP): arrays (C, H, W) without a world, read by Pillow.

World "pixel": the affine maps (row, col) to (x, y) = (col, row). The pixel order of the file is kept, even if EXIF asks
a viewer to turn it, since masks must fit the file. 8 and 16 bit, gray, RGB, alpha (seen by ``valid``), palettes.
"""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from samgraft.domains.atomic import atomic_path, full_suffix
from samgraft.domains.scene import Array, NanPolicy, Scene, Window, as_labels, dtype_range, guard_finite
from samgraft.errors import GeometryError, InputError
from samgraft.grid import Grid

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")

PIXEL_AFFINE = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""(row, col) -> (x, y)."""

_GRAY = {"1": "uint8", "L": "uint8", "LA": "uint8", "I": "int32", "F": "float32",
         "I;16": "uint16", "I;16L": "uint16", "I;16B": "uint16", "I;16N": "uint16"}  # fmt: skip
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr", "LAB", "HSV")
_EXIF_ORIENTATION = 274


class PictureScene(Scene):
    """A picture file; size and mode are read on construction, pixels on the first ``read``."""

    def __init__(self, path: Path, *, frame: int | None = None, nan: NanPolicy = "raise") -> None:
        """Read the header.

        Args:
            path: picture file.
            frame: page of a multi-page TIFF or animation; needed if there are several.
            nan: for float TIFF: "raise", or "fill" with 0.

        Raises:
            InputError: missing, damaged or too large file, several pages without ``frame``, unknown mode.
        """
        with _opened(path, frame) as image:
            mode, size = image.mode, image.size
            turned = int(image.getexif().get(_EXIF_ORIENTATION, 1)) if path.suffix.lower() in (".jpg", ".jpeg") else 1
        if mode not in _GRAY and mode not in _COLOUR:
            raise InputError(f"{path}: pixel mode {mode} is not supported; convert it to gray or RGB")
        self._mode, self._frame = mode, frame
        self._nan: NanPolicy = nan
        self._cache: Array | None = None
        self._alpha: NDArray[np.bool_] | None = None
        gray = mode in _GRAY or mode == "La"
        dtype = np.dtype(_GRAY.get(mode, "uint8"))
        super().__init__(
            path=path,
            kind="picture",
            grid=Grid(shape=(size[1], size[0]), affine=PIXEL_AFFINE, world="pixel"),
            channels=1 if gray else 3,
            dtype=dtype,
            format=_format_name(path),
            value_range=(0.0, 1.0) if mode == "1" else dtype_range(dtype),
            channel_names=("gray",) if gray else ("red", "green", "blue"),
            notes=(f"EXIF orientation {turned} not applied",) if turned > 1 else (),
        )

    @property
    def is_loaded(self) -> bool:
        """True after the first read."""
        return self._cache is not None

    def read_labels(self) -> Array:
        """Labels (H, W): palette indices of a palette file, else the gray values.

        Raises:
            InputError: colour file, fractions or negative values.
        """
        if self._mode in ("P", "PA"):
            with _opened(self.path, self._frame) as image:
                indices = _decode(image, self.path)
                return as_labels(np.asarray(indices if self._mode == "P" else indices.getchannel(0)), str(self.path))
        return super().read_labels()

    def _read(self, window: Window, channels: tuple[int, ...]) -> Array:
        """Window of the decoded picture."""
        pixels, _ = self._pixels()
        part = np.ascontiguousarray(pixels[list(channels), window[0], window[1]])
        return guard_finite(part, nan=self._nan, where=str(self.path), grid=self.grid, window=window)

    def _valid(self, window: Window) -> NDArray[np.bool_]:
        """False where alpha is 0, and at NaN of a float picture opened with ``nan="fill"``."""
        if self._nan == "fill" and self.dtype.kind == "f":
            return np.asarray(np.isfinite(self._pixels()[0][:, window[0], window[1]]).all(axis=0), dtype=np.bool_)
        alpha = self._pixels()[1] if self._has_alpha() else None
        return super()._valid(window) if alpha is None else alpha[window]

    def _has_alpha(self) -> bool:
        """True if some pixels may be transparent; palettes tell only when opened."""
        return self._mode in ("RGBA", "RGBa", "LA", "La", "PA", "P", "RGB", "L")

    def _pixels(self) -> tuple[Array, NDArray[np.bool_] | None]:
        """Decode once: (C, H, W) and, if the file has transparency, where it is not fully transparent."""
        if self._cache is None:
            with _opened(self.path, self._frame) as image:
                decoded = _decode(image, self.path)
                alpha = None
                if "A" in decoded.getbands() or "a" in decoded.getbands() or "transparency" in decoded.info:
                    alpha = np.asarray(decoded.convert("RGBA").getchannel("A")) > 0
                if self._mode in ("LA", "La"):
                    decoded = decoded.getchannel(0)
                elif self.channels == 3:
                    decoded = decoded.convert("RGB")
                pixels = np.asarray(decoded)
            planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
            self._cache, self._alpha = planes.astype(self.dtype), alpha
        return self._cache, self._alpha


@contextmanager
def _opened(path: Path, frame: int | None) -> Iterator[Image.Image]:
    """Open a file at the chosen page; Pillow's errors and its bomb warning become InputErrors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: no picture that can be read; damaged, or another format") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: {error}; convert it to a tiled GeoTIFF, which is read by window") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: cannot be opened: {error}") from error
    with image:
        frames = int(getattr(image, "n_frames", 1))
        if frames > 1 and frame is None:
            raise InputError(f"{path}: has {frames} pages; choose one with frame=0 to {frames - 1}")
        if frame is not None and not 0 <= frame < frames:
            raise InputError(f"{path}: frame={frame} asked; the file has {frames} (0 to {frames - 1})")
        if frame:
            image.seek(frame)
        yield image


def _decode(image: Image.Image, path: Path) -> Image.Image:
    """Force the pixels to be read; a file that breaks off is named with its size."""
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        size = path.stat().st_size
        raise InputError(f"{path}: truncated or damaged ({size} bytes on disk): {error}; copy it again") from error
    return image


def _format_name(path: Path) -> str:
    """Format in words from the suffix."""
    return {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}.get(
        path.suffix.lower(), path.suffix[1:].upper()
    )


def write_png(path: Path | str, labels: Array, grid: Grid | None = None) -> None:
    """Write a label picture: uint8, or uint16 if a label is above 255.

    Args:
        path: .png, written atomically.
        labels: whole numbers 0 to 65535, (H, W).
        grid: if given, it must be a picture's (2D, world "pixel"); PNG can keep nothing else.

    Raises:
        GeometryError: not 2D, or a grid with a world.
        InputError: no labels, or labels above 65535.
        OutputError: the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    array: NDArray[Any] = np.asarray(labels)
    if full_suffix(path) != ".png":
        raise GeometryError(f"cannot write {path}: expected a name that ends in .png")
    if array.ndim != 2 or (grid is not None and (grid.world != "pixel" or grid.shape != array.shape)):
        place = "" if grid is None else f" on a {grid.ndim}D grid {grid.shape} in world {grid.world[:40]!r}"
        raise GeometryError(
            f"cannot write {path}: PNG holds (H, W) without a place in the world; got {array.shape}{place}; "
            "write .nii.gz for volumes, .tif for rasters"
        )
    array = as_labels(array, str(path))
    if array.dtype.itemsize > 2:
        raise InputError(f"cannot write {path}: largest label {int(array.max())}; PNG holds up to 65535; write .tif")
    with atomic_path(path) as temp:
        Image.fromarray(array).save(temp, format="PNG")
