"""Where a configuration attaches: what differs in a backbone before and after ``attach``, not what a table says."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.backbones.sites import BLOCK_SITES
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import Graft

SITES = {
    **{name: f"I{number}" for number, name in enumerate(BLOCK_SITES, start=1)},
    "tokens": "tokens",
    "across_slices": "I3",
    "planes": "I0",
    "patch_embed": "I0",
    "neck": "I8",
}
"""Name of a list of grafted modules -> insertion point."""

LAYERS = (
    (r"vision_encoder\.(patch_embed|pos_embed)", "I0", "patch"),
    (r"vision_encoder\.layers\.\d+\.layer_norm1", "", "norm1"),
    (r"vision_encoder\.layers\.\d+\.attn\.qkv", "I2", "qkv"),
    (r"vision_encoder\.layers\.\d+\.attn\.proj", "I3", "proj"),
    (r"vision_encoder\.layers\.\d+\.attn", "", "attention"),
    (r"vision_encoder\.layers\.\d+\.layer_norm2", "", "norm2"),
    (r"vision_encoder\.layers\.\d+\.mlp", "I7", "mlp"),
    (r"vision_encoder\.neck", "I8", "neck"),
    (r"mask_decoder\.transformer", "I9", "decoder"),
    (r"mask_decoder", "I10", "head"),
    (r"prompt_encoder|shared_image_embedding", "prompts", "prompts"),
)
"""(path of a frozen module or tensor, point where a part replaces it, layer of the figure)."""

POINTS = tuple(dict.fromkeys([*(f"I{number}" for number in range(11)), "tokens", "prompts"]))
"""Everything that can be marked as used."""


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """What a configuration changes in a backbone."""

    points: frozenset[str] = frozenset()
    """Insertion points where a part is added; see ``POINTS``."""
    layers: frozenset[str] = frozenset()
    """Layers whose own tensors are exchanged for trainable ones; third column of ``LAYERS``."""
    wrapped: frozenset[str] = frozenset()
    """Layers without a number that a part stands around."""
    blocks: tuple[int, ...] = ()
    """Encoder blocks in which that happens."""
    num_blocks: int = 0
    other: tuple[str, ...] = ()
    """Changed paths that are none of these."""


def measure(backbone: Backbone, config: Any, role: str) -> Attachment:
    """Attach ``config`` to ``backbone``, compare, and detach it again.

    Args:
        backbone: A real one, not on the meta device; it is as before afterwards.
        config: Of a graft, prompter or decoder.
        role: "graft", "prompter" or "decoder".
    """
    before = _Picture(backbone)
    with attached(backbone, config, role) as grafted:
        found = _Findings(before, _Picture(backbone))
        texts = [point for graft in grafted.grafts.children() for point in cast(Graft, graft).points]
    texts += [] if role == "graft" else [config.point]
    named = {point for text in texts for point in re.findall(r"\bI(?:10|\d)\b", text)}
    if role == "prompter":
        named.add("prompts")
    return Attachment(
        points=frozenset(found.points | named),
        layers=frozenset(found.layers),
        wrapped=frozenset(found.wrapped),
        blocks=tuple(sorted(found.blocks)),
        num_blocks=backbone.spec.num_blocks,
        other=tuple(sorted(found.other)),
    )


@contextmanager
def attached(backbone: Backbone, config: Any, role: str) -> Iterator[Grafted]:
    """The backbone with one part of any role."""
    grafted = attach(backbone, config) if role == "graft" else attach(backbone, **{role: config})
    try:
        yield grafted
    finally:
        grafted.detach()


class _Picture:
    """Objects and hooks of a module tree, by path; it keeps the objects, so that none takes the address of another."""

    def __init__(self, backbone: nn.Module) -> None:
        self.modules = dict(backbone.named_modules())
        self.tensors = dict(backbone.named_parameters())
        self.hooks = {path: len(m._forward_hooks) + len(m._forward_pre_hooks) for path, m in self.modules.items()}


class _Findings:
    """Differences of two pictures, sorted into points and layers."""

    def __init__(self, before: _Picture, after: _Picture) -> None:
        self.points: set[str] = set()
        self.layers: set[str] = set()
        self.wrapped: set[str] = set()
        self.blocks: set[int] = set()
        self.other: set[str] = set()
        modules = {path for path, module in after.modules.items() if before.modules.get(path) is not module}
        hooked = {path for path, count in after.hooks.items() if count != before.hooks.get(path, 0)}
        tensors = {path for path, tensor in after.tensors.items() if before.tensors.get(path) is not tensor}
        for path in modules | hooked:
            self._sort(path, exchanged=False)
        for path in tensors:
            if path.rpartition(".")[0] not in modules:
                self._sort(path, exchanged=True)

    def _sort(self, path: str, *, exchanged: bool) -> None:
        block = re.search(r"(?:layers|block_sites)\.(\d+)\.", path)
        if block and "mask_decoder" not in path:
            self.blocks.add(int(block[1]))
        site = re.match(r"(?:block_sites\.\d+|encoder_sites)\.(\w+)", path)
        if site and site[1] in SITES:
            self.points.add(SITES[site[1]])
            return
        for pattern, point, layer in LAYERS:
            if re.search(pattern, path):
                into = self.layers if exchanged else self.points if point else self.wrapped
                into.add(point if into is self.points else layer)
                return
        self.other.add(path)
