"""Further grafts on a network that has its own already, for as long as a block of code lasts.

with extended(grafted, {"scene": NeckAffineConfig()}) as wider:
...                     # change wider's parameters, save it as a bundle, use it
# the same grafts, tensors and modules as before, bit by bit
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from samgraft.adapters.graft import Grafted
from samgraft.adapters.grafts.base import Graft, GraftConfig
from samgraft.errors import ConfigError


@contextlib.contextmanager
def extended(grafted: Grafted, further: Mapping[str, GraftConfig]) -> Iterator[Grafted]:
    """Install ``further`` beside the grafts of ``grafted``; at the end they are gone and every tensor is as it was.

    Inside the block ``grafted`` is a network like any other: its state, its bundle and its table include what was
    added.

    Args:
        grafted: Attached and not merged.
        further: Name -> configuration; none of the names is taken.

    Yields:
        ``grafted`` itself.

    Raises:
        ConfigError: it is detached or merged, a name is taken, or a graft wants a layer that another one has.
        NoMatchError: a configuration does not fit the backbone.
    """
    if not grafted.attached or grafted.merged:
        state = "merged" if grafted.merged else "detached"
        raise ConfigError(f"the adapter is {state}; it has to be attached, so call unmerge() or install() first")
    before = {key: value.clone() for key, value in grafted.graft_state().items()}
    mode, occupied, backbone = grafted.training, grafted.backbone.occupied, grafted.backbone
    added = _built(grafted, further)
    installed: list[Graft] = []
    try:
        for name, graft in added.items():
            installed.append(graft)
            graft.install(backbone)
            grafted.grafts[name], grafted.configs[name] = graft, graft.config
        backbone.occupied |= bool(added)
        grafted.train(mode)
        yield grafted
    finally:
        for graft in reversed(installed):
            graft.remove(backbone)
        for name in [name for name in added if name in grafted.configs]:
            del grafted.grafts[name]
            del grafted.configs[name]
        backbone.occupied = occupied
        put_back(grafted, before)
        grafted.train(mode)


def put_back(grafted: Grafted, state: Mapping[str, Tensor]) -> None:
    """Copy tensors, taken from ``grafted.graft_state()`` earlier, into it again."""
    with torch.no_grad():
        for key, value in grafted.graft_state().items():
            value.copy_(state[key])


def _built(grafted: Grafted, further: Mapping[str, GraftConfig]) -> dict[str, Graft]:
    """The grafts, checked against those that are there."""
    own = {name: graft for name, graft in grafted.grafts.items() if isinstance(graft, Graft)}
    claimed = {path: name for name, graft in own.items() for path in graft.claims()}
    found: dict[str, Graft] = {}
    for name, config in further.items():
        if name in grafted.configs or not name.isidentifier():
            raise ConfigError(f"graft name {name!r} is taken, or no identifier; choose another one")
        graft = config.build(grafted.backbone)
        for path in graft.claims():
            if path in claimed:
                raise ConfigError(
                    f"grafts {claimed[path]!r} and {name!r} both want layer {path!r}; nothing was changed; drop one"
                )
            claimed[path] = name
        found[name] = graft
    return found
