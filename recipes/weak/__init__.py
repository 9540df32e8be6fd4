"""Training from labels that are no masks (boxes, points, scribbles, coarse polygons), and where classes are missing."""
