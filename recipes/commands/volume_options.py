"""Options of ``samgraft segment`` that are about prompts in a volume."""

import argparse
from typing import TYPE_CHECKING, Any

from samgraft.errors import ConfigError
from samgraft.recipes.commands.parsing import PlainParser

if TYPE_CHECKING:
    from samgraft.domains.segmentation import Segmentation
    from samgraft.recipes.engine.propagated import VolumeOptions

OFF = "off"


def add_volume(parser: PlainParser) -> None:
    """Add the group of options."""
    group = parser.add_argument_group("prompts in a volume")
    group.add_argument(
        "--propagate",
        action="store_true",
        help="carry what the prompts show, or without prompts what the adapter finds, through all slices, both ways",
    )
    group.add_argument(
        "--carry", nargs="+", default=None, metavar="WHAT", help="what the previous mask becomes: box, mask, points"
    )
    group.add_argument("--memory", type=int, default=None, metavar="N", help="remember the features of N past slices")
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="RULE=VALUE",
        help="a stop rule: min_iou, length, max_growth, max_regrowth, min_share, min_predicted_iou or min_agreement; "
        "VALUE may be off; repeatable",
    )
    group.add_argument(
        "--box3d", default=None, choices=("propagate", "slices"), help="3D boxes: from the middle, or slice by slice"
    )
    group.add_argument("--flips", action="store_true", help="segment the mirror images too, and average")
    group.add_argument("--both-ways", action="store_true", help="walk back too, and say how well directions agree")
    group.add_argument("--largest", action="store_true", help="keep the largest component of each object")
    group.add_argument("--fill-holes", type=float, default=None, metavar="MM3", help="fill cavities up to this volume")
    group.add_argument(
        "--min-volume", type=float, default=None, metavar="MM3", help="drop components below this volume"
    )
    group.add_argument("--uncertainty", default=None, metavar="FILE", help="NIfTI for the map of uncertainty (bits)")


def volume_options(values: argparse.Namespace) -> "VolumeOptions | None":
    """Options of the propagation, or None where none was asked for.

    Raises:
        ConfigError: an option without ``--propagate``, or a stop rule that is not known.
    """
    automatic = values.adapter is not None and not (values.box or values.point or values.line or values.prompts)
    if not values.propagate:
        allowed = _ALSO_AUTOMATIC if automatic else ()
        named = [name for name in (*_NEED_PROPAGATE, *_ALSO_AUTOMATIC) if getattr(values, name)]
        beyond = [name for name in named if name not in allowed]
        if beyond:
            option = "--" + beyond[0].replace("_", "-")
            raise ConfigError(f"{option} is about prompts that go through a volume; add --propagate, or leave it out")
        if not named:
            return None
    from samgraft.adapters.bundle import read_meta
    from samgraft.recipes.engine.propagated import VolumeOptions
    from samgraft.recipes.engine.self_prompted import SLICES
    from samgraft.recipes.trusting import calibration_of
    from samgraft.volumetric.propagation import PropagationConfig, StopRule
    from samgraft.volumetric.shape_rules import ShapeRules

    given = {"carry": values.carry, "memory": values.memory}
    config = PropagationConfig(
        stop=StopRule(**_rules(values.stop)), **{k: v for k, v in given.items() if v is not None}
    )
    rules = ShapeRules(
        largest=values.largest, fill_holes_mm3=values.fill_holes or 0.0, min_mm3=values.min_volume or 0.0
    )
    calibration = None if values.adapter is None else calibration_of(read_meta(values.adapter), "prompted")
    measured = {"predicted_iou", *(["flips"] if values.flips else []), *(["directions"] if values.both_ways else [])}
    if calibration is not None and not set(calibration.signals) <= measured:
        calibration = None  # it was fitted on other runs than this one
    return VolumeOptions(
        propagation=config,
        box3d=values.box3d or "propagate",
        flips=("none", "rows", "cols", "both") if values.flips else ("none",),
        return_walks=values.both_ways,
        rules=rules,
        calibration=calibration,
        uncertainty=values.uncertainty,
        shown=SLICES if automatic and values.propagate else 0,
    )


_NEED_PROPAGATE = ("carry", "memory", "stop", "box3d", "both_ways")
_ALSO_AUTOMATIC = ("flips", "largest", "fill_holes", "min_volume", "uncertainty")
"""Options that an adapter without prompts takes as well."""


def volume_report(result: "Segmentation") -> list[str]:
    """Lines about where walks stopped and what should be looked at."""
    found = []
    if result.meta.get("mode") == "propagated" and "objects not found" in result.meta:
        found.append(f"not found: object {result.meta['objects not found']}; give a better box, a point or a mask")
    if "stopped" in result.meta:
        found.append(f"stopped: {result.meta['stopped']}")
    if "look at" in result.meta:
        found.append(f"look at: {result.meta['look at']}")
    return found


def _rules(words: list[str]) -> dict[str, Any]:
    """``RULE=VALUE`` words as arguments of ``StopRule``."""
    from samgraft.volumetric.propagation import StopRule

    known = tuple(StopRule.__dataclass_fields__)
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in known:
            raise ConfigError(f"--stop {word}: expected RULE=VALUE with one of {', '.join(known)}")
        try:
            found[name] = None if value == OFF else float(value)
        except ValueError as error:
            raise ConfigError(f"--stop {word}: {value!r} is no number; give one, or off") from error
    return found
