"""Every way to objects without a person as something to train and to use: heads, maps, UNets, everything mode."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import samgraft
from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.prompts.objects import FoundObjects, ObjectHead, objects_from_labels
from samgraft.recipes.engine.everything import EverythingConfig, segment_everything
from samgraft.recipes.engine.joining import Piece, join, paint_pieces, piece_of
from tests.benchmarks._arms import unet
from tests.benchmarks._data import Case
from tests.benchmarks._object_maps import (
    REPRESENTATIONS,
    Meaning,
    blended,
    class_logits,
    enlarged,
    meaning,
    window_batches,
)
from tests.benchmarks._object_rows import Row
from tests.benchmarks._object_sets import ObjectSet, Result, fit_of, places, result_of, shown_windows

LEAST = 8
"""Network pixels of an object that is learned; of a smaller one (cut off by a window or a change) nothing is known."""
SHOWN_AT_MOST = 20
"""Windows that are shown as references."""
AT_ONCE = 16
"""Masks that are enlarged together."""
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
    if row.kind == "unet":
        return _unet(row, chosen)
    prompter, decoder = row.configs(chosen)
    grafted = attach(backbone, prompter=prompter, decoder=decoder)
    if row.kind == "maps":
        return _maps(grafted, chosen, meaning(chosen, decoder or prompter))
    head = next(part for part in (grafted.prompter, grafted.decoder) if isinstance(part, ObjectHead))
    method = of_head(head, grafted, chosen, references(head, grafted, chosen, train) if row.references else None)
    return replace(method, objective=None) if row.kind == "references" else method


@torch.no_grad()
def references(head: ObjectHead, grafted: Grafted, chosen: ObjectSet, train: Sequence[Case]) -> dict[str, Any]:
    """Context that shows training pictures; a head that fits a few numbers to them does so here."""
    make = import_module("samgraft.adapters.prompts").make_references
    found = make(*shown_windows(chosen, train, SHOWN_AT_MOST)).encode(grafted.backbone, grafted.taps())
    if hasattr(head, "fit"):
        head.fit(grafted.backbone, found)
    return {"references": found}


def of_head(head: ObjectHead, grafted: Grafted, chosen: ObjectSet, context: Mapping[str, Any] | None = None) -> Method:
    """Train with the head's own losses, the encoder without gradient; use window by window, and join."""

    def objective(image: Tensor, label: Tensor) -> Tensor:
        with torch.no_grad():
            features = grafted.encode(image)
        losses = head.losses(grafted.backbone, features, image, objects_from_labels(label, min_area=LEAST))
        return finite(losses)

    def find(features: Features, image: Tensor) -> FoundObjects:
        return head.find(grafted.backbone, features, image, context or {})

    trained = grafted.trainable_parameters()
    return Method(
        find=partial(joined, grafted, find, chosen),
        objective=objective if trained else None,
        module=grafted,
        trained=trained,
    )


def finite(losses: Mapping[str, Tensor]) -> Tensor:
    """The sum.

    Raises:
        ValueError: one is NaN or infinite; training on would only spoil all weights.
    """
    bad = {name: loss.item() for name, loss in losses.items() if not torch.isfinite(loss)}
    if bad:
        raise ValueError(f"losses are not finite: {bad}")
    return torch.stack([loss.reshape(()) for loss in losses.values()]).sum()


def _maps(grafted: Grafted, chosen: ObjectSet, means: Meaning) -> Method:
    """Train a decoder on maps of the objects; blend the maps of windows, and read objects from the whole."""
    learn = getattr(grafted, "learn", None)

    def objective(image: Tensor, label: Tensor) -> Tensor:
        target = means.target(label)
        if learn is None or target.ndim != 3:
            output, extra = grafted.predict(image), None
        else:
            output, extra = learn(image, target)
        loss = means.loss(enlarged(class_logits(output), image.shape[-1]), target)
        return finite({"maps": loss} if extra is None else {"maps": loss, "head": extra})

    def read(case: Case) -> Result:
        return means.read(blended(lambda image: class_logits(grafted.predict(image)), chosen, case))

    window = _window_objects(grafted, chosen)
    find = read if window is None else partial(joined, grafted, window, chosen)
    trained = grafted.trainable_parameters()
    return Method(find=find, objective=objective, module=grafted, trained=trained, certain=chosen.kind == "classes")


def _window_objects(grafted: Grafted, chosen: ObjectSet) -> Find | None:
    """For maps that only say where to ask the frozen decoder: its objects, window by window."""
    if not getattr(grafted.decoder_config, "from_points", False):
        return None
    asked = import_module(REPRESENTATIONS).represent(
        "instance", grafted.decoder_config, classes=1, border=chosen.spec.border
    )
    return partial(asked.find, grafted)


def _unet(row: Row, chosen: ObjectSet) -> Method:
    arm, means = unet(chosen.spec), meaning(chosen, row.configs(chosen)[1])

    def objective(image: Tensor, label: Tensor) -> Tensor:
        target = means.target(label)
        return finite({"maps": means.loss(arm.forward(image), target)})

    def find(case: Case) -> Result:
        return means.read(blended(arm.forward, chosen, case))

    certain = chosen.kind == "classes"
    return Method(find=find, objective=objective, module=arm.module, trained=arm.trained, certain=certain)


@torch.no_grad()
def joined(grafted: Grafted, find: Find, chosen: ObjectSet, case: Case) -> Result:
    """The objects of a picture: found in windows, put together, and painted with the best on top."""
    shape = (case.label.shape[0], case.label.shape[1])
    pieces: list[Piece] = []
    number = 0
    for some, images in window_batches(chosen, case):
        found = find(grafted.encode(images), images)
        if found.from_ground_truth:
            raise ValueError("the head looked at labels; its score is none of an automatic method")
        for place in range(len(some)):
            pieces += _pieces(found.select(found.image_index == place), chosen, some[place], number)
            number += 1
    whole = join(pieces, places(chosen, shape))
    labels, records = paint_pieces(whole, shape, min_area=chosen.spec.min_area)
    return result_of(labels, [record.score for record in records])


def _pieces(found: FoundObjects, chosen: ObjectSet, place: tuple[slice, slice], window: int) -> list[Piece]:
    fit, pieces = fit_of(place, chosen.spec.size), []
    for rows in torch.arange(len(found)).split(AT_ONCE):
        masks = (fit.back(found.logits[rows][:, None].float())[:, 0] > 0).numpy()
        for mask, score in zip(masks, found.scores[rows].tolist(), strict=True):
            piece = piece_of(mask, place, window=window, score=score)
            pieces += [] if piece is None else [piece]
    return pieces


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
