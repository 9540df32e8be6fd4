"""Which objects to keep by form and size: ``--min-diameter 20m --circular 0.9`` as data."""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from samgraft.errors import ConfigError

if TYPE_CHECKING:
    from samgraft.recipes.engine.shapes import Shape

METRES = {"um": 1e-6, "mm": 1e-3, "cm": 1e-2, "m": 1.0, "km": 1e3}
"""Lengths that can be named."""
BORDER = ("keep", "judge", "drop")
_QUANTITY = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*(px|um|mm|cm|km|m)?(2|\^2)?\s*")


@dataclass(frozen=True, kw_only=True)
class ShapeFilter:
    """Ranges; None does not ask."""

    min_diameter: str | None = None
    """Least diameter of a disc of the same area, such as "20m", "3mm", "15px"; without a unit pixels."""
    max_diameter: str | None = None
    """Largest one."""
    min_area: str | None = None
    """Least area, such as "50m2", "120px"."""
    max_area: str | None = None
    """Largest one."""
    circular: float | None = None
    """Least circular index, 0 to 1; a square has 0.955, an ellipse of axes 2 : 1 has 0.8."""
    elliptic: float | None = None
    """Least elliptic index, 0 to 1; a rectangle has 0.955."""
    axis_ratio: float | None = None
    """Least ratio of short to long axis, 0 to 1."""
    solidity: float | None = None
    """Least share of the convex hull, 0 to 1."""
    border: str = "keep"
    """Objects that touch the image's edge show only a part of their form: "keep" asks only for what no missing part
    can change (the largest diameter and area), "judge" takes the part for the whole, "drop" leaves them out. Those that
    stay are marked ``at_border``.
    """

    def __post_init__(self) -> None:
        """Check every value."""
        for name, power in (("min_diameter", 1), ("max_diameter", 1), ("min_area", 2), ("max_area", 2)):
            text = getattr(self, name)
            if text is not None:
                quantity(text, power, name)
        for name in ("circular", "elliptic", "axis_ratio", "solidity"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value}; expected 0 to 1")
        if self.border not in BORDER:
            raise ConfigError(f"border is {self.border!r}; expected one of {', '.join(BORDER)}")

    def accepts(self, shape: "Shape") -> bool:
        """Whether an object stays.

        Raises:
            ConfigError: a size in metres for an image whose pixels have no size.
        """
        if shape.at_border and self.border == "drop":
            return False
        if not (
            self._within(shape, "max_diameter", shape.diameter, 1) and self._within(shape, "max_area", shape.area, 2)
        ):
            return False
        if shape.at_border and self.border == "keep":
            return True
        large = self._within(shape, "min_diameter", shape.diameter, 1)
        large = large and self._within(shape, "min_area", shape.area, 2)
        indexes = ("circular", "elliptic", "axis_ratio", "solidity")
        return large and all(getattr(shape, name) >= (getattr(self, name) or 0.0) for name in indexes)

    def _within(self, shape: "Shape", name: str, value: float, power: int) -> bool:
        """Compare with one bound, in the bound's unit."""
        text = getattr(self, name)
        if text is None:
            return True
        bound, unit = quantity(text, power, name)
        if unit == "px":
            pixels = float(shape.area_px)
            value = pixels if power == 2 else 2 * math.sqrt(pixels / math.pi)
        elif shape.unit == "px":
            raise ConfigError(f"{name} is {text!r}, but the image does not say how large its pixels are; name px")
        else:
            value *= (METRES[shape.unit] / METRES[unit]) ** power
        return value >= bound if name.startswith("min") else value <= bound


def quantity(text: str | float, power: int, name: str) -> tuple[float, str]:
    """Number and unit of a length (``power`` 1) or an area (2).

    Raises:
        ConfigError: not a number with a known unit.
    """
    found = _QUANTITY.fullmatch(str(text))
    square = found is not None and found[3] is not None
    if found is None or (square and power == 1):
        example = "20m, 3mm or 15px" if power == 1 else "50m2, 4mm2 or 120px"
        raise ConfigError(f"{name} is {text!r}; expected a number and a unit, such as {example}")
    return float(found[1]), found[2] or "px"
