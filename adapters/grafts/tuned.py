"""Train copies of the backbone's own tensors: only the norms, only the biases, the decoder, or everything.

The frozen tensors are not touched: a trainable copy takes the place of each chosen one while the graft is attached, and
the original object returns when it is detached. A file holds the copies, so that of "full" is as large as the backbone;
it is here as the upper baseline that small grafts are measured against.

Deviations:
    None in what is trained. The published full fine-tuning changes the backbone's own tensors; here they survive.
"""

import re
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

from torch import nn

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.grafts.base import Graft, GraftConfig, select_blocks
from samgraft.adapters.grafts.swapped import SwappedParameters
from samgraft.errors import NoMatchError


@dataclass(frozen=True, kw_only=True)
class TunedConfig(GraftConfig):
    """Which tensors are trained; subclasses say so."""

    point: ClassVar[str]
    """Where they lie, for the table of trainable parts."""

    def patterns(self, backbone: Backbone) -> tuple[str, ...]:
        """Regular expressions for whole paths of parameters below the backbone."""
        raise NotImplementedError

    def build(self, backbone: Backbone) -> "TunedGraft":
        """Copy the chosen tensors of ``backbone``."""
        return TunedGraft(self, backbone)


def _in_blocks(config: GraftConfig, backbone: Backbone, tensors: str) -> str:
    blocks = "|".join(str(block) for block in select_blocks(config.blocks, backbone.spec.num_blocks))
    return rf".*\bvision_encoder\.layers\.({blocks})\.{tensors}"


@dataclass(frozen=True, kw_only=True)
class LayerNormConfig(TunedConfig):
    """Scale and shift of both norms of every block: 4 d parameters per block.

    Source:
        LayerNorm tuning of SAM in micro-sam's study of parameter-efficient methods, arXiv:2502.00418.
    """

    method: ClassVar[str] = "layer_norm"
    point: ClassVar[str] = "norm1, norm2"

    def patterns(self, backbone: Backbone) -> tuple[str, ...]:
        """Weights and biases of both norms."""
        return (_in_blocks(self, backbone, r"layer_norm[12]\.(weight|bias)"),)


@dataclass(frozen=True, kw_only=True)
class BiasConfig(TunedConfig):
    """All biases of every block: 11 d parameters per block.

    Source:
        BitFit, arXiv:2106.10199; on SAM in arXiv:2502.00418.
    """

    method: ClassVar[str] = "bias"
    point: ClassVar[str] = "biases of norms, attention and MLP"

    def patterns(self, backbone: Backbone) -> tuple[str, ...]:
        """Biases of norms, qkv, proj, lin1 and lin2."""
        return (_in_blocks(self, backbone, r".*\.bias"),)


@dataclass(frozen=True, kw_only=True)
class FullDecoderConfig(TunedConfig):
    """The whole mask decoder.

    Source:
        "FT-SAM", the baseline of SAM-Med2D, arXiv:2308.16184; part of most published methods.
    """

    method: ClassVar[str] = "full_decoder"
    part: ClassVar[Literal["encoder", "decoder"]] = "decoder"
    point: ClassVar[str] = "I9, I10 the mask decoder"

    def patterns(self, backbone: Backbone) -> tuple[str, ...]:
        """All tensors of the mask decoder."""
        del backbone
        return (r".*\bmask_decoder\..*",)


@dataclass(frozen=True, kw_only=True)
class FullConfig(TunedConfig):
    """Everything but the prompt encoder, as MedSAM does; or with ``blocks`` the blocks named and what follows them.

    Source:
        MedSAM, arXiv:2304.12306.
    """

    method: ClassVar[str] = "full"
    point: ClassVar[str] = "the whole encoder and decoder"
    lr_factor: float = 0.5
    decoder: bool = True
    """Also train the mask decoder."""

    def patterns(self, backbone: Backbone) -> tuple[str, ...]:
        """Encoder tensors, with the patch embedding if the first block is among the chosen; the decoder's."""
        chosen = select_blocks(self.blocks, backbone.spec.num_blocks)
        early = (r".*\bvision_encoder\.(patch_embed\..*|pos_embed)",) if 0 in chosen else ()
        late = (r".*\bmask_decoder\..*",) if self.decoder else ()
        return (*early, _in_blocks(self, backbone, ".*"), r".*\bvision_encoder\.neck\..*", *late)


class TunedGraft(Graft):
    """Trainable copies, by path of the original with "/" for "."."""

    def __init__(self, config: TunedConfig, backbone: Backbone) -> None:
        """Copy the tensors; ``backbone`` is only read."""
        super().__init__(config, (config.point,))
        patterns = config.patterns(backbone)
        chosen = {
            path: parameter
            for path, parameter in backbone.named_parameters()
            if any(re.fullmatch(pattern, path) for pattern in patterns)
        }
        if not chosen:
            raise NoMatchError(
                f"{config.method}: no tensor of {backbone.spec.name!r} matches {list(patterns)}; nothing was changed"
            )
        self.tensors = nn.ParameterDict(
            {path.replace(".", "/"): nn.Parameter(tensor.detach().clone()) for path, tensor in chosen.items()}
        )
        self._owners = {path: backbone.get_submodule(path.rpartition(".")[0]) for path in chosen}
        self._swapped, self._merged = SwappedParameters(), SwappedParameters()

    def claims(self) -> frozenset[str]:
        """Modules whose tensors are exchanged: nobody else may wrap or exchange them."""
        return frozenset(path.replace("/", ".").rpartition(".")[0] for path in self.tensors)

    def install(self, backbone: Backbone) -> None:
        """Exchange the tensors."""
        del backbone
        self._swap(self._swapped, {path: cast(nn.Parameter, t) for path, t in self.tensors.items()})

    def remove(self, backbone: Backbone) -> None:
        """Put the originals back."""
        del backbone
        self._swapped.restore()

    def merge(self, backbone: Backbone) -> None:
        """Leave the values in the backbone, as tensors that are not trained."""
        self.remove(backbone)
        fixed = {path: nn.Parameter(t.detach().clone(), requires_grad=False) for path, t in self.tensors.items()}
        self._swap(self._merged, fixed)

    def unmerge(self, backbone: Backbone) -> None:
        """Put the trained copies back."""
        if len(self._merged):
            self._merged.restore()
            self.install(backbone)

    def _swap(self, swapped: SwappedParameters, tensors: dict[str, nn.Parameter]) -> None:
        for key, tensor in tensors.items():
            path = key.replace("/", ".")
            swapped.swap(self._owners[path], path.rpartition(".")[2], tensor)
