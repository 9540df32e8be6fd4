"""Style files for QGIS (QML): classes appear with their names and colours as soon as a result is opened.

A file ``x.qml`` beside ``x.gpkg`` or ``x.tif`` is found by QGIS on its own. One file may hold a part for vectors and a
part for rasters; QGIS takes the one that fits the layer. Colours are those of the colour table in the GeoTIFF.

Source:
    Names and values of attributes are those that QGIS itself reads and writes: src/core/symbology
    (qgscategorizedsymbolrenderer.cpp, qgssymbollayerutils.cpp) and src/core/raster (qgspalettedrasterrenderer.cpp,
    qgsrastershader.cpp, qgssinglebandgrayrenderer.cpp) of github.com/qgis/QGIS.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from samgraft.domains.atomic import atomic_path
from samgraft.domains.remote_sensing.cog import Content
from samgraft.domains.remote_sensing.palette import Colour, class_color
from samgraft.errors import ConfigError, OutputError
from samgraft.grid import Grid
from samgraft.recipes.mosaic.raster_sink import RasterSink
from samgraft.recipes.mosaic.sink import RefusingSink, Takes
from samgraft.recipes.mosaic.vector_sink import VectorSink

CLASS_FIELD = "class"
"""Attribute that the vector part looks at."""
OPACITY = 0.6
"""Of label rasters, so that the image below stays visible."""
_FILL_ALPHA = 90
_DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
_ID_STOPS = 12


def style_document(
    classes: Mapping[int, str], *, vector: bool = True, raster: Content | None = None, count: int | None = None
) -> str:
    """Write a QML document.

    Args:
        classes: Class label -> name.
        vector: Include the part for polygons: one category per class, filled lightly with a firm outline.
        raster: Include the part for a raster of this content.
        count: Largest id of a raster of ids.

    Raises:
        ConfigError: neither part.
    """
    if not vector and raster is None:
        raise ConfigError("a style for nothing; ask for the vector part, the raster part or both")
    root = ET.Element("qgis", {"version": "3.22.0", "styleCategories": "Symbology"})
    if raster is not None:
        _raster_part(root, classes, raster, count)
    if vector:
        _vector_part(root, classes)
    ET.indent(root, space=" ")
    return _DOCTYPE + ET.tostring(root, encoding="unicode") + "\n"


def _vector_part(root: ET.Element, classes: Mapping[int, str]) -> None:
    """A renderer with one category per class."""
    renderer = ET.SubElement(root, "renderer-v2", {"type": "categorizedSymbol", "attr": CLASS_FIELD})
    renderer.attrib |= {"forceraster": "0", "symbollevels": "0", "enableorderby": "0"}
    categories = ET.SubElement(renderer, "categories")
    symbols = ET.SubElement(renderer, "symbols")
    for place, (label, name) in enumerate(sorted(classes.items())):
        values = {"render": "true", "symbol": str(place), "value": str(label), "label": name, "type": "long"}
        ET.SubElement(categories, "category", values)
        _symbol(symbols, str(place), class_color(label))
    ET.SubElement(root, "layerOpacity").text = "1"
    ET.SubElement(root, "layerGeometryType").text = "2"


def _symbol(parent: ET.Element, name: str, colour: Colour) -> None:
    """A polygon symbol; settings stand twice, as QGIS before and after 3.26 reads them."""
    symbol = ET.SubElement(parent, "symbol", {"type": "fill", "name": name, "alpha": "1", "clip_to_extent": "1"})
    layer = ET.SubElement(symbol, "layer", {"class": "SimpleFill", "enabled": "1", "locked": "0", "pass": "0"})
    settings = {
        "color": ",".join(str(v) for v in (*colour[:3], _FILL_ALPHA)),
        "outline_color": ",".join(str(v) for v in colour),
        "outline_style": "solid",
        "outline_width": "0.4",
        "outline_width_unit": "MM",
        "joinstyle": "miter",
        "style": "solid",
    }
    options = ET.SubElement(layer, "Option", {"type": "Map"})
    for key, value in settings.items():
        ET.SubElement(options, "Option", {"type": "QString", "name": key, "value": value})
    for key, value in settings.items():
        ET.SubElement(layer, "prop", {"k": key, "v": value})


def _raster_part(root: ET.Element, classes: Mapping[int, str], content: Content, count: int | None) -> None:
    """A renderer for the one band."""
    pipe = ET.SubElement(root, "pipe")
    opacity = "1" if content == "scores" else str(OPACITY)
    renderer = ET.SubElement(pipe, "rasterrenderer", {"band": "1", "opacity": opacity, "alphaBand": "-1"})
    ET.SubElement(renderer, "rasterTransparency")
    if content == "classes":
        renderer.set("type", "paletted")
        palette = ET.SubElement(renderer, "colorPalette")
        for label, name in ((0, "background"), *sorted(classes.items())):
            colour = class_color(label)
            entry = {"value": str(label), "color": _hexadecimal(colour), "alpha": str(colour[3]), "label": name}
            ET.SubElement(palette, "paletteEntry", entry)
    elif content == "ids":
        _ramp(renderer, count or 1)
    else:
        renderer.attrib |= {"type": "singlebandgray", "grayBand": "1", "gradient": "BlackToWhite"}
        stretch = ET.SubElement(renderer, "contrastEnhancement")
        for key, value in (("minValue", "0"), ("maxValue", "1"), ("algorithm", "StretchToMinimumMaximum")):
            ET.SubElement(stretch, key).text = value
    ET.SubElement(pipe, "rasterresampler", {"maxOversampling": "2"})


def _ramp(renderer: ET.Element, count: int) -> None:
    """Colours that change with the id, for neighbours are close in number and must differ."""
    ends = {"classificationMin": "1", "classificationMax": str(count)}
    renderer.attrib |= {"type": "singlebandpseudocolor", **ends}
    shader = ET.SubElement(renderer, "rastershader")
    values = {"colorRampType": "INTERPOLATED", "minimumValue": "1", "maximumValue": str(count), "clip": "0"}
    ramp = ET.SubElement(shader, "colorrampshader", values)
    for stop in range(_ID_STOPS + 1):
        value = 1 + (count - 1) * stop / _ID_STOPS
        colour = {"color": _hexadecimal(class_color(stop + 1)), "alpha": "255", "label": f"{value:.0f}"}
        ET.SubElement(ramp, "item", {"value": f"{value:.6g}", **colour})


def _hexadecimal(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour[:3])


def write_style(path: Path | str, document: str) -> Path:
    """Write a style file; it appears only when it is complete.

    Raises:
        OutputError: it cannot be written.
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        temporary.write_text(document, encoding="utf-8")
    return path


class StyleSink(RefusingSink):
    """The style file of results that share a name; knows classes and count, and takes nothing else."""

    takes: Takes = "nothing"

    def __init__(self, path: Path | str, *, vector: bool, raster: Content | None) -> None:
        """Say which parts the document has; see :func:`style_document`."""
        self.path = Path(path)
        self.vector, self.raster = vector, raster
        self._document = ""

    @classmethod
    def beside(cls, sinks: Sequence[VectorSink | RasterSink]) -> list["StyleSink"]:
        """One style for every name; a second raster of the same name is left out, as QGIS could not tell them apart."""
        found: dict[Path, StyleSink] = {}
        for sink in sinks:
            path = sink.path.with_suffix(".qml")
            style = found.setdefault(path, cls(path, vector=False, raster=None))
            if isinstance(sink, VectorSink):
                style.vector = True
            else:
                style.raster = style.raster or sink.content
        return list(found.values())

    def start(
        self, grid: Grid, classes: Mapping[int, str], provenance: Mapping[str, object], *, count: int | None = None
    ) -> None:
        """Make the document; see :class:`Sink`."""
        self._document = style_document(classes, vector=self.vector, raster=self.raster, count=count)

    def commit(self, further: Mapping[str, object] | None = None) -> Path:
        """Write the file; see :class:`Sink`."""
        if not self._document:
            raise OutputError(f"{self.path} was not started, or is finished; call start() first")
        document, self._document = self._document, ""
        return write_style(self.path, document)

    def abort(self) -> None:
        """Nothing was written."""
        self._document = ""
