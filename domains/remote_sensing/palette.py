"""One palette for classes: colour tables of rasters, and the style files beside rasters and vectors."""

import numpy as np

Colour = tuple[int, int, int, int]
"""Red, green, blue, alpha; 0 to 255."""


def class_colors(count: int) -> dict[int, Colour]:
    """Colour table for ``count`` classes and a transparent background: label -> (red, green, blue, alpha), 0 to 255.

    Hues step by the golden ratio, so that neighbouring labels differ.
    """
    return {label: class_color(label) for label in range(min(count, 255) + 1)}


def class_color(label: int) -> Colour:
    """Colour of one class; 0 is transparent."""
    if label == 0:
        return (0, 0, 0, 0)
    hue = (label * 0.61803398875) % 1.0 * 6.0
    value = 255 - 25 * (label // 16 % 4)
    ramp = np.clip([abs(hue - 3) - 1, 2 - abs(hue - 2), 2 - abs(hue - 4)], 0.15, 1.0) * value
    return int(ramp[0]), int(ramp[1]), int(ramp[2]), 255
