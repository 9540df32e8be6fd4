"""``samgraft labels FILE --image IMAGE``: labels of an RTSTRUCT, DICOM-SEG or label volume on the grid of an image."""

from collections.abc import Sequence
from typing import Any

from samgraft.errors import ConfigError
from samgraft.recipes.commands.parsing import plain_parser, say


def run(arguments: Sequence[str]) -> None:
    """Read, place, write."""
    parser = plain_parser(
        "labels",
        "Bring labels onto the grid of an image: contours of an RTSTRUCT are filled, a DICOM-SEG or label volume is "
        "placed voxel by voxel. Without --image, say what the file holds.",
    )
    parser.add_argument("file", help="RTSTRUCT or DICOM-SEG file, NIfTI, MHA or NRRD")
    parser.add_argument("--image", default=None, help="DICOM folder or volume that the labels belong to")
    parser.add_argument("--series", default=None, help="which series, if the folder of --image holds several")
    parser.add_argument("--structure", action="append", default=None, metavar="NAME", help="one structure; repeatable")
    parser.add_argument("--later-wins", action="store_true", help="the later of overlapping structures wins")
    parser.add_argument("--resample", action="store_true", help="nearest voxel, where the voxels do not coincide")
    parser.add_argument("-o", "--output", action="append", default=[], help="file to write, by suffix; repeatable")
    add_seg(parser)
    values = parser.parse_args(list(arguments))
    if values.image is None:
        _describe(values.file)
        return
    if not values.output:
        raise ConfigError("no output named; add -o FILE, such as labels.nii.gz or labels.dcm; repeat it for several")

    from samgraft.domains.opening import open_scene
    from samgraft.recipes.label_files import labels_on

    image = open_scene(values.image, series=values.series)
    found = labels_on(
        values.file,
        image,
        structures=values.structure,
        overlap="later" if values.later_wins else "raise",
        resample=values.resample,
    )
    for value, name in found.classes.items():
        say(f"{value} {name}: {int((found.labels == value).sum()):,} voxels")
    if "notes" in found.meta:
        say(found.meta["notes"])
    for path in values.output:
        say(f"wrote {found.save(path, dicom=seg_options(values))}")


def _describe(path: str) -> None:
    """List structures, without an image."""
    from pathlib import Path

    from samgraft.domains.medical.dicom_header import read_dataset
    from samgraft.domains.medical.dicom_seg import DicomSegScene
    from samgraft.domains.medical.rtstruct import read_rtstruct
    from samgraft.domains.opening import open_scene

    file = Path(path)
    head = read_dataset(file, ["Modality"]) if file.is_file() else None
    if head is not None and head.get("Modality") == "RTSTRUCT":
        for structure in read_rtstruct(file).structures:
            say(f"{structure.number} {structure.name}: {len(structure.contours)} closed contours")
        return
    scene = open_scene(file)
    say(repr(scene))
    if isinstance(scene, DicomSegScene):
        for segment in scene.segments.values():
            say(f"{segment.number} {segment.name}: {segment.code} {segment.meaning}")


def add_seg(parser: Any) -> None:
    """Options of DICOM-SEG files."""
    group = parser.add_argument_group("DICOM-SEG (-o FILE.dcm)")
    group.add_argument("--seg-kind", default="LABELMAP", choices=("LABELMAP", "BINARY"), help="BINARY for old viewers")
    group.add_argument("--seg-drop-empty", action="store_true", help="leave out frames without a label")


def seg_options(values: Any) -> Any:
    """``SegOptions`` of the call."""
    from samgraft.domains.medical.dicom_seg_write import SegOptions

    return SegOptions(kind=values.seg_kind, keep_empty=not values.seg_drop_empty)
