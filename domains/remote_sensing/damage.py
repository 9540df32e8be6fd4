"""Where a raster file is damaged: the first block of a window that cannot be read, and its place on the disk."""

from collections.abc import Iterator, Sequence
from typing import Any

from rasterio.errors import RasterioError
from rasterio.windows import Window as GdalWindow

from samgraft.domains.scene import Window

_MOST_BLOCKS = 10_000


def damage(source: Any, bands: Sequence[int], window: Window) -> str:
    """Name the first unreadable block of a window.

    Args:
        source: Open rasterio data set.
        bands: GDAL band numbers that were read.
        window: Rows and columns that could not be read.

    Returns:
        Text for a message, ending with "; ": the block's rows and columns and, for TIFF files, its byte offset and
        length. Empty if no single block is to blame.
    """
    for band in bands:
        for number, (row, col, block) in enumerate(_blocks(source, band, window)):
            if number >= _MOST_BLOCKS:
                break
            try:
                source.read(band, window=block)
            except (RasterioError, OSError):
                return (
                    f"the block of band {band} at rows {block.row_off} to {block.row_off + block.height}, columns "
                    f"{block.col_off} to {block.col_off + block.width}{_on_disk(source, band, row, col)}; "
                )
    return ""


def _blocks(source: Any, band: int, window: Window) -> Iterator[tuple[int, int, GdalWindow]]:
    """Index and place of every block that a window touches, row by row."""
    height, width = source.block_shapes[band - 1]
    rows, cols = window
    for row in range(rows.start // height, -(-rows.stop // height)):
        for col in range(cols.start // width, -(-cols.stop // width)):
            top, left = row * height, col * width
            yield row, col, GdalWindow(left, top, min(width, source.width - left), min(height, source.height - top))


def _on_disk(source: Any, band: int, row: int, col: int) -> str:
    """Byte offset and length of a block of a TIFF file; empty for other formats."""
    try:
        offset = source.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band)
        size = source.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=band)
    except (AttributeError, RasterioError):
        return ""
    return f", byte {int(offset):,} of the file, {int(size or 0):,} bytes long" if offset else ""
