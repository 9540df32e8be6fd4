"""What is counted and asked of a built method: parameters on SAM B, L, H and graft-tiny, file, merging, caching."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from samgraft.adapters import DECODERS, GRAFTS, PROMPTERS
from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.backbones.hub import load_backbone
from samgraft.adapters.bundle import save_bundle
from samgraft.adapters.prompts.objects import ObjectHead
from samgraft.errors import ConfigError, SamgraftError
from samgraft.recipes.assemble import build_network
from samgraft.recipes.config import Kind, TaskConfig
from samgraft.recipes.representations import represent
from samgraft.registry import Registry
from tests.adapters.sam_shapes import meta_backbone
from tests.adapters.toy import toy_backbone, toy_image
from tests.reference.attachment import Attachment, attached, measure
from tests.reference.parse import DocText, Option, method_text, options

ROLES: dict[str, Registry[Any]] = {"graft": GRAFTS, "prompter": PROMPTERS, "decoder": DECODERS}
"""Role -> registry."""
TINY = "graft-tiny"
SIZES = {"SAM ViT-B": "b", "SAM ViT-L": "l", "SAM ViT-H": "h"}


@dataclass(frozen=True, kw_only=True)
class Method:
    """One entry of a registry."""

    role: str
    name: str
    page: str
    """Name of its page without a suffix: the method's name, with the role behind it if another role has it too."""
    config: Any
    """The class."""
    text: DocText
    options: tuple[Option, ...]


@dataclass(frozen=True, kw_only=True)
class Count:
    """Trainable parameters on one backbone."""

    backbone: str
    trained: int | None
    """None where the method cannot be built there."""
    total: int
    """Of the frozen backbone."""
    refusal: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a page says in numbers, for the default options."""

    counts: tuple[Count, ...]
    file_bytes: int
    points: str
    """Where it attaches, in the words of the method."""
    attachment: Attachment
    merge_refusal: str
    compile_refusal: str
    frozen_encoder: bool
    late_blocks: int | None
    """Leading blocks whose output can be kept if only the last one is grafted; None where that cannot be chosen."""
    taps: tuple[int, ...]
    """Encoder blocks that a prompter or decoder reads on graft-tiny."""
    recipe_refusal: str
    """Why it cannot be named in a recipe; empty if it can."""


def methods(registries: dict[str, Registry[Any]] | None = None) -> list[Method]:
    """Every registered method, by role and name."""
    entries = [(role, name, reg.get(name)) for role, reg in (registries or ROLES).items() for name in reg.names()]
    homes = [config.__module__ for _, _, config in entries]
    result: list[Method] = []
    for role, name, config in entries:
        taken = any(other.page == name for other in result)
        result.append(
            Method(
                role=role,
                name=name,
                page=f"{name}_{role}" if taken else name,
                config=config,
                text=method_text(config, homes.count(config.__module__)),
                options=tuple(options(config)),
            )
        )
    return result


class Bench:
    """Backbones that are built once: graft-tiny with its weights, SAM B, L and H without values."""

    @cached_property
    def tiny(self) -> Backbone:
        """Attached to and detached from."""
        return load_backbone(TINY)

    @cached_property
    def shapes(self) -> dict[str, Backbone]:
        """Only read: methods are built for them, not attached."""
        return {label: meta_backbone(size) for label, size in SIZES.items()}  # type: ignore[arg-type]

    def facts(self, method: Method) -> Facts:
        """Build ``method`` with its default options wherever it is asked about."""
        config = method.config()
        with attached(self.tiny, config, method.role) as grafted, tempfile.TemporaryDirectory() as folder:
            file_bytes = save_bundle(Path(folder) / "a.graft", grafted).stat().st_size
            graft: Any = next(iter(grafted.grafts.values()), None)
            frozen, taps = grafted.frozen_encoder(), grafted.taps()
        return Facts(
            counts=tuple(self._counts(config)),
            file_bytes=file_bytes,
            points=config.point if graft is None else "; ".join(graft.points),
            attachment=measure(self.tiny, config, method.role),
            merge_refusal=getattr(graft, "merge_refusal", ""),
            compile_refusal=getattr(graft, "compile_refusal", ""),
            frozen_encoder=frozen,
            late_blocks=None if frozen else self._late_blocks(config),
            taps=taps,
            recipe_refusal=recipe_refusal(method),
        )

    def _counts(self, config: Any) -> Iterator[Count]:
        for label, backbone in {**self.shapes, TINY: self.tiny}.items():
            total = sum(parameter.numel() for parameter in backbone.parameters())
            try:
                yield Count(backbone=label, trained=_numel(config.build(backbone)), total=total)
            except (SamgraftError, NotImplementedError) as error:  # the latter: an operator that meta tensors lack
                refusal = str(error).partition("\n")[0]
                yield Count(backbone=label, trained=None, total=total, refusal=refusal)

    def _late_blocks(self, config: Any) -> int | None:
        try:
            with attached(self.tiny, replace(config, blocks="last:1"), "graft") as grafted:
                return grafted.frozen_blocks()
        except SamgraftError:
            return None


def kind_of(method: Method) -> Kind:
    """What a recipe with this head is for: separate objects where it gives nothing else."""
    if method.role == "graft":
        return "semantic"
    try:
        represent("semantic", method.config(), classes=1)
    except ConfigError:
        return "instance"
    return "semantic"


def recipe_refusal(method: Method) -> str:
    """Build what a recipe would build on a toy backbone, and use it once; the message of what refuses that."""
    if method.role == "graft":
        return ""
    image = toy_image()
    try:
        network = build_network(TaskConfig(grafts={}, head=method.name), num_classes=1, backbone=toy_backbone())
        head = network.decoder if network.prompter is None else network.prompter
        if isinstance(head, ObjectHead):
            head.find(network.backbone, network.encode(image), image, {})
        else:
            network.predict(image)
    except ConfigError as error:
        return str(error)
    return ""


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
