"""Frozen modules that are wrapped, by peft or by a class of this project: install, remove, merge, and what is trained.

The trained parts are held apart from the wrappers, so that no state contains a frozen tensor. Places are looked up
once, on the frozen modules themselves: a wrapper around an MLP and one around a layer inside it do not meet.
"""

from collections.abc import Mapping, Sequence
from typing import cast

from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.grafts.base import Graft, GraftConfig, replace_module
from samgraft.adapters.grafts.peft_linear import MergedWeights, merged_tensors, trained_parts


class Wrapper(nn.Module):
    """A wrapper of this project's own.

    Attributes:
        base_layer: The frozen module.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        """Hold the frozen module."""
        super().__init__()
        self.base_layer = base_layer

    def parts(self) -> dict[str, nn.Module]:
        """What is trained: every child but the frozen module."""
        return {name: child for name, child in self.named_children() if child is not self.base_layer}

    def merged(self) -> dict[str, Tensor]:
        """Tensors with which the frozen module alone gives the same; empty if no tensors can."""
        return {}


class Wrapped(nn.Module):
    """Modules of a backbone, each with a wrapper. Holds what is trained: no frozen tensor.

    Keys of the state are ``parts.<name>.<part of the wrapper>...``, with "_" for "." in names.

    Args:
        backbone: Where the modules are; only read.
        wrappers: Path in the backbone -> (name of the part, its wrapper).
    """

    def __init__(self, backbone: Backbone, wrappers: Mapping[str, tuple[str, nn.Module]]) -> None:
        """Look up the places; the backbone is not touched."""
        super().__init__()
        self.parts = nn.ModuleDict()
        self.paths = frozenset(wrappers)
        self._places: list[tuple[nn.Module, str, nn.Module]] = []
        for path, (name, wrapper) in wrappers.items():
            parent, _, child = path.rpartition(".")
            self._places.append((backbone.get_submodule(parent), child, wrapper))
            parts = wrapper.parts() if isinstance(wrapper, Wrapper) else trained_parts(cast(BaseTunerLayer, wrapper))
            self.parts[name.replace(".", "_")] = nn.ModuleDict(parts)

    def train(self, mode: bool = True) -> "Wrapped":
        """Follow ``mode``; DoRA's layer looks at its own flag to see whether there is dropout."""
        super().train(mode)
        for _, _, wrapper in self._places:
            if isinstance(wrapper, PeftLinear):
                wrapper.training = mode
        return self

    def install(self) -> None:
        """Put each wrapper in the place of its module."""
        for parent, child, wrapper in self._places:
            replace_module(parent, child, wrapper)

    def remove(self) -> None:
        """Put the frozen modules back: those inside the wrappers, which may have been exchanged (int8)."""
        for parent, child, wrapper in self._places:
            replace_module(parent, child, _inside(wrapper))

    def merge(self, merged: MergedWeights) -> None:
        """Exchange tensors of the frozen modules for those that make the wrappers superfluous, and remove these."""
        for _, _, wrapper in self._places:
            own = isinstance(wrapper, Wrapper)
            tensors = cast(Wrapper, wrapper).merged() if own else merged_tensors(cast(BaseTunerLayer, wrapper))
            merged.put(_inside(wrapper), tensors)
        self.remove()


def _inside(wrapper: nn.Module) -> nn.Module:
    return cast(nn.Module, wrapper.base_layer)


class WrappedGraft(Graft):
    """A graft that is wrappers and nothing else."""

    def __init__(self, config: GraftConfig, points: Sequence[str], linears: Wrapped) -> None:
        """Hold the wrappers."""
        super().__init__(config, points)
        self.linears = linears
        self._merged = MergedWeights()

    def claims(self) -> frozenset[str]:
        """Paths of the wrapped modules."""
        return self.linears.paths

    def install(self, backbone: Backbone) -> None:
        """Wrap the modules."""
        del backbone
        self.linears.install()

    def remove(self, backbone: Backbone) -> None:
        """Unwrap the modules."""
        del backbone
        self.linears.remove()

    def merge(self, backbone: Backbone) -> None:
        """Fold the parts into the frozen weights and unwrap, or refuse."""
        if self.merge_refusal:
            super().merge(backbone)
        self.linears.merge(self._merged)

    def unmerge(self, backbone: Backbone) -> None:
        """Put the original weights and the wrappers back."""
        if len(self._merged):
            self._merged.restore()
            self.install(backbone)
