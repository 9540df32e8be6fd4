"""Pictures that Pillow cannot hold: 16-bit colour PNG, and TIFF with 16-bit colour, floats in colour or many channels.

Takes a file without a world, gives a Scene like PictureScene; pixels come by window through GDAL (rasterio).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from rasterio.enums import ColorInterp

from samgraft.domains.picture.picture import PIXEL_AFFINE
from samgraft.domains.scene import Array, NanPolicy, Scene, Window, dtype_range, guard_finite
from samgraft.errors import InputError
from samgraft.grid import Grid

_PNG_MARK = b"\x89PNG\r\n\x1a\n"
_BITS_PER_SAMPLE = 258
_COLOUR_NAMES = ("red", "green", "blue")


class WidePictureScene(Scene):
    """A picture with more than 8 bits of colour, or more channels than RGB."""

    def __init__(self, path: Path, *, nan: NanPolicy = "raise") -> None:
        """Read the header.

        Args:
            path: PNG or TIFF.
            nan: for floats: "raise", or "fill" with 0.

        Raises:
            InputError: damaged, several pages, or complex numbers.
        """
        with _opened(path) as source:
            if source.count == 0 or len(source.subdatasets) > 1:
                raise InputError(f"{path}: has {len(source.subdatasets)} pages of wide pixels; split them into files")
            interpretation = source.colorinterp
            dtype = np.dtype(source.dtypes[0])
            height, width = int(source.height), int(source.width)
        if dtype.kind not in "iuf":
            raise InputError(f"{path}: pixels are {dtype}; expected real numbers")
        self._bands = [i for i, kind in enumerate(interpretation, 1) if kind != ColorInterp.alpha]
        self._alpha = next((i for i, kind in enumerate(interpretation, 1) if kind == ColorInterp.alpha), None)
        self._nan: NanPolicy = nan
        super().__init__(
            path=path,
            kind="picture",
            grid=Grid(shape=(height, width), affine=PIXEL_AFFINE, world="pixel"),
            channels=len(self._bands),
            dtype=dtype,
            format="PNG" if path.suffix.lower() == ".png" else "TIFF",
            value_range=dtype_range(dtype),
            channel_names=_COLOUR_NAMES if len(self._bands) == len(_COLOUR_NAMES) else (),
        )

    def _read(self, window: Window, channels: tuple[int, ...]) -> Array:
        """A window of some bands."""
        pixels = self._raw([self._bands[c] for c in channels], window)
        return guard_finite(pixels, nan=self._nan, where=str(self.path), grid=self.grid, window=window)

    def _valid(self, window: Window) -> NDArray[np.bool_]:
        """False where alpha is 0, and at NaN with ``nan="fill"``."""
        valid = super()._valid(window)
        if self._alpha is not None:
            valid = valid & (self._raw([self._alpha], window)[0] > 0)
        if self._nan == "fill" and self.dtype.kind == "f":
            valid = valid & np.isfinite(self._raw(self._bands, window)).all(axis=0)
        return valid

    def _raw(self, bands: list[int], window: Window) -> Array:
        """Bands as stored."""
        with _opened(self.path) as source:
            try:
                part = ((window[0].start, window[0].stop), (window[1].start, window[1].stop))
                return np.asarray(source.read(bands, window=part))
            except rasterio.errors.RasterioError as error:
                size = self.path.stat().st_size
                raise InputError(f"{self.path}: truncated or damaged ({size} bytes on disk): {error}") from error


def is_wide(path: Path) -> bool:
    """True if Pillow would cut or refuse the pixels, while GDAL can read them."""
    with path.open("rb") as file:
        head = file.read(26)
    if head[:8] == _PNG_MARK:
        return len(head) == 26 and head[24] == 16 and head[25] != 0
    if head[:2] not in (b"II", b"MM"):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
                return len(bits) > 1 and max(bits) > 8
    except UnidentifiedImageError:
        pass
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        return False
    try:
        with _opened(path):
            return True
    except InputError:
        return False


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open with GDAL, quietly: a picture has no georeference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            source = rasterio.open(path)
        except rasterio.errors.RasterioError as error:
            raise InputError(f"{path}: no picture that can be read: {error}") from error
        with source:
            yield source
