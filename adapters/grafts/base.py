"""What every graft is: a frozen configuration that builds a module, which is installed in a backbone and removed.

A graft changes what the frozen blocks compute, at named insertion points (docs/architecture.md). Two kinds exist: site
grafts append modules to the lists of ``backbone.block_sites`` and linear grafts replace an ``nn.Linear`` by a wrapper.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.config import MethodConfig, check_choice, check_positive
from samgraft.errors import ConfigError, NoMatchError

SITE_LABELS = {
    "block_input": "I1 block input",
    "qkv": "I2 q/k/v slices",
    "attention_output": "I3 attention output",
    "after_attention": "I4 after attention",
    "parallel_mlp_raw": "I5 parallel to MLP, x",
    "parallel_mlp": "I6 parallel to MLP, norm2(x)",
    "tokens": "extra tokens in attention",
    "across_slices": "I3 attention across slices",
}
"""Name of a list in ``BlockSites`` -> how it is called in tables."""


@dataclass(frozen=True, kw_only=True)
class GraftConfig(MethodConfig):
    """Options that every graft has."""

    part: ClassVar[Literal["encoder", "decoder"]] = "encoder"
    """What it changes. Grafts on the decoder leave the encoder's features as they are, so those can be kept."""
    volumetric: ClassVar[bool] = False
    """Whether it looks at other slices of a volume, so that it needs an encoder that is told of them (``depth``)."""
    blocks: str | tuple[int, ...] = "all"
    """Which encoder blocks: "all", "last:N", "first:N", or indices from 0. Late blocks keep the prefix cacheable."""
    init: Literal["identity", "published"] = "identity"
    """"identity": output bit-equal to the frozen model at step 0. "published": as the paper initialises."""
    lr_factor: float = 1.0
    """Learning rate of these parts, as a multiple of the run's. Parts that start as copies want less than new ones."""

    def __post_init__(self) -> None:
        """Check values that do not need a backbone."""
        check_choice(self.method, "init", self.init, ("identity", "published"))
        check_positive(self.method, "lr_factor", self.lr_factor)
        if self.part == "decoder" and self.blocks != "all":
            raise ConfigError(
                f"{self.method}: blocks is {self.blocks!r}, but it works on the decoder; leave blocks='all'"
            )

    def build(self, backbone: Backbone) -> "Graft":
        """Create the module for ``backbone`` without touching it.

        Raises:
            NoMatchError: a block or target does not exist there.
        """
        raise NotImplementedError


class Graft(nn.Module, ABC):
    """Trainable parts of one method, plus how to put them in and take them out.

    Attributes:
        config: What built it.
        points: Insertion points in words, for the table of trainable parts.
    """

    merge_refusal: ClassVar[str] = ""
    """Why the method cannot be merged into the weights; empty if it can."""
    compile_refusal: ClassVar[str] = ""
    """Why its blocks cannot pass ``torch.compile`` without a break; empty if they can."""
    merge_first: ClassVar[bool] = False
    """Whether it changes what frozen weights give, so that it has to be merged before others add to those weights."""

    def __init__(self, config: GraftConfig, points: Sequence[str]) -> None:
        """Remember the configuration."""
        super().__init__()
        self.config = config
        self.points = tuple(points)

    @abstractmethod
    def claims(self) -> frozenset[str]:
        """Places that only one graft can have (module paths); empty for sites, which add up."""

    @abstractmethod
    def install(self, backbone: Backbone) -> None:
        """Put the parts into ``backbone``. Called once, after everything has been checked."""

    @abstractmethod
    def remove(self, backbone: Backbone) -> None:
        """Take the parts out; afterwards the module tree has the same names and the same objects as before."""

    def merge(self, backbone: Backbone) -> None:
        """Fold the parts into the frozen weights; the original parameter objects are kept for :meth:`unmerge`.

        Raises:
            ConfigError: the method cannot be merged.
        """
        raise ConfigError(f"graft {self.config.method!r} cannot be merged: {self.merge_refusal}; keep it attached")

    def unmerge(self, backbone: Backbone) -> None:
        """Undo :meth:`merge` bit-exactly. Nothing to do for methods that do not merge."""

    def penalty(self) -> Tensor | None:
        """Scalar to add to the loss of the last forward pass in training, or None."""
        return None


class SiteGraft(Graft):
    """A graft that appends modules to site lists of blocks.

    Keys of its state are ``blocks.<block>.<site>.<...>``.
    """

    def __init__(self, config: GraftConfig) -> None:
        """Start empty; call :meth:`place` for every part."""
        super().__init__(config, ())
        self.blocks = nn.ModuleDict()

    def place(self, block: int, site: str, module: nn.Module) -> None:
        """Plan ``module`` for ``site`` (a key of ``SITE_LABELS``) of ``block``."""
        if str(block) not in self.blocks:
            self.blocks[str(block)] = nn.ModuleDict()
        cast(nn.ModuleDict, self.blocks[str(block)])[site] = module
        if SITE_LABELS[site] not in self.points:
            self.points = (*self.points, SITE_LABELS[site])

    def place_in_blocks(self, backbone: Backbone, makers: Mapping[str, Callable[[], nn.Module]]) -> None:
        """Plan parts for every chosen block, on the device and in the type of ``backbone``, which is only read.

        Args:
            backbone: Where the blocks are.
            makers: Site -> what builds the part of one block.
        """
        like = next(backbone.parameters())
        for block in select_blocks(self.config.blocks, backbone.spec.num_blocks):
            for site, make in makers.items():
                site_list(backbone, block, site)
                with torch.device(like.device):
                    part = make()
                self.place(block, site, part.to(like.dtype))

    def claims(self) -> frozenset[str]:
        """Sites add up, so nothing is claimed."""
        return frozenset()

    def placements(self) -> list[tuple[int, str, nn.Module]]:
        """(block, site, module) of every part."""
        return [(int(b), s, m) for b, parts in self.blocks.items() for s, m in cast(nn.ModuleDict, parts).items()]

    def install(self, backbone: Backbone) -> None:
        """Append every part to its list."""
        for block, site, module in self.placements():
            site_list(backbone, block, site).append(module)

    def remove(self, backbone: Backbone) -> None:
        """Delete every part from its list."""
        for block, site, module in self.placements():
            modules = site_list(backbone, block, site)
            for index in [i for i, other in enumerate(modules) if other is module]:
                del modules[index]


def replace_module(backbone: nn.Module, path: str, module: Any) -> None:
    """Put ``module`` at ``path`` of the module tree."""
    parent, _, name = path.rpartition(".")
    setattr(backbone.get_submodule(parent), name, module)


def site_list(backbone: Backbone, block: int, site: str) -> nn.ModuleList:
    """The list of grafted modules at one insertion point.

    Raises:
        NoMatchError: the backbone offers no such point.
    """
    sites = getattr(backbone, "block_sites", None)
    modules = getattr(sites[block], site, None) if sites is not None and block < len(sites) else None
    if not isinstance(modules, nn.ModuleList):
        raise NoMatchError(
            f"backbone {backbone.spec.name!r} has no insertion point {site!r} in block {block}; choose another graft"
        )
    return modules


def select_blocks(blocks: str | Sequence[int], num_blocks: int) -> tuple[int, ...]:
    """Resolve the ``blocks`` option to sorted indices.

    Args:
        blocks: "all", "last:N", "first:N" or indices.
        num_blocks: How many the backbone has.

    Raises:
        ConfigError: a string of another form, or an index named twice.
        NoMatchError: an index that does not exist, more blocks than there are, or none at all.
    """
    if isinstance(blocks, str):
        kind, _, count = blocks.partition(":")
        if blocks == "all":
            return tuple(range(num_blocks))
        if kind not in ("last", "first") or not count.isdigit():
            raise ConfigError(f"blocks is {blocks!r}; expected 'all', 'last:N', 'first:N' or a list of indices")
        number = int(count)
        if not 0 < number <= num_blocks:
            raise NoMatchError(
                f"blocks {blocks!r} asks for {number} blocks; the backbone has {num_blocks}; nothing was changed"
            )
        return tuple(range(num_blocks - number, num_blocks) if kind == "last" else range(number))
    wanted = tuple(sorted(int(block) for block in blocks))
    bad = [block for block in wanted if not 0 <= block < num_blocks]
    if bad or not wanted:
        raise NoMatchError(
            f"blocks {list(wanted)} name {bad or 'nothing'}; the backbone has 0..{num_blocks - 1}; nothing was changed"
        )
    if len(set(wanted)) < len(wanted):
        raise ConfigError(f"blocks {list(wanted)} name a block twice; name each once")
    return wanted
