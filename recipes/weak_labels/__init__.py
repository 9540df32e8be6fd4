"""Weak labels of files (boxes, points, scribbles, coarse outlines) and partial ones, in one form."""
