"""Source, teacher and student: three sets of tensors that take turns in one network, so that one backbone serves all.

The student's tensors are the network's own. The source's and the teacher's are put in their place for a forward pass
without gradients, by pointer, and taken out again. The teacher follows the student as an exponential moving average.

Source:
    Mean teacher, arXiv:1703.01780, section 2. A frozen anchor beside teacher and student: WeSAM, arXiv:2312.03502,
    section 3.2; zhang-haojie/wesam ``adaptation.py``.
Deviations:
    From the released code of WeSAM, whose teacher is the student itself with a gradient (its moving average is
    commented out): here the teacher is the moving average and never has a gradient. Moved are the parts of an adapter
    and not a LoRA of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.bundle import load_bundle
from samgraft.adapters.config import config_from_dict
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import GRAFTS
from samgraft.errors import ConfigError
from samgraft.recipes.adaptation.config import Moving

State = dict[str, Tensor]


def load_network(
    path: str | PathLike[str], backbone: Backbone, new: Mapping[str, Mapping[str, Any]]
) -> tuple[Grafted, tuple[str, ...]]:
    """The source adapter on its backbone, with new grafts on top, and their names; answers are those of the adapter.

    Args:
        path: Adapter file.
        backbone: What it was trained on, without grafts.
        new: Graft name -> options; empty to leave the adapter as it is.

    Raises:
        CheckpointError: the file is damaged or belongs to another backbone.
        ConfigError: a new graft wants a layer that the adapter has taken, or would change its answers from the start.
            The backbone is left bare.
    """
    grafted = load_bundle(path, backbone)
    if not new:
        return grafted, ()
    state = {name: value.detach().clone() for name, value in grafted.graft_state().items()}
    configs, prompter, decoder = dict(grafted.configs), grafted.prompter_config, grafted.decoder_config
    grafted.detach()
    names = []
    for method, options in new.items():
        config = config_from_dict(GRAFTS, {"method": method, **options})
        if config.init != "identity":
            raise ConfigError(
                f"new graft {method!r} has init {config.init!r}, which changes the source adapter's answers before "
                "anything is learned; leave init out"
            )
        free = (f"{method}_target{number or ''}" for number in range(len(configs) + 1))
        names.append(next(name for name in free if name not in configs))
        configs[names[-1]] = config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same values at every start, so that a run can be resumed
        both = attach(backbone, configs, prompter=prompter, decoder=decoder)
    both.load_graft_state({**both.graft_state(), **state})
    return both, tuple(names)


def moving_parameters(grafted: Grafted, moving: Moving, new: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """Name (as in ``graft_state``) -> what is moved.

    Args:
        grafted: The network.
        moving: Which kind of part.
        new: Names of the grafts that :func:`load_network` put on top.

    Raises:
        ConfigError: nothing is.
    """
    parts: dict[str, nn.Module] = {f"grafts.{name}": part for name, part in grafted.grafts.items()}
    heads = {"prompter": grafted.prompter, "decoder": grafted.decoder}
    if moving == "head":
        parts = {}
    if moving in ("all", "head"):
        parts |= {name: part for name, part in heads.items() if part is not None}
    if moving == "new":
        parts = {f"grafts.{name}": grafted.grafts[name] for name in new}
    found = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.named_parameters()}
    if not found:
        raise ConfigError(f"moving is {moving!r}, and the adapter has no such part; choose 'all'")
    return found


class Networks:
    """Three voices of one network.

    Args:
        grafted: The source adapter on its backbone; its tensors become the student's.
        parameters: Name -> what is moved; the rest belongs to all three.
    """

    def __init__(self, grafted: Grafted, parameters: Mapping[str, nn.Parameter]) -> None:
        """All three are the source."""
        self.grafted, self.parameters = grafted.eval(), dict(parameters)
        for parameter in grafted.trainable_parameters():
            parameter.requires_grad_(False)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.source: State = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.teacher: State = {name: value.clone() for name, value in self.source.items()}

    @contextmanager
    def speaking(self, state: Mapping[str, Tensor]) -> Iterator[Grafted]:
        """The network with other tensors (``source``, ``teacher``, or kept ones), without gradients."""
        own = {name: value.data for name, value in self.parameters.items()}
        try:
            for name, value in self.parameters.items():
                value.data = state[name]
            with torch.no_grad():
                yield self.grafted
        finally:
            for name, value in self.parameters.items():
                value.data = own[name]

    def follow(self, momentum: float) -> None:
        """Teacher = momentum x teacher + (1 - momentum) x student."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                self.teacher[name].mul_(momentum).add_(value.detach(), alpha=1 - momentum)

    def student(self) -> State:
        """A copy of the student's tensors."""
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    def set_student(self, state: Mapping[str, Tensor]) -> None:
        """Put tensors into the student."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(state[name])

    @contextmanager
    def bare(self) -> Iterator[Backbone]:
        """The frozen backbone without anything attached."""
        backbone = self.grafted.detach()
        try:
            with torch.no_grad():
                yield backbone
        finally:
            self.grafted.install()


def copied(state: Mapping[str, Tensor]) -> State:
    """The same values in tensors of their own, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in state.items()}
