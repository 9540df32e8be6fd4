"""Training from labels that are no masks: boxes, points, scribbles, coarse polygons, and sets where classes are missing."""
