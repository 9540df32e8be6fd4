"""Guides: other adapters that may know the target better than the source adapter, and label it in its place.

A source adapter that was trained on bright cells on a dark ground may understand nothing of stained ones, however they
are shown to it. Another adapter on the same backbone may, such as the one of the package that separates any objects. It
is chosen by the same criteria without labels as a look, and only where it is clearly better. It labels the tiles once,
before the run; for the first part the student learns that, and then the teacher labels.

Guides separate objects of one kind, so they are for source adapters that do.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samgraft.adapters.bundle import EMBEDDED, load_bundle, read_header, read_meta
from samgraft.errors import ConfigError
from samgraft.recipes.adaptation.answers import Answer, Reader
from samgraft.recipes.adaptation.images import Tiles
from samgraft.recipes.adaptation.networks import Networks
from samgraft.recipes.adaptation.pseudo import class_thresholds, pseudo_labels
from samgraft.recipes.engine.recorded import recorded
from samgraft.recipes.instances import border_target
from samgraft.recipes.losses import IGNORE
from samgraft.recipes.representations import BorderMaps, Representation

NONE, AUTO = "none", "auto"
CHANNELS = 2
"""Of what guides say: background and objects."""
BATCH = 8


def possible(chosen: str, reader: Reader, backbone_hash: str, *, slabs: bool) -> tuple[str, ...]:
    """The guides that may label.

    Args:
        chosen: "none", "auto" for those of the package, or a file.
        reader: The source adapter.
        backbone_hash: Of the frozen weights; a guide of other ones is none.
        slabs: Whether the source adapter sees slabs of slices.

    Raises:
        ConfigError: a file, and the source adapter does not separate objects in pictures; or it is no such adapter.
    """
    if chosen == NONE:
        return ()
    fits = reader.separates and not slabs
    if chosen == AUTO:
        return tuple(name for name in EMBEDDED if fits and read_header(name)["backbone"]["sha256"] == backbone_hash)
    if not fits:
        raise ConfigError(
            f"guide is {chosen}, and guides say where single objects are; this source adapter gives classes, or sees "
            "slabs of slices: leave guide out"
        )
    if read_meta(chosen).task != "instance":
        raise ConfigError(f"guide is {chosen}, which separates no objects; give an adapter with task.kind: instance")
    return (chosen,)


@contextmanager
def visiting(networks: Networks, guide: str | Path) -> Iterator[Reader]:
    """A guide on the backbone, in the place of the network, without gradients.

    Raises:
        CheckpointError: it is damaged, or of another backbone.
    """
    with networks.bare() as backbone:
        grafted = load_bundle(guide, backbone)
        try:
            yield Reader(grafted.eval(), recorded(grafted, read_meta(guide)))
        finally:
            grafted.detach()


def told_by(reader: Reader, tiles: Tiles, device: torch.device, *, portion: float, least: float) -> Tensor:
    """(n, S, S) int64 objects 1, 2, ... of every tile as a guide sees them, ``IGNORE`` where it is not sure enough.

    Args:
        reader: The guide, on the backbone.
        tiles: What it is shown.
        device: Where it runs.
        portion: Share of the pixels of objects, and of the background, that are taken: the most certain ones.
        least: No pixel is taken below this confidence.
    """
    answers = [_answer(reader, tiles, index, device) for index in _chunks(len(tiles))]
    least_of_classes = class_thresholds(answers, CHANNELS, portion=portion, least=least)
    return torch.cat([pseudo_labels(answer, least_of_classes, known).cpu() for answer, known in answers])


def as_taught(objects: Tensor, representation: Representation) -> Tensor:
    """What a network learns of objects (N, S, S) with ``IGNORE``: themselves, or background, interior and border."""
    if not isinstance(representation, BorderMaps):
        return objects
    border = representation.border
    maps = [torch.from_numpy(border_target(one, border=border)) for one in objects.cpu().numpy()]
    return torch.stack(maps).to(objects).masked_fill(objects == IGNORE, IGNORE)


def _answer(reader: Reader, tiles: Tiles, index: Sequence[int], device: torch.device) -> tuple[Answer, Tensor]:
    image, known = tiles.batch(index, device)
    answer = reader.answer(image)
    counted = reader.drawn(answer).to(device)  # objects, also where the guide has a class head
    return Answer(labels=counted, confidence=answer.confidence, separate=True), known


def _chunks(count: int) -> Iterator[list[int]]:
    for start in range(0, count, BATCH):
        yield list(range(start, min(start + BATCH, count)))


def facts(guide: str | None) -> dict[str, Any] | None:
    """What the header of an adapted bundle says of its guide."""
    if guide is None:
        return None
    return {"file": Path(guide).name, "tensors_sha256": read_header(guide)["tensors_sha256"]}
