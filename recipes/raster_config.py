"""Settings of training data that only rasters larger than memory, and data sets of samples, have.

``samgraft.recipes.config.DataConfig`` takes them over, so that they are ``data.rasters``, ``data.aoi`` and so on. Only
the standard library is imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from samgraft.errors import ConfigError

READING = ("gsd", "crs", "nodata", "resampling", "rpc_height", "dtypes", "magnitude", "sensor")
"""Options of ``samgraft.open`` that ``data.reading`` may have."""


@dataclass(frozen=True, kw_only=True)
class RasterFields:
    """Fields of ``DataConfig`` for the layouts "mosaic" and "samples"."""

    rasters: tuple[str, ...] | str = ()
    """mosaic: files of one mosaic, below ``path`` if that is a folder; ``*`` is allowed. Empty takes ``path`` itself:
    a file, or all rasters of the folder."""
    reading: dict[str, Any] = field(default_factory=dict)
    """mosaic: options of ``samgraft.open``: gsd, crs, nodata, resampling, rpc_height, dtypes, magnitude, sensor."""
    band_names: tuple[str, ...] | None = None
    """mosaic: one or three bands by name, shown as red, green, blue; instead of ``bands``."""
    label_layer: str | None = None
    """mosaic: layer of the label file, where it has several."""
    label_classes: tuple[str, ...] | None = None
    """mosaic: classes of the label file that are learned; others are background. None takes ``task.class_names`` for
    class maps, and all for objects, which are then one class."""
    aoi: str | None = None
    """mosaic: polygons; windows and labels outside of them do not count."""
    labelled_area: str | None = None
    """mosaic: where everything was labelled: polygons, or a raster that is not 0 there. Elsewhere a pixel without a
    label is unknown, and not background. None: the whole raster was labelled."""
    val_area: str | None = None
    """mosaic: polygons whose blocks validate; None draws blocks."""
    point_m: float | None = None
    """mosaic: radius in metres of what a point stands for, and half the width of a line."""
    boxes_as: Literal["box", "ellipse"] = "box"
    """mosaic: "ellipse" draws what fills the box around every object, for boxes around round things."""
    least_visible: float = 0.1
    """mosaic, instance: an object of which a window shows a smaller share is unknown there."""
    block_m: float | None = None
    """mosaic: side in metres of the blocks that train or validate; None takes four windows, or a third of a small
    raster's longer side."""
    buffer_m: float | None = None
    """mosaic: metres between a block that validates and the nearest pixel that trains; None takes one window, which is
    the least."""
    val_share: float = 0.2
    """mosaic: share of the blocks that validate."""
    val_blocks: int = 24
    """mosaic: most blocks that validate; the others train."""
    rates: dict[str, float] = field(default_factory=dict)
    """mosaic: class -> share of all draws that come from windows with it. The rest of ``foreground`` comes from windows
    with anything, what is left from windows with nothing."""
    jitter: bool = True
    """mosaic: move every drawn window by up to half the distance to the next. Set it to false where the whole encoder
    is frozen, so that features of windows can be kept."""
    fixed_stretch: bool = False
    """mosaic: other rasters are shown with the values of this one, instead of percentiles of their own."""
    workers: int = 0
    """mosaic: processes that read windows ahead; 0 reads them in the training process."""
    dataset: dict[str, Any] = field(default_factory=dict)
    """samples: {class_path, init_args} of a torchgeo data set, or of any with samples like its own."""
    val_dataset: dict[str, Any] = field(default_factory=dict)
    """samples: the same for validation; empty holds back a fifth of ``dataset``."""
    sampler: dict[str, Any] = field(default_factory=dict)
    """samples: {class_path, init_args} of the sampler of a data set that is asked by place; it is made with it."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, low in (("point_m", 0.0), ("block_m", 0.0), ("buffer_m", 0.0)):
            value = getattr(self, name)
            if value is not None and not value > low:
                raise ConfigError(f"data.{name} is {value}; expected metres, above 0")
        for name in ("least_visible", "val_share"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise ConfigError(f"data.{name} is {value}; expected 0 up to, not including, 1")
        if self.val_blocks < 1 or self.workers < 0:
            raise ConfigError(
                f"data.val_blocks is {self.val_blocks}, data.workers is {self.workers}; expected at least 1 and 0"
            )
        if self.boxes_as not in ("box", "ellipse"):
            raise ConfigError(f"data.boxes_as is {self.boxes_as!r}; expected box or ellipse")
        _check_rates(self.rates)
        unknown = sorted(set(self.reading) - set(READING))
        if unknown:
            raise ConfigError(f"data.reading has {', '.join(unknown)}; expected some of {', '.join(READING)}")


def _check_rates(rates: Mapping[str, float]) -> None:
    wrong = [name for name, rate in rates.items() if not 0.0 < rate <= 1.0]
    if wrong or sum(rates.values()) > 1.0 + 1e-9:
        raise ConfigError(
            f"data.rates is {dict(rates)}; expected shares of all draws, each above 0, together at most 1"
        )
