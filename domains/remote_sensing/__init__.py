"""Rasters and vectors with a place on the Earth: windowed reading, radiometry, polygons, writers."""
