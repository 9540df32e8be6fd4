"""``samgraft demo``: hands over to ``samgraft.recipes.demo``."""

from collections.abc import Sequence


def run(arguments: Sequence[str]) -> None:
    """Make two example images, segment them, write a report."""
    from samgraft.recipes.demo import run as demo

    demo(arguments)
