"""What the channels of a network mean, by kind of task and kind of head."""

from samgraft.adapters.config import MethodConfig
from samgraft.adapters.decoders.distances import DistancesConfig
from samgraft.adapters.graft import Grafted
from samgraft.adapters.prompts.objects import finds_objects
from samgraft.errors import ConfigError
from samgraft.recipes.config import Kind
from samgraft.recipes.representations.base import Maps, ObjectMaps, Representation, WindowObjects
from samgraft.recipes.representations.classes import BorderMaps, ClassMaps
from samgraft.recipes.representations.distances import DistanceMaps
from samgraft.recipes.representations.objects import HeadObjects

__all__ = [
    "BorderMaps",
    "ClassMaps",
    "DistanceMaps",
    "HeadObjects",
    "Maps",
    "ObjectMaps",
    "Representation",
    "WindowObjects",
    "head_of",
    "represent",
]

_OF_HEADS: dict[tuple[Kind, type[MethodConfig]], type[Representation]] = {("instance", DistancesConfig): DistanceMaps}
"""Heads that give neither class maps nor objects."""
_OF_CLASSES: dict[Kind, type[Representation]] = {"semantic": ClassMaps, "instance": BorderMaps}
"""Every other head."""


def represent(kind: Kind, head: MethodConfig | None, *, classes: int, border: int = 1) -> Representation:
    """The representation of a task with a head.

    Args:
        kind: Of the task.
        head: Configuration of the decoder, or of the prompter where there is none; see :func:`head_of`.
        classes: Foreground classes of the data set.
        border: ``task.border``.

    Raises:
        ConfigError: a head that does not serve this kind of task.
    """
    if head is not None and finds_objects(head):
        served: dict[Kind, type[Representation]] = {"instance": HeadObjects}
    else:
        served = {known: own for (known, config), own in _OF_HEADS.items() if config is type(head)}
    chosen, kinds = served.get(kind), list(served)
    if chosen is None and kinds:
        method = "" if head is None else head.method
        raise ConfigError(f"head {method!r} is for task.kind {' or '.join(kinds)}; the task is {kind!r}; change one")
    return (chosen or _OF_CLASSES[kind]).for_head(head, classes=classes, border=border)


def head_of(grafted: Grafted) -> MethodConfig | None:
    """Configuration of what gives the answers: the decoder, else the prompter, else None."""
    return grafted.decoder_config or grafted.prompter_config
