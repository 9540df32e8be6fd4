"""Bands by name: which band of a file is red, near infrared or VV, for the sensors that analysts use.

Takes band descriptions and colours of a file, or only their number and the sensor's name; gives one common name per
band, and band numbers for the names that a user asks for.

Source: band orders of the products as distributed. Sentinel-2: ESA User Handbook, table of spectral bands. Landsat
8-9: USGS Data Format Control Books. NAIP: USDA four-band product. PlanetScope: Planet Imagery Product Specification,
four-band and eight-band (PSB.SD) analytic. WorldView-2/3: multispectral order of the vendor. Sentinel-1: GRD
measurement files.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from samgraft.errors import ConfigError, InputError

BandChoice = int | str
"""A band by GDAL number (from 1) or by name."""

COMPOSITES: Mapping[str, tuple[str, ...]] = {
    "rgb": ("red", "green", "blue"),
    "cir": ("nir", "red", "green"),
    "sar": ("vv", "vh"),
}
"""Names for groups of bands."""

DISPLAYS: tuple[tuple[str, ...], ...] = (
    ("red", "green", "blue"),
    ("vv", "vh", "vv"),
    ("hh", "hv", "hh"),
    ("pan",),
)
"""What is shown as red, green and blue; the first group that a raster has in full."""


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """Bands of a sensor and the orders in which its files hold them."""

    title: str
    """Name in words."""
    codes: Mapping[str, str]
    """Band code of the product, normalised (see :func:`normalise`) -> common name."""
    orders: tuple[tuple[str, ...], ...]
    """Common names of all bands of a file, for every usual kind of file; told apart by their number."""
    polarised: bool = field(default=False)
    """Whether it is a radar."""


_S2 = {
    "b1": "coastal", "b2": "blue", "b3": "green", "b4": "red", "b5": "rededge1", "b6": "rededge2", "b7": "rededge3",
    "b8": "nir", "b8a": "nir_narrow", "b9": "water_vapour", "b10": "cirrus", "b11": "swir1", "b12": "swir2",
}  # fmt: skip
_S2_ALL = tuple(_S2.values())
_L8 = {
    "b1": "coastal", "b2": "blue", "b3": "green", "b4": "red", "b5": "nir", "b6": "swir1", "b7": "swir2", "b8": "pan",
    "b9": "cirrus", "b10": "thermal1", "b11": "thermal2",
}  # fmt: skip
_L8_ALL = tuple(_L8.values())
_PLANET8 = ("coastal", "blue", "green_i", "green", "yellow", "red", "rededge1", "nir")
_WORLDVIEW = ("coastal", "blue", "green", "yellow", "red", "rededge1", "nir", "nir2")


def _numbered(names: Sequence[str]) -> dict[str, str]:
    """Codes b1, b2, ... in order."""
    return {f"b{number}": name for number, name in enumerate(names, start=1)}


SENSORS: Mapping[str, Sensor] = {
    "sentinel2": Sensor(
        title="Sentinel-2 MSI",
        codes=_S2,
        orders=(
            _S2_ALL,
            tuple(n for n in _S2_ALL if n != "cirrus"),
            tuple(n for n in _S2_ALL if n not in ("coastal", "water_vapour", "cirrus")),
            ("blue", "green", "red", "nir"),
        ),
    ),
    "landsat8": Sensor(
        title="Landsat 8/9 OLI",
        codes=_L8,
        orders=(_L8_ALL, _L8_ALL[:7], ("blue", "green", "red", "nir", "swir1", "swir2")),
    ),
    "naip": Sensor(
        title="NAIP",
        codes=_numbered(("red", "green", "blue", "nir")),
        orders=(("red", "green", "blue", "nir"), ("red", "green", "blue")),
    ),
    "planetscope": Sensor(
        title="PlanetScope",
        codes={},
        orders=(_PLANET8, ("blue", "green", "red", "nir"), ("red", "green", "blue")),
    ),
    "worldview": Sensor(
        title="WorldView-2/3",
        codes=_numbered(_WORLDVIEW),
        orders=(_WORLDVIEW, ("blue", "green", "red", "nir"), ("pan",)),
    ),
    "rgb": Sensor(title="colour picture", codes={}, orders=(("red", "green", "blue"),)),
    "pan": Sensor(title="panchromatic", codes={"b1": "pan"}, orders=(("pan",),)),
    "sentinel1": Sensor(title="Sentinel-1 GRD", codes={}, orders=(("vv", "vh"), ("vv",)), polarised=True),
}
"""Sensors by name; ``ALIASES`` has further names."""

ALIASES: Mapping[str, str] = {
    "s2": "sentinel2", "sentinel-2": "sentinel2", "s1": "sentinel1", "sentinel-1": "sentinel1", "sar": "sentinel1",
    "landsat": "landsat8", "landsat9": "landsat8", "landsat-8": "landsat8", "landsat-9": "landsat8",
    "planet": "planetscope", "worldview2": "worldview", "worldview3": "worldview", "panchromatic": "pan",
}  # fmt: skip
"""Other names of sensors."""

_SYNONYMS: Mapping[str, str] = {
    "r": "red", "g": "green", "b": "blue", "grey": "gray", "n": "nir", "nearinfrared": "nir", "nir1": "nir",
    "infrared": "nir", "nir8a": "nir_narrow", "nirnarrow": "nir_narrow", "coastalblue": "coastal",
    "ultrablue": "coastal", "coastalaerosol": "coastal", "greeni": "green_i", "rededge": "rededge1", "swir16": "swir1",
    "swir22": "swir2", "panchromatic": "pan", "watervapour": "water_vapour", "watervapor": "water_vapour",
}  # fmt: skip
_PLAIN = frozenset(
    {name for sensor in SENSORS.values() for order in sensor.orders for name in order} | {"gray", "hh", "hv"}
)
_COLORS: Mapping[str, str] = {
    "red": "red", "green": "green", "blue": "blue", "gray": "gray", "nir": "nir", "pan": "pan", "coastal": "coastal",
    "rededge": "rededge1",
}  # fmt: skip
_ESA_CODE = re.compile(r"^B(0[1-9]|1[0-2]|8A)\b", re.IGNORECASE)


def sensor_named(name: str) -> Sensor:
    """Look a sensor up by name or alias.

    Raises:
        ConfigError: it is not known; the closest names are given.
    """
    key = name.strip().lower().replace(" ", "").replace("_", "")
    key = ALIASES.get(key, key)
    if key not in SENSORS:
        close = difflib.get_close_matches(key, [*SENSORS, *ALIASES], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"sensor {name!r} is unknown; known are {', '.join(SENSORS)}{hint}")
    return SENSORS[key]


def normalise(text: str) -> str:
    """Bring a band description into one form: "SR_B04 ", "band 4" and "B4" become "b4", "Red Edge" "rededge"."""
    plain = re.sub(r"[^a-z0-9]", "", text.lower())
    plain = re.sub(r"^(sr|toa|st|band)(?=b?\d)", "", plain)
    code = re.fullmatch(r"b?(?:and)?0*(\d+)(a?)", plain)
    return f"b{code[1]}{code[2]}" if code else plain


def common_name(text: str, sensor: Sensor | None = None) -> str | None:
    """Common name of a band description, or None; codes such as "B4" mean something only with a sensor."""
    plain = normalise(text)
    for code in (plain, normalise(re.split(r"[\s,;:(]", text.strip())[0])):  # "B4, central wavelength 665 nm"
        if sensor is not None and code in sensor.codes:
            return sensor.codes[code]
    for name in (plain, _SYNONYMS.get(plain, "")):
        if name in _PLAIN:
            return name
    return None


def band_names(
    descriptions: Sequence[str | None], colors: Sequence[str], sensor: Sensor | None = None
) -> tuple[str | None, ...]:
    """Common name of every band of a file, None where it is not known.

    Descriptions are believed first, then the order of the sensor's files, then the colours of the header. Zero-padded
    codes (B02, B03, B04, B8A) are Sentinel-2's also where no sensor is named.

    Args:
        descriptions: One per band, None or empty where there is none.
        colors: Colour interpretation of each band by GDAL's name.
        sensor: The sensor, if the user named one.

    Raises:
        InputError: a sensor was named, the file has no band names, and no file of that sensor has so many bands.
    """
    known = sensor or _guessed(descriptions)
    fitting = [order for order in sensor.orders if len(order) == len(descriptions)] if sensor else []
    counted = all(normalise(text or "") == f"b{n}" for n, text in enumerate(descriptions, start=1))
    if fitting and counted:  # "Band 1", "Band 2", ... number the file's bands, not the sensor's
        return fitting[0]
    named = tuple(common_name(text, known) if text else None for text in descriptions)
    if any(named):
        return named
    if sensor is None:
        return tuple(_COLORS.get(color) for color in colors)
    if not fitting:
        counts = ", ".join(str(len(order)) for order in sensor.orders)
        raise InputError(
            f"the file has {len(descriptions)} bands without names; {sensor.title} files have {counts}; leave sensor "
            "out and choose bands by number (from 1)"
        )
    return fitting[0]


def band_numbers(
    wanted: Sequence[BandChoice] | str, names: Sequence[str | None], descriptions: Sequence[str | None]
) -> tuple[int, ...]:
    """Band numbers (from 1) for what a user asks for.

    Args:
        wanted: Numbers, common names, codes or descriptions of the file ("red", "B08", "vv"); a text holds several
            names separated by commas, or the name of a group (``COMPOSITES``).
        names: Common names of the file's bands, from :func:`band_names`.
        descriptions: Their descriptions.

    Raises:
        InputError: a number or name that the file does not have.
    """
    listed: list[BandChoice] = []
    for one in wanted.split(",") if isinstance(wanted, str) else wanted:
        text = one.strip().lower() if isinstance(one, str) else one
        listed += list(COMPOSITES[text]) if isinstance(text, str) and text in COMPOSITES else [one]
    return tuple(_number(one, names, descriptions) for one in listed)


def _number(one: BandChoice, names: Sequence[str | None], descriptions: Sequence[str | None]) -> int:
    """Band number of one choice."""
    count = len(names)
    text = one.strip() if isinstance(one, str) else str(int(one))
    if text.isdigit():
        if not 1 <= int(text) <= count:
            raise InputError(f"band {text} asked; the file has bands 1 to {count} (counted from 1)")
        return int(text)
    own = [normalise(d or "") for d in descriptions]
    for where, key in ((list(names), common_name(text) or text.lower()), (own, normalise(text))):
        if key in where:
            return where.index(key) + 1
    have = [f"{i}" + (f" {n}" if n else "") + (f" ({d})" if d else "") for i, n, d in _rows(names, descriptions)]
    raise InputError(
        f"no band is called {text!r}; the file has {', '.join(have)}; choose by number, or name the sensor "
        f"({', '.join(SENSORS)})"
    )


def _rows(names: Sequence[str | None], descriptions: Sequence[str | None]) -> list[tuple[int, str | None, str | None]]:
    """Number, common name and description of each band."""
    return [(i, n, d) for i, (n, d) in enumerate(zip(names, descriptions, strict=True), start=1)]


def _guessed(descriptions: Sequence[str | None]) -> Sensor | None:
    """Sentinel-2 if the bands have its codes with a leading zero or an A, which no other sensor writes."""
    telling = {match[1].upper() for text in descriptions if (match := _ESA_CODE.match(text or ""))}
    return SENSORS["sentinel2"] if len(telling & {"02", "03", "04", "08", "8A"}) >= 2 else None
