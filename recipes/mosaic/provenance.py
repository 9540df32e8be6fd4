"""What a mosaic's result was made from, as it is written into every file.

Nothing in it depends on the hour, the machine or the folder, so that equal runs give equal files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from samgraft import __version__
from samgraft.domains.remote_sensing.georeference import crs_of, registered_code, transform_of
from samgraft.grid import Grid
from samgraft.recipes.mosaic.plan import TilePlan


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Everything that decided about the result."""

    source: str
    """Name of the input file, without its folder."""
    grid: Grid
    """Grid of the input, and of the result."""
    model: str = ""
    """Backbone, or what else found the objects."""
    weights_sha256: str = ""
    """Hash of the backbone's weights."""
    adapter: str = ""
    """Name of the adapter file."""
    adapter_sha256: str = ""
    """Hash of the adapter file."""
    bands: Sequence[str] = ()
    """Channels that were looked at, in order."""
    scaling: Mapping[str, object] = field(default_factory=dict)
    """How values became [0, 1]."""
    plan: TilePlan | None = None
    """Tiles of the run."""
    failed_tiles: Sequence[Mapping[str, object]] = ()
    """Tiles that could not be read, with reasons."""
    further: Mapping[str, object] = field(default_factory=dict)
    """Options of the run."""

    def to_dict(self) -> dict[str, object]:
        """JSON types; empty entries are left out."""
        values: dict[str, object] = {
            "samgraft": __version__,
            "source": Path(self.source).name,
            "grid": grid_facts(self.grid),
            "model": self.model,
            "weights_sha256": self.weights_sha256,
            "adapter": self.adapter and Path(self.adapter).name,
            "adapter_sha256": self.adapter_sha256,
            "bands": list(self.bands),
            "scaling": dict(self.scaling),
            "tiles": None if self.plan is None else self.plan.to_dict() | {"digest": self.plan.digest()},
        }
        kept = {name: value for name, value in values.items() if value}
        return kept | {"failed_tiles": [dict(tile) for tile in self.failed_tiles]} | dict(self.further)


def grid_facts(grid: Grid) -> dict[str, object]:
    """A raster's grid as JSON: shape, GDAL's transform (a, b, c, d, e, f), CRS by code or as WKT, nodata."""
    crs = crs_of(grid)
    code = None if crs is None else registered_code(crs)
    nodata = grid.nodata
    return {
        "shape": list(grid.shape),
        "transform": [float(v) for v in transform_of(grid)[:6]],
        "crs": grid.world if code is None else f"EPSG:{code}",
        "nodata": None if nodata is None else "nan" if nodata != nodata else nodata,
    }
