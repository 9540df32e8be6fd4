"""Moments by hand: discs, ellipses, rings, rectangles, on pixels that are neither square nor upright."""

import math

import numpy as np
import pytest
from rasterio.crs import CRS

from samgraft.domains.remote_sensing.georeference import metres_per_unit
from samgraft.errors import ConfigError, GeometryError, ShapeError
from samgraft.grid import Grid
from samgraft.recipes.engine.shapes import PixelScale, Shape, shape_of, shapes_of
from samgraft.recipes.shape_filter import ShapeFilter, quantity

FRAME = (120, 160)
PICTURE = Grid(shape=FRAME, affine=np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]))
UTM = CRS.from_epsg(32633).to_wkt()


def raster(steps: list[list[float]], world: str = UTM, corner: tuple[float, float] = (500_000, 5_000_000)) -> Grid:
    affine = np.eye(3)
    affine[:2, :2] = steps
    affine[:2, 2] = corner
    return Grid(shape=FRAME, affine=affine, world=world, anchor="corner")


def ellipse(a: float, b: float, degrees: float = 0.0, centre: tuple[float, float] = (52.3, 90.6)) -> np.ndarray:
    y, x = np.mgrid[: FRAME[0], : FRAME[1]]
    y, x = y - centre[0], x - centre[1]
    turn = math.radians(degrees)
    u, v = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    return (u / a) ** 2 + (v / b) ** 2 <= 1


def measure(mask: np.ndarray, grid: Grid = PICTURE) -> Shape:
    (found,) = shapes_of(mask.astype(np.int32), grid)
    return found


def test_a_rectangle_by_hand() -> None:
    mask = np.zeros(FRAME, dtype=bool)
    mask[10:14, 30:42] = True  # 4 x 12: variances 16 / 12 and 144 / 12 with the pixels' own
    found = measure(mask)
    assert (found.area, found.area_px, found.unit) == (48, 48, "px")
    assert found.centre == (11.5, 35.5)
    assert found.major == pytest.approx(4 * math.sqrt(12))
    assert found.minor == pytest.approx(4 * math.sqrt(4 / 3))
    assert found.axis_ratio == pytest.approx(1 / 3)
    assert found.elliptic == pytest.approx(3 / math.pi)
    assert found.circular == pytest.approx(48 / (2 * math.pi * (12 + 4 / 3)))
    assert found.diameter == pytest.approx(2 * math.sqrt(48 / math.pi))
    assert found.solidity == 1.0
    assert not found.at_border


def test_one_pixel_is_a_square() -> None:
    mask = np.zeros(FRAME, dtype=bool)
    mask[7, 9] = True
    found = measure(mask)
    assert found.circular == pytest.approx(3 / math.pi)
    assert found.axis_ratio == pytest.approx(1.0)


@pytest.mark.parametrize("degrees", [0, 33, 120])
@pytest.mark.parametrize(("a", "b"), [(22, 22), (30, 15), (36, 9)])
def test_ellipses_at_an_angle(a: float, b: float, degrees: float) -> None:
    found = measure(ellipse(a, b, degrees))
    assert found.major == pytest.approx(2 * a, rel=0.02)
    assert found.minor == pytest.approx(2 * b, rel=0.03)
    assert found.elliptic > 0.995
    assert found.circular == pytest.approx(2 * a * b / (a * a + b * b), rel=0.03)
    assert found.centre == pytest.approx((52.3, 90.6), abs=0.2)
    assert found.solidity > 0.93


def test_a_ring_and_the_same_filled() -> None:
    ring = ellipse(30, 30) & ~ellipse(18, 18)
    labels = ring.astype(np.int32) * 3
    (found,) = shapes_of(labels, PICTURE)
    assert found.id == 3
    assert found.circular == pytest.approx((900 - 324) / (900 + 324), rel=0.01)
    assert found.elliptic == pytest.approx((900 - 324) / (900 + 324), rel=0.01)
    (filled,) = shapes_of(labels, PICTURE, fill_holes=True)
    assert filled.circular > 0.998
    assert filled.diameter == pytest.approx(60, rel=0.01)


def test_nested_circles_are_both_there() -> None:
    labels = ellipse(40, 40).astype(np.int32) * 5
    labels[ellipse(12, 12, centre=(60, 100))] = 2
    inner, outer = shapes_of(labels, PICTURE, fill_holes=True)
    assert (inner.id, outer.id) == (2, 5)
    assert inner.diameter == pytest.approx(24, rel=0.02)
    assert outer.diameter == pytest.approx(80, rel=0.01)
    assert min(inner.circular, outer.circular) > 0.995


def test_anisotropic_pixels_make_an_ellipse_a_disc() -> None:
    # rows of 3 m, columns of 1.5 m, and the raster turned by 30 degrees
    turn = math.radians(30)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    steps = rotation @ np.array([[0.0, 1.5], [-3.0, 0.0]])
    found = measure(ellipse(40, 20), raster(steps.tolist()))
    assert found.unit == "m"
    assert found.circular > 0.998
    assert found.diameter == pytest.approx(120, rel=0.01)
    assert found.area == pytest.approx(found.area_px * 4.5)
    assert "diameter_m" in found.properties()


def test_a_crs_in_feet() -> None:
    feet = CRS.from_epsg(2263).to_wkt()  # US survey feet
    found = measure(ellipse(20, 20), raster([[0, 1], [-1, 0]], feet))
    assert found.diameter == pytest.approx(40 * 1200 / 3937, rel=0.01)


def test_degrees_are_scaled_where_the_object_lies() -> None:
    # 0.001 degree at 60 degrees north: 55.80 m to the east and 111.41 m to the north (WGS84)
    grid = raster([[0, 0.001], [-0.001, 0]], CRS.from_epsg(4326).to_wkt(), (10.0, 60.06))
    east, north = metres_per_unit(CRS.from_epsg(4326), latitude=60.0)
    assert (east, north) == pytest.approx((55_800, 111_412), rel=1e-4)
    found = measure(ellipse(40, 20, centre=(60, 80)), grid)
    assert found.unit == "m"
    assert found.minor == pytest.approx(2 * 20 * 111.412, rel=0.02)
    assert found.major == pytest.approx(2 * 40 * 55.80, rel=0.02)


def test_slices_of_a_volume_in_millimetres() -> None:
    turned = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ np.diag([5.0, 1.0, 2.0])
    affine = np.eye(4)
    affine[:3, :3] = turned
    grid = Grid(shape=(7, *FRAME), affine=affine, world="RAS")
    (found,) = shapes_of(ellipse(15, 30).astype(np.uint8), grid, axis=0)  # rows of 1 mm, columns of 2 mm
    assert found.unit == "mm"
    assert found.circular > 0.998
    assert found.diameter == pytest.approx(60, rel=0.01)
    with pytest.raises(GeometryError, match="name the axis"):
        PixelScale(grid)


def test_the_border_is_noted() -> None:
    for centre, touches in (
        ((10, 80), True),
        ((60, 10), True),
        ((109, 80), True),
        ((60, 149), True),
        ((60, 80), False),
    ):
        assert measure(ellipse(15, 15, centre=centre)).at_border is touches


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ShapeError, match="object 4 has no pixel"):
        shape_of(np.zeros((3, 4), dtype=bool), PixelScale(PICTURE), frame=FRAME, number=4)
    with pytest.raises(ShapeError, match=r"labels are \(3, 4\); expected \(120, 160\)"):
        shapes_of(np.zeros((3, 4), dtype=np.int32), PICTURE)
    assert shapes_of(np.zeros(FRAME, dtype=np.int32), PICTURE) == ()


HALF = raster([[0.0, 0.5], [-0.5, 0.0]])
"""Half metres: a disc of radius 22 has 22 m across."""


@pytest.mark.parametrize(
    ("options", "stays"),
    [
        ({"min_diameter": "21m"}, True),
        ({"min_diameter": "23m"}, False),
        ({"max_diameter": "0.021km"}, False),
        ({"min_diameter": "43px", "max_diameter": "45"}, True),
        ({"min_area": "370m2", "max_area": "390m^2"}, True),
        ({"min_area": "400m2"}, False),
        ({"min_area": "1500px"}, True),
        ({"circular": 0.99, "elliptic": 0.99, "axis_ratio": 0.97, "solidity": 0.9}, True),
        ({"border": "drop"}, True),
    ],
)
def test_ranges_choose_a_disc(options: dict[str, object], stays: bool) -> None:
    assert ShapeFilter(**options).accepts(measure(ellipse(22, 22), HALF)) is stays


def test_indexes_tell_squares_and_ellipses_from_discs() -> None:
    square = np.zeros(FRAME, dtype=bool)
    square[20:60, 30:70] = True
    assert not ShapeFilter(circular=0.96).accepts(measure(square))
    assert ShapeFilter(circular=0.95).accepts(measure(square))
    assert not ShapeFilter(circular=0.9).accepts(measure(ellipse(30, 15)))
    assert ShapeFilter(elliptic=0.98).accepts(measure(ellipse(30, 15)))


@pytest.mark.parametrize(("border", "stays"), [("keep", True), ("judge", False), ("drop", False)])
def test_an_object_at_the_border_is_not_silently_lost(border: str, stays: bool) -> None:
    half = measure(ellipse(30, 30, centre=(0, 80)))
    assert ShapeFilter(circular=0.95, min_diameter="50px", border=border).accepts(half) is stays
    assert not ShapeFilter(max_diameter="20px").accepts(half)


def test_wrong_quantities_are_refused() -> None:
    assert quantity("1.5e2m", 1, "x") == (150.0, "m")
    for text in ("20 miles", "m", "-3m", "20m2"):
        with pytest.raises(ConfigError, match="expected a number and a unit"):
            ShapeFilter(min_diameter=text)
    with pytest.raises(ConfigError, match="circular is 1.5"):
        ShapeFilter(circular=1.5)
    with pytest.raises(ConfigError, match="border is 'cut'"):
        ShapeFilter(border="cut")
    with pytest.raises(ConfigError, match="does not say how large its pixels are"):
        ShapeFilter(min_diameter="20m").accepts(measure(ellipse(22, 22)))
