"""Options of ``samgraft segment IMAGE --everything``: one per field of its two dataclasses."""

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from samgraft.errors import ConfigError, InputError
from samgraft.recipes.everything import ORIGINAL, EverythingConfig
from samgraft.recipes.shape_filter import ShapeFilter

_HELP = {
    "points_per_side": "points along each side of the picture or tile (16)",
    "points_per_batch": "points decoded together (chosen by size)",
    "pred_iou_thresh": "least predicted IoU (0.4)",
    "stability_score_thresh": "least stability (0.7)",
    "stability_score_offset": "logit offset of stability (1)",
    "box_nms_thresh": "IoU of doubles within a crop (0.5)",
    "crop_n_layers": "layers of crops beside the whole (0)",
    "crop_nms_thresh": "IoU of doubles of different crops (0.5)",
    "crop_overlap_ratio": "overlap of crops as a share of the short side (0.341)",
    "crop_n_points_downscale_factor": "fewer points in the crops of each layer (1)",
    "min_mask_region_area": "fill holes and remove islands with fewer pixels (0)",
    "nms": "what doubles are told by: mask or box",
    "tile": "side of tiles of a large picture in pixels; a few times the largest object; 0 never cuts",
    "overlap": "what tiles share: below 1 a share of their side, else pixels (0.25)",
    "max_share": "largest share of a crop that an object covers (0.6)",
    "min_network_area": "smallest object, pixels of the network's input (12)",
    "min_diameter": "least diameter of a disc of the same area: 20m, 3mm, 15px",
    "max_diameter": "largest one",
    "min_area": "least area: 50m2, 120px",
    "max_area": "largest one",
    "circular": "least circular index, 0 to 1 (0.955 for a square)",
    "elliptic": "least elliptic index, 0 to 1",
    "axis_ratio": "least ratio of short to long axis, 0 to 1",
    "solidity": "least share of the convex hull, 0 to 1",
    "border": "objects at the image's edge: keep, judge or drop",
}
_KINDS = {"points_per_side": int, "points_per_batch": int, "tile": int, "circular": float, "elliptic": float}
_KINDS |= {"axis_ratio": float, "solidity": float}


def _names() -> dict[str, tuple[type, Any]]:
    """Option -> the dataclass it belongs to, and its type."""
    found: dict[str, tuple[type, Any]] = {}
    for owner in (EverythingConfig, ShapeFilter):
        for entry in fields(owner):
            if entry.name in ("point_grids", "shapes"):
                continue
            kind = _KINDS.get(entry.name, str if entry.default is None else type(entry.default))
            found[entry.name] = (owner, kind)
    return found


def add_everything(parser: argparse.ArgumentParser) -> None:
    """Add ``--everything`` and its options."""
    group = parser.add_argument_group("everything", "pictures and rasters, without prompts and adapter")
    group.add_argument("--everything", action="store_true", help="all that looks like an object")
    group.add_argument("--original", action="store_true", help="begin with the numbers of the published generator")
    group.add_argument("--records", default=None, metavar="FILE.json", help="all masks, overlapping too, as COCO RLE")
    group.add_argument("--point-grids", default=None, metavar="FILE.json", help="per layer [[x, y], ...], 0 to 1")
    for option, (_, kind) in _names().items():
        group.add_argument(f"--{option.replace('_', '-')}", type=kind, default=None, help=_HELP[option])


def everything_options(values: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments ``everything`` and ``records`` of ``samgraft.segment``; empty without ``--everything``.

    Raises:
        ConfigError: such an option without ``--everything``, or a wrong value.
        InputError: the file of ``--point-grids`` cannot be read.
    """
    given = {option: v for option in _names() if (v := getattr(values, option)) is not None}
    extra = [name for name in ("original", "records", "point_grids") if getattr(values, name)]
    if not values.everything:
        alone = [name for name in given if name not in ("tile", "overlap")]  # large rasters have these, too
        if alone or extra:
            raise ConfigError(f"--{[*alone, *extra][0].replace('_', '-')} belongs to --everything; add that, too")
        return {}
    if values.adapter or values.box or values.point:
        raise ConfigError("--everything takes neither --adapter nor --box nor --point; leave one of them out")
    options: dict[type, dict[str, Any]] = {EverythingConfig: {}, ShapeFilter: {}}
    for option, value in given.items():
        options[_names()[option][0]][option] = value
    own = options[EverythingConfig]
    if values.point_grids:
        own |= {"points_per_side": own.get("points_per_side"), "point_grids": _grids(Path(values.point_grids))}
    if options[ShapeFilter]:
        own["shapes"] = ShapeFilter(**options[ShapeFilter])
    base = {entry.name: getattr(ORIGINAL, entry.name) for entry in fields(ORIGINAL)} if values.original else {}
    found: dict[str, Any] = {"everything": EverythingConfig(**(base | own))}
    return found | ({"records": values.records} if values.records else {})


def _grids(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read point grids from {path}: {error}; expected [[[x, y], ...], ...]") from error
