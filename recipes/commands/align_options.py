"""Options of ``samgraft segment`` that say how an adapter sees a new scene."""

import argparse
from typing import Any

from samgraft.recipes.commands.parsing import PlainParser

NAMES = ("auto", "histogram", "reinhard", "macenko", "moments", "fourier", "none")
"""Choices of ``--align``; here as well, since ``--help`` should not import the methods."""
VIEWS = (1, 4, 8)
"""Choices of ``--views``, for the same reason."""


def add_align(parser: PlainParser) -> None:
    """Add the options."""
    group = parser.add_argument_group("how an adapter sees a scene of another scanner, stain or city (docs/align.md)")
    group.add_argument(
        "--align",
        default=None,
        choices=NAMES,
        help="move intensities or colours towards those of the adapter's training images; one map for the whole scene",
    )
    group.add_argument(
        "--align-source",
        default=None,
        metavar="FOLDER",
        help="training images of an adapter whose file does not remember them",
    )
    group.add_argument(
        "--spacing",
        default=None,
        choices=("adapter",),
        help="volumes: show the network as many mm per pixel as in training (rasters: see --gsd)",
    )
    group.add_argument(
        "--views",
        type=int,
        default=1,
        choices=VIEWS,
        help="pictures, rasters: mean of 4 mirrored, or 8 mirrored and turned views (volumes: see --flips)",
    )
    group.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="S",
        help="objects of very different size: look at S times the size of training, too, such as 1.4 1 0.7, and take "
        "each object from where it is found best",
    )


def align_options(values: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of ``samgraft.segment``, of those that were given."""
    found = {name: v for name in ("align", "align_source", "spacing") if (v := getattr(values, name)) is not None}
    found |= {} if values.views == 1 else {"views": values.views}
    return found if values.scales == [1] else found | {"scales": values.scales}
