"""Points, boxes, polygons and lines of a vector file, brought onto the pixels of an image.

Coordinates are reprojected to the CRS of the image. A polygon gives the upright box around it in pixels, a point stands
at its place, several points of one feature are one object, a line of two points is a measured diameter.
"""

from pathlib import Path

import shapely
from shapely.geometry.base import BaseGeometry

from samgraft.domains.detections.base import Detection, Detections, box_of_edges
from samgraft.domains.remote_sensing.vector import VectorObject, field_names, read_layer
from samgraft.grid import Grid

CLASS_FIELDS = ("class_name", "class", "label", "category")
"""Fields that hold the class where none is named; the first one that is there and holds text or numbers."""
SCORE_FIELDS = ("score", "confidence")


def read_features(
    path: Path | str,
    grid: Grid,
    *,
    class_field: str | None = None,
    score_field: str | None = None,
    layer: str | None = None,
) -> Detections:
    """Read the features of a vector file as detections in pixels of an image.

    Args:
        path: GeoJSON, GeoPackage, shapefile.
        grid: Grid of the raster or picture.
        class_field: Field that holds the class; None takes ``class_name``, ``class``, ``label`` or ``category`` if
            there is one.
        score_field: Field that holds the confidence; None takes ``score`` or ``confidence`` if there is one.
        layer: Layer name, where a file has several.

    Returns:
        Features that touch the image; those that do not, and those of other kinds, are named in ``left_out``.

    Raises:
        InputError: the file is missing or damaged, or has no such field or layer.
        GeometryError: only one of file and image has a CRS, or the image is a volume.
    """
    if class_field is None or score_field is None:
        names = field_names(path, layer) if Path(path).exists() else ()
        class_field = class_field or next((name for name in CLASS_FIELDS if name in names), None)
        score_field = score_field or next((name for name in SCORE_FIELDS if name in names), None)
    features = read_layer(path, class_field=class_field, layer=layer, score_field=score_field)
    touching = features.on(grid)
    seen = {feature.source_id for feature in touching}
    left_out = [f"feature {number}: outside the image" for number in features.ids if number not in seen]
    found = []
    for feature in touching:
        one = _detection(feature)
        if one is None:
            left_out.append(f"feature {feature.source_id}: a {feature.geometry.geom_type}")
        else:
            found.append(one)
    return Detections(found=tuple(found), left_out=tuple(left_out))


def _detection(feature: VectorObject) -> Detection | None:
    """The feature as a box, points or a line; None for what is neither."""
    geometry: BaseGeometry = feature.geometry
    source = f"feature {feature.source_id}"
    if geometry.geom_type in ("Polygon", "MultiPolygon"):
        box = box_of_edges(*(float(v) for v in geometry.bounds))
        return Detection(box=box, class_name=feature.class_name, score=feature.score, source=source)
    places = shapely.get_coordinates(geometry) - 0.5  # from pixel corners to pixel centres
    if geometry.geom_type in ("Point", "MultiPoint"):
        points = tuple((float(x), float(y), 1) for x, y in places)
        return Detection(points=points, class_name=feature.class_name, score=feature.score, source=source)
    if geometry.geom_type == "LineString" and len(places) == 2:
        (x0, y0), (x1, y1) = places.tolist()
        return Detection(line=(x0, y0, x1, y1), class_name=feature.class_name, score=feature.score, source=source)
    return None
