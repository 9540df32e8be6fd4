"""Files that say where objects are, without outlining them: COCO, CSV, GeoJSON and GeoPackage."""
