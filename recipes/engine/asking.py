"""What answers prompts where an adapter is at hand."""

from collections.abc import Iterator
from contextlib import contextmanager

from samgraft.adapters.backbones.base import Promptable
from samgraft.adapters.graft import Grafted


@contextmanager
def answering(grafted: Grafted) -> Iterator[Promptable]:
    """The adapter, if its decoder answers prompts or if it leaves decoding to the backbone's mask decoder.

    A decoder that draws class maps takes no prompts, and the grafts were trained for it, not for the backbone's mask
    decoder. Then the backbone answers as it was, and the grafts are out of it for as long.
    """
    if grafted.answers_prompts or grafted.decoder is None:
        yield grafted
        return
    inside = grafted.attached
    try:
        yield grafted.detach()
    finally:
        if inside:
            grafted.install()
