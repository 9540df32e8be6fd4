"""The result of segmenting a scene: a label map on the scene's own Grid, with classes and instances.

``save`` picks the writer by suffix. A combination that would lose the grid is refused, never approximated.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from samgraft.domains.atomic import full_suffix
from samgraft.domains.scene import Array, Scene
from samgraft.errors import ConfigError, GeometryError, ShapeError
from samgraft.grid import Grid

if TYPE_CHECKING:
    from samgraft.domains.medical.dicom_seg_write import SegOptions

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mha", ".nrrd")
RASTER_SUFFIXES = (".tif", ".tiff")
PICTURE_SUFFIXES = (".png",)
VECTOR_SUFFIXES = (".geojson", ".gpkg", ".fgb", ".parquet")
DICOM_SUFFIXES = (".dcm",)
SUFFIXES = VOLUME_SUFFIXES + RASTER_SUFFIXES + PICTURE_SUFFIXES + VECTOR_SUFFIXES + DICOM_SUFFIXES
"""Everything that :meth:`Segmentation.save` writes."""
_SORTED_AT_ONCE = 2**22
"""Labels that are looked through together."""


@dataclass(frozen=True, kw_only=True)
class InstanceRecord:
    """One object of an instance map."""

    id: int
    """Value in the label map, from 1."""
    class_id: int
    """Class label, from 1."""
    score: float
    """Confidence in [0, 1]."""
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1: first and last pixel inside. For volumes, the box in the slice plane."""
    properties: Mapping[str, float] = field(default_factory=dict, hash=False)
    """What else was measured (diameter_m, circular, ...); columns of polygon files."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.id < 1 or self.class_id < 1:
            raise ConfigError(f"instance {self.id} of class {self.class_id}: both start at 1; 0 is background")
        x0, y0, x1, y1 = self.box
        if not (x0 <= x1 and y0 <= y1):
            raise ConfigError(f"instance {self.id} has the box {self.box}; expected x0 <= x1 and y0 <= y1")


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """Labels, where they lie, and what they mean."""

    labels: Array
    """Integers >= 0 on ``grid.shape``; 0 is background."""
    grid: Grid
    """Grid of the scene that was segmented, bit-equal."""
    kind: Literal["semantic", "instance"]
    """Whether a label is a class or one object."""
    classes: Mapping[int, str]
    """Class label -> name; a semantic map holds these labels, an instance record refers to them."""
    instances: tuple[InstanceRecord, ...] = ()
    """One record per object of an instance map; empty for semantic maps."""
    from_ground_truth: bool = False
    """True when prompts came from labels; such results are never averaged with automatic ones."""
    meta: Mapping[str, str] = field(default_factory=dict)
    """Where it comes from: backbone, adapter, versions. Stored in formats that can."""
    source: Scene | None = None
    """The scene that was segmented, where a format must refer to it (DICOM-SEG)."""

    def __post_init__(self) -> None:
        """Check shape, dtype, and that every label has a meaning."""
        if self.labels.shape != self.grid.shape:
            raise ShapeError(f"labels are {self.labels.shape}; the grid is {self.grid.shape}")
        if self.labels.dtype.kind not in "iub":
            raise ShapeError(f"labels have dtype {self.labels.dtype}; expected integers")
        if self.labels.size and int(self.labels.min()) < 0:
            raise ShapeError(f"smallest label is {int(self.labels.min())}; labels start at 0 (background)")
        if self.kind not in ("semantic", "instance"):
            raise ConfigError(f"kind is {self.kind!r}; expected 'semantic' or 'instance'")
        if any(label < 1 for label in self.classes):
            raise ConfigError(f"classes {dict(self.classes)}: labels start at 1; 0 is background")
        if self.kind == "semantic":
            self._check_semantic()
        else:
            self._check_instances()

    def _check_semantic(self) -> None:
        """Every label is a class; there are no records."""
        if self.instances:
            raise ConfigError(f"a semantic map has {len(self.instances)} instance records; use kind='instance'")
        unknown = [v for v in self.label_values() if v not in self.classes]
        if unknown:
            raise ConfigError(f"labels {unknown[:10]} have no class name; classes are {dict(self.classes)}")

    def _check_instances(self) -> None:
        """Every label has one record, every record a class."""
        ids = [record.id for record in self.instances]
        if len(set(ids)) != len(ids):
            raise ConfigError(f"instance ids repeat: {len(ids)} records, {len(set(ids))} different ids")
        unknown = sorted({r.class_id for r in self.instances} - set(self.classes))
        if unknown:
            raise ConfigError(f"instances refer to the classes {unknown[:10]}; known are {dict(self.classes)}")
        orphans = sorted(set(self.label_values()) - set(ids))
        if orphans:
            raise ConfigError(f"labels {orphans[:10]} have no instance record; give one record per object")

    def label_values(self) -> tuple[int, ...]:
        """Labels above 0 that occur, sorted; counted part by part, since sorting takes a copy."""
        parts = min(len(self.labels), -(-self.labels.size // _SORTED_AT_ONCE))
        found = set[int]().union(*(np.unique(part).tolist() for part in np.array_split(self.labels, max(1, parts))))
        return tuple(sorted(found - {0}))

    def about(self, *, source: Scene | None = None, meta: Mapping[str, str] | None = None) -> "Segmentation":
        """The same result, which also knows its source and more about its making; labels are shared, not copied."""
        told = copy.copy(self)
        object.__setattr__(told, "source", self.source if source is None else source)
        object.__setattr__(told, "meta", {**self.meta, **(meta or {})})
        return told

    def save(self, path: Path | str, *, dicom: "SegOptions | None" = None) -> Path:
        """Write in the format that the suffix names; an existing file is replaced only by a complete one.

        Volumes go to ``.nii``, ``.nii.gz``, ``.mha``, ``.nrrd``; rasters to ``.tif`` or, as polygons in their CRS, to
        ``.geojson``, ``.gpkg``, ``.fgb`` (FlatGeobuf) and ``.parquet`` (GeoParquet); pictures to ``.png``, ``.tif`` or
        polygons in pixels. Labels of a DICOM series also go to ``.dcm``, a segmentation object.

        Args:
            path: file to write.
            dicom: how a ``.dcm`` is written; None takes the defaults.

        Returns:
            The path written.

        Raises:
            ConfigError: unknown suffix.
            GeometryError: the format cannot keep this grid, or ``.dcm`` without a DICOM series to refer to.
            MissingDependencyError: GeoParquet without pyarrow.
            OutputError: the file cannot be written; nothing is left behind.
        """
        path = Path(path)
        suffix = full_suffix(path)
        if suffix not in SUFFIXES:
            raise ConfigError(f"{path.name}: unknown suffix {suffix!r}; expected one of {', '.join(SUFFIXES)}")
        self._require_format(path, suffix)
        if suffix in DICOM_SUFFIXES:
            self._save_dicom_seg(path, dicom)
        elif suffix in (".nii", ".nii.gz"):
            from samgraft.domains.medical.nifti import write_nifti

            write_nifti(path, self.labels, self.grid)
        elif suffix in VOLUME_SUFFIXES:
            from samgraft.domains.medical.itk import write_itk

            write_itk(path, self.labels, self.grid)
        elif suffix in PICTURE_SUFFIXES:
            from samgraft.domains.picture.picture import write_png

            write_png(path, self.labels)
        elif suffix in RASTER_SUFFIXES:
            self._save_geotiff(path)
        else:
            self._save_vectors(path)
        return path

    def _require_format(self, path: Path, suffix: str) -> None:
        """Refuse suffixes that cannot keep the grid."""
        if suffix in DICOM_SUFFIXES:
            require_series(self.source, path)
            return
        world = self.grid.world
        volume = self.grid.ndim == 3
        plain = world == "pixel" and np.array_equal(self.grid.affine, [[0, 1, 0], [1, 0, 0], [0, 0, 1]])
        if suffix in VOLUME_SUFFIXES:
            fits, remedy = volume or world in ("LPS", "RAS"), ".tif, .gpkg, .geojson" + (", .png" if plain else "")
        else:
            fits, remedy = not volume and world not in ("LPS", "RAS"), ", ".join(VOLUME_SUFFIXES)
            if fits and suffix in PICTURE_SUFFIXES:
                fits, remedy = plain, ".tif, .gpkg, .geojson"
        if not fits:
            what = "volume" if volume else "picture" if plain else "raster" if world not in ("LPS", "RAS") else "slice"
            raise GeometryError(f"{path.name}: {suffix} cannot keep the grid of a {what}; write one of {remedy}")

    def _save_dicom_seg(self, path: Path, options: "SegOptions | None") -> None:
        """Write a segmentation object that refers to the source series."""
        from samgraft.domains.medical.dicom import DicomScene
        from samgraft.domains.medical.dicom_seg_write import write_dicom_seg

        if isinstance(self.source, DicomScene):
            write_dicom_seg(path, self, self.source, options)

    def _save_geotiff(self, path: Path) -> None:
        """Write a label GeoTIFF with what is known in its tags."""
        from samgraft.domains.remote_sensing.label_raster import write_label_geotiff

        tags = self._told()
        semantic = self.kind == "semantic"
        write_label_geotiff(path, self.labels, self.grid, self.classes if semantic else None, tags=tags)

    def _save_vectors(self, path: Path) -> None:
        """Write polygons, one per instance or per connected component of a class."""
        from samgraft.domains.remote_sensing.polygon import polygonise, write_vectors

        records = self.instances if self.kind == "instance" else None
        found = polygonise(self.labels, self.grid, records, self.classes)
        write_vectors(path, found, self.grid, provenance=self._told())

    def _told(self) -> dict[str, str]:
        """What a file says of its making."""
        return {**self.meta, "kind": self.kind, "from_ground_truth": str(self.from_ground_truth).lower()}


def require_series(source: Scene | None, path: Path) -> None:
    """Refuse a DICOM segmentation object of what is no DICOM series.

    Raises:
        GeometryError: names what there is, and where the labels can go instead.
        MissingDependencyError: highdicom is not installed.
    """
    from samgraft.domains.medical.dicom import DicomScene

    if not isinstance(source, DicomScene):
        what = "the source of the labels is unknown"
        if source is not None:
            what = f"{source.path.name} is a {source.format}, which has no study to refer to"
        raise GeometryError(
            f"{path.name}: a DICOM segmentation object refers to the series that was segmented; {what}; "
            "segment the DICOM folder itself, or write .nii.gz"
        )
    from samgraft.domains.medical.dicom_seg_write import require_highdicom

    require_highdicom()
