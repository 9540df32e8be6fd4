"""From the task's settings to a backbone with grafts and a head."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from samgraft.adapters import DECODERS, GRAFTS, PROMPTERS
from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.backbones.hub import load_backbone
from samgraft.adapters.config import MethodConfig, config_from_dict
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.prompts.objects import finds_objects
from samgraft.errors import ConfigError
from samgraft.recipes.config import TaskConfig


def build_network(task: TaskConfig, *, num_classes: int, backbone: Backbone | None = None) -> Grafted:
    """Attach what ``task`` names to its backbone.

    Args:
        task: Names and options.
        num_classes: Foreground channels of the head.
        backbone: Ready backbone; None loads ``task.backbone``.

    Raises:
        NoMatchError: an unknown graft, head or backbone.
        ConfigError: an option that does not exist, or a head that gives no class maps.
    """
    grafts = {name: config_from_dict(GRAFTS, {"method": name, **options}) for name, options in task.grafts.items()}
    decoder, prompter = _head(task.head, task.head_options, num_classes)
    frozen = backbone if backbone is not None else load_backbone(task.backbone)
    return attach(frozen, grafts, prompter=prompter, decoder=decoder)


def _head(name: str, options: Mapping[str, Any], num_classes: int) -> tuple[Any, Any]:
    """(decoder config, prompter config); one of the two is named, the other follows."""
    if name in DECODERS:
        return config_from_dict(DECODERS, _values(name, DECODERS.get(name), options, num_classes)), None
    if name in PROMPTERS:
        entry = PROMPTERS.get(name)
        values = _values(name, entry, options, num_classes)
        if "num_classes" not in values and not finds_objects(entry):
            raise ConfigError(
                f"prompter {name!r} gives neither class maps nor objects; choose head 'class_tokens' or 'autosam'"
            )
        return None, config_from_dict(PROMPTERS, values)
    known = ", ".join([*DECODERS.names(), *PROMPTERS.names()])
    raise ConfigError(f"unknown head {name!r}; known decoders and prompters: {known}")


def _values(name: str, entry: type[MethodConfig], options: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """What ``config_from_dict`` takes: the options, and the number of classes where the head has one."""
    known = {field.name for field in fields(entry)}
    return {"method": name, **({"num_classes": num_classes} if "num_classes" in known else {}), **options}
