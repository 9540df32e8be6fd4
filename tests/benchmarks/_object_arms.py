"""Every way to objects without a person as something to train and to use: heads, maps, UNets, everything mode."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import samgraft
from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.bundle import read_header, read_tensors
from samgraft.adapters.decoders.hq_token import HqTokenDecoder
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.prompts import make_references
from samgraft.adapters.prompts.objects import FoundObjects, ObjectHead, objects_from_labels
from samgraft.recipes.config import TaskConfig
from samgraft.recipes.engine.everything import EverythingConfig, segment_everything
from samgraft.recipes.engine.turned import mean_of_views, turned
from samgraft.recipes.joining import Joining
from samgraft.recipes.representations import HeadObjects, Maps, Representation, WindowObjects
from samgraft.recipes.representations.objects import MIN_PIXELS
from tests.benchmarks._arms import unet
from tests.benchmarks._data import Case
from tests.benchmarks._object_maps import difference, loss_of, maps_of, whole, window_batches
from tests.benchmarks._object_rows import Row
from tests.benchmarks._object_sets import ObjectSet, Result, result_of, shown_windows

SHOWN_AT_MOST = 20
"""Windows that are shown as references."""
Find = Callable[[Features, Tensor], FoundObjects]
"""Features of B windows and the windows (B, 3, S, S) -> their objects."""


@dataclass(kw_only=True, eq=False)
class Method:
    """Something ready to be trained and used."""

    find: Callable[[Case], Result]
    """Whole picture in, objects out."""
    objective: Callable[[Tensor, Tensor], Tensor] | None = None
    """Windows (B, 3, S, S) and instance maps (B, S, S) -> loss; None if nothing is trained."""
    module: nn.Module = field(default_factory=nn.Identity)
    trained: list[nn.Parameter] = field(default_factory=list)
    certain: bool = False
    """Whether every object counts, so that no score has to be chosen from which they do."""


def build(row: Row, chosen: ObjectSet, backbone: Backbone, seed: int, train: Sequence[Case]) -> Method:
    """Create what a row names.

    Args:
        row: The row.
        chosen: The set.
        backbone: Without grafts.
        seed: Weights that are new are drawn from it.
        train: Training pictures, of which some are shown where the row wants that.
    """
    torch.manual_seed(seed)
    if row.kind == "everything":
        return Method(find=partial(everything, backbone, chosen, row.everything(chosen)))
    prompter, decoder = row.configs(chosen)
    if row.kind == "unet":
        return _unet(chosen, maps_of(chosen, decoder), row)
    grafted = attach(backbone, row.grafts, prompter=prompter, decoder=decoder)
    if row.start is not None:
        grafted.load_graft_state(read_tensors(row.start, read_header(row.start)))
    if row.kind == "maps":
        maps = of_maps(grafted, chosen, maps_of(chosen, decoder or prompter), row)
        return maps if row.trained else _as_it_is(maps)
    head = next(part for part in (grafted.prompter, grafted.decoder) if isinstance(part, ObjectHead))
    method = of_head(head, grafted, chosen, references(head, grafted, chosen, train) if row.references else None)
    return _as_it_is(method) if row.kind == "references" else method


def _as_it_is(method: Method) -> Method:
    """The same, and nothing is trained."""
    return replace(method, objective=None)


@torch.no_grad()
def references(head: ObjectHead, grafted: Grafted, chosen: ObjectSet, train: Sequence[Case]) -> dict[str, Any]:
    """Context that shows training pictures; a head that fits a few numbers to them does so here."""
    found = make_references(*shown_windows(chosen, train, SHOWN_AT_MOST)).encode(grafted.backbone, grafted.taps())
    if hasattr(head, "fit"):
        head.fit(grafted.backbone, found)
    return {"references": found}


def of_head(head: ObjectHead, grafted: Grafted, chosen: ObjectSet, context: Mapping[str, Any] | None = None) -> Method:
    """A head with losses of its own; used window by window, and joined."""
    asked = cast(Backbone, grafted) if grafted.answers_prompts else grafted.backbone

    def find(features: Features, image: Tensor) -> FoundObjects:
        return head.find(asked, features, image, context or {})

    task = TaskConfig(kind="instance")
    method = _grafted(grafted, HeadObjects(), HeadObjects().loss(task), partial(joined, grafted, find, chosen))
    decoder = grafted.decoder
    return _with_decoder(method, grafted, decoder) if isinstance(decoder, HqTokenDecoder) else method


def _with_decoder(method: Method, grafted: Grafted, decoder: HqTokenDecoder) -> Method:
    """The same, with the losses of a decoder that is trained beside the head and answers its prompts."""
    alone = method.objective

    def objective(image: Tensor, label: Tensor) -> Tensor:
        with torch.no_grad():
            features = grafted.encode(image)
        objects = objects_from_labels(label, min_area=MIN_PIXELS)
        own = decoder.losses(grafted.backbone, features, image, objects)
        total = finite(torch.stack(list(own.values())).sum())
        return total if alone is None else total + alone(image, label)

    return replace(method, objective=objective)


def of_maps(grafted: Grafted, chosen: ObjectSet, maps: Maps, row: Row) -> Method:
    """A decoder that gives maps: blended and read as a whole, or asked in every window where they say only where."""

    def forward(image: Tensor) -> Tensor:
        return mean_of_views(maps.logits(grafted.predict(turned(image, row.views))), row.views)

    find: Callable[[Case], Result] = partial(whole, forward, maps, chosen, row.scales)
    if isinstance(maps, WindowObjects):
        find = partial(joined, grafted, partial(maps.find, grafted), chosen)
    method = _grafted(grafted, maps, loss_of(maps, chosen), find)
    return replace(method, certain=chosen.kind == "classes")


def _grafted(grafted: Grafted, learned: Representation, loss: nn.Module, find: Callable[[Case], Result]) -> Method:
    """Trained as the package trains: what is attached, on features that need no gradient if the encoder is frozen."""
    moving = not grafted.frozen_encoder()

    def objective(image: Tensor, label: Tensor) -> Tensor:
        with torch.set_grad_enabled(moving):
            features = grafted.encode(image)
        return finite(learned.learn(loss, grafted, features, image, label))

    trained = grafted.trainable_parameters()
    return Method(find=find, objective=objective if trained else None, module=grafted, trained=trained)


def finite(loss: Tensor) -> Tensor:
    """The loss.

    Raises:
        ValueError: it is NaN or infinite; training on would only spoil all weights.
    """
    if not torch.isfinite(loss):
        raise ValueError(f"the loss is {loss.item()}")
    return loss


def _unet(chosen: ObjectSet, maps: Maps, row: Row) -> Method:
    arm, loss = unet(replace(chosen.spec, classes=maps.channels)), loss_of(maps, chosen)

    def objective(image: Tensor, label: Tensor) -> Tensor:
        return finite(difference(maps, loss, arm.forward(image), label))

    def forward(image: Tensor) -> Tensor:
        return mean_of_views(arm.forward(turned(image, row.views)), row.views)

    find = partial(whole, forward, maps, chosen, row.scales)

    certain = chosen.kind == "classes"
    return Method(find=find, objective=objective, module=arm.module, trained=arm.trained, certain=certain)


@torch.no_grad()
def joined(grafted: Grafted, find: Find, chosen: ObjectSet, case: Case) -> Result:
    """The objects of a picture: found in windows, put together, and painted with the best on top.

    Raises:
        ValueError: labels were looked at.
    """
    joining = Joining((case.label.shape[0], case.label.shape[1]), chosen.spec.size)
    for some, images in window_batches(chosen, case):
        found = find(grafted.encode(images), images)
        if found.from_ground_truth:
            raise ValueError("the head looked at labels; its score is none of an automatic method")
        for number, place in enumerate(some):
            joining.add(place, found.select(found.image_index == number))
    return result_of(*joining.finish(min_area=chosen.spec.min_area))


def everything(backbone: Backbone, chosen: ObjectSet, config: EverythingConfig, case: Case) -> Result:
    """What ``samgraft.segment`` finds in a file of the picture, without an adapter."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        Image.fromarray(np.rint(case.image * 255).astype(np.uint8)).save(path)
        scene = samgraft.open(path)
        found = segment_everything(scene, backbone, config=config, size=chosen.spec.size)
    scores = np.zeros(int(found.labels.max(initial=0)))
    for record in found.instances:
        scores[record.id - 1] = record.score
    labels = np.asarray(found.labels, dtype=np.int32)
    small = np.bincount(labels.ravel()) < chosen.spec.min_area
    return result_of(np.where(small[labels], 0, labels), scores)
