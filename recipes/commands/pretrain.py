"""``samgraft pretrain``: hands over to ``samgraft.recipes.pretrain.cli``."""

from collections.abc import Sequence


def run(arguments: Sequence[str]) -> None:
    """Train the embedded backbone on procedural images."""
    from samgraft.recipes.pretrain.cli import run as pretrain

    pretrain(arguments)
