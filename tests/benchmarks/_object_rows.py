"""Rows of the benchmark of prompters: what there is in the registries, and what stands beside it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

from torch import nn

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.bundle import read_header
from samgraft.adapters.decoders import DECODERS, DecoderConfig
from samgraft.adapters.grafts import LoraConfig
from samgraft.adapters.grafts.base import GraftConfig
from samgraft.adapters.prompts import PROMPTERS, PrompterConfig
from samgraft.adapters.prompts.objects import ObjectHead
from samgraft.recipes.engine.everything import EverythingConfig
from tests.benchmarks._arms import DROPOUT, GRAFT, UNET
from tests.benchmarks._object_sets import ObjectSet
from tests.benchmarks._train import Optimiser

C = TypeVar("C")
Kind = Literal["head", "references", "maps", "unet", "everything"]
"""How a row works: objects of its own; the same, shown training pictures instead of trained; maps that objects are made
of; a UNet with such maps; everything mode.
"""
HEAD_RATE = 1e-3
"""Learning rate of an ``ObjectHead`` that :data:`RATES` does not name."""
RATES: dict[str, float] = {}
"""Row -> learning rate, where ``--tune`` found another than the kind's."""
STARTED = 0.25
"""Share of its rate with which a row is trained that begins with an adapter, as in the benchmark of grafts."""
CLASSES = ("classes",)
OBJECTS = ("masks", "points", "boxes")
SHOWN = ("in_context", "matcher", "persam", "persam_f", "reference_region")
"""Prompters that find what references show, as one object; nothing, or next to nothing, is trained."""
SHOWN_TOO = ("vrp",)
"""A prompter that is trained, and is shown references in use."""
LORA = LoraConfig(targets=("qkv", "proj", "lin1", "lin2"))
"""For rows that ask what the frozen encoder holds back."""
LOOSE = {"pred_iou_thresh": 0.3, "stability_score_thresh": 0.5}
"""Filters of everything mode under which it says more: average precision asks for many answers in a good order."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    name: str
    kind: Kind
    prompter: str | None = None
    """Name in the registry."""
    decoder: str | None = None
    prompter_options: Mapping[str, Any] = field(default_factory=dict)
    decoder_options: Mapping[str, Any] = field(default_factory=dict)
    everything_options: Mapping[str, Any] = field(default_factory=dict)
    grafts: tuple[GraftConfig, ...] = ()
    """Parts inside the encoder, trained with the rest; without them it stays as it is."""
    views: int = 1
    """Views of a window whose maps are averaged in use; in training there is one."""
    scales: tuple[float, ...] = (1.0,)
    """Scales at which a picture is looked at in use; each object is taken from the best."""
    start: str | None = None
    """Adapter whose tensors it begins with, a file or a name of the package."""
    trained: bool = True
    """False: it is used as it begins."""
    references: bool = False
    """Whether training pictures are shown in use."""
    serves: tuple[str, ...] = (*OBJECTS, *CLASSES)
    """Kinds of sets it is run on."""

    def runs_on(self, chosen: ObjectSet) -> bool:
        """Whether it is run on a set; several scales are for pictures of unknown scale, and aerial ones have one."""
        return chosen.kind in self.serves and (self.scales == (1.0,) or not chosen.aerial)

    def configs(self, chosen: ObjectSet) -> tuple[PrompterConfig | None, DecoderConfig | None]:
        """Configurations for a set: its number of classes, and the settings that all decoders have in common here."""
        prompter = None if self.prompter is None else PROMPTERS.get(self.prompter)(**self.prompter_options)
        decoder = None if self.decoder is None else DECODERS.get(self.decoder)(**self.decoder_options)
        if self.kind != "maps":
            return prompter, decoder
        wanted = {
            "num_classes": 1 if chosen.kind == "classes" else 2,
            "full_resolution": chosen.spec.full_resolution,
            "dropout": DROPOUT,
        }
        return _changed(prompter, wanted, self.prompter_options), _changed(decoder, wanted, self.decoder_options)

    def describe(self, chosen: ObjectSet) -> list[Any]:
        """What the row is, as JSON."""
        found: list[Any] = [self.kind]
        if self.kind == "everything":
            found.append(asdict(self.everything(chosen)))
        found += [graft.to_dict() for graft in self.grafts] + ([self.views] if self.views > 1 else [])
        found += [list(self.scales)] if self.scales != (1.0,) else []
        if self.start is not None:
            found.append({"start": read_header(self.start)["tensors_sha256"], "trained": self.trained})
        return found + [None if config is None else config.to_dict() for config in self.configs(chosen)]

    def everything(self, chosen: ObjectSet) -> EverythingConfig:
        """The package's defaults, in the windows of the set, with the options of the row."""
        return EverythingConfig(tile=chosen.spec.window, overlap=chosen.overlap, **self.everything_options)

    def optimiser(self, chosen: ObjectSet, factor: float | None = None) -> Optimiser:
        """Rate and batch."""
        rate = RATES.get(self.name, {"head": HEAD_RATE, "unet": UNET.lr}.get(self.kind, GRAFT.lr))
        started = 1.0 if self.start is None else STARTED
        return Optimiser(lr=rate * started * (factor or 1.0), batch=chosen.batch)


def _changed(config: C, wanted: Mapping[str, Any], fixed: Mapping[str, Any]) -> C:
    """A configuration with those of the wanted values that it has a field for and that the row does not fix."""
    if config is None:
        return config
    known = {found.name for found in fields(config)}
    return replace(config, **{key: value for key, value in wanted.items() if key in known and key not in fixed})


EMBEDDED: dict[str, Any] = {
    "kind": "maps",
    "decoder": "distances",
    "decoder_options": {"full_resolution": True, "dropout": 0.0},
    "start": "graft-tiny-objects",
    "serves": OBJECTS,
}
"""The adapter in the package, which saw procedural pictures only; and what is trained from there."""
SCALES, WIDE_SCALES = (1.4, 1.0, 0.7), (1.4, 1.0, 0.7, 0.5, 0.35)
"""Best in average precision on held-out training pictures of nuclei; and those with which large nuclei are whole."""
OFTEN: dict[str, Any] = {"views": 8, "scales": SCALES}
"""Each picture is looked at as often as the package can."""
MORE = (
    Row(name="everything", kind="everything", serves=OBJECTS),
    Row(name="everything, loose", kind="everything", everything_options=LOOSE, serves=OBJECTS),
    Row(name="unet", kind="unet"),
    Row(name="sam_det + hq_token", kind="head", prompter="sam_det", decoder="hq_token"),
    Row(name="unet, distances", kind="unet", decoder="distances", serves=OBJECTS),
    Row(name="distances", kind="maps", decoder="distances", serves=OBJECTS),
    Row(
        name="distances, points",
        kind="maps",
        decoder="distances",
        decoder_options={"from_points": True},
        serves=OBJECTS,
    ),
    Row(name="distances, 8 views", kind="maps", decoder="distances", views=8, serves=OBJECTS),
    Row(name="distances, 8 views, 3 scales", kind="maps", decoder="distances", **OFTEN, serves=OBJECTS),
    Row(name="unet, distances, 8 views", kind="unet", decoder="distances", views=8, serves=OBJECTS),
    Row(name="unet, distances, 8 views, 3 scales", kind="unet", decoder="distances", **OFTEN, serves=OBJECTS),
    Row(name="distances, embedded", **EMBEDDED, trained=False),
    Row(name="distances, embedded, 8 views", **EMBEDDED, trained=False, views=8),
    Row(name="distances, from embedded", **EMBEDDED),
    Row(name="distances, from embedded, 8 views", **EMBEDDED, views=8),
    Row(name="distances, from embedded, 8 views, 3 scales", **EMBEDDED, **OFTEN),
    Row(name="distances, from embedded, 8 views, 5 scales", **EMBEDDED, views=8, scales=WIDE_SCALES),
    Row(name="distances + lora", kind="maps", decoder="distances", grafts=(LORA,), serves=OBJECTS),
    Row(name="class_tokens + lora", kind="maps", decoder="class_tokens", grafts=(LORA,)),
)
"""Beside the registries, or instead of what they would give."""


def rows(backbone: Backbone) -> dict[str, Row]:
    """Every row that can be run with this version of the package, by name."""
    found = list(MORE)
    taken = {row.name for row in found}
    found += [row for row in _registered(backbone) if row.name not in taken]
    return {row.name: row for row in found}


def _registered(backbone: Backbone) -> Iterable[Row]:
    """Heads and semantic parts; generators that need a person, labels or another part are no rows."""
    for name in PROMPTERS.names():
        part = _built(PROMPTERS.get(name), backbone)
        if name in (*SHOWN, *SHOWN_TOO):
            kind: Kind = "references" if name in SHOWN else "head"
            yield Row(name=name, kind=kind, prompter=name, references=True, serves=CLASSES)
        elif part is None or isinstance(part, ObjectHead):
            yield Row(name=name, kind="head", prompter=name)
        elif getattr(part, "num_classes", 0):
            yield Row(name=name, kind="maps", prompter=name)
    for name in (name for name in DECODERS.names() if not DECODERS.get(name).volumetric):
        decoder = _built(DECODERS.get(name), backbone)
        if decoder is None or isinstance(decoder, ObjectHead):
            yield Row(name=name, kind="head", decoder=name)
        elif not getattr(decoder, "needs_prompts", False):
            yield Row(name=name, kind="maps", decoder=name)


def _built(config: type[PrompterConfig] | type[DecoderConfig], backbone: Backbone) -> nn.Module | None:
    """The part with its defaults; None if that fails, so that its own run fails and no other."""
    try:
        return config().build(backbone)
    except Exception:
        return None
