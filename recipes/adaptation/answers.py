"""What a network says of network inputs, in one form for every kind of head: labels with a confidence per pixel.

Class maps (semantic, or background, interior and border) give the class of largest probability, and that probability.
Heads that separate objects give objects with scores: a pixel of an object has its score, a pixel of the background has
one minus the probability of foreground there (1 where the head does not say). Objects come from the head's own
automatic prompts.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.graft import Grafted
from samgraft.adapters.prompts.objects import FoundObjects
from samgraft.recipes.data.slabs import flat_slabs
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.joining import Piece, paint_pieces, piece_of
from samgraft.recipes.losses import as_multiclass, at_least_float
from samgraft.recipes.representations import BorderMaps, ClassMaps, Maps, ObjectMaps, WindowObjects

@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What is said of N images of side S."""

    labels: Tensor
    """(N, S, S) int64: class of each pixel (of the network's channels); or objects 1, 2, ... of each image."""
    confidence: Tensor
    """(N, S, S) in [0, 1]."""
    probabilities: Tensor | None = None
    """(N, K, S, S), class maps only."""
    separate: bool = False
    """Whether labels number objects."""

    @property
    def classes(self) -> Tensor:
        """(N, S, S) int64: labels, where objects are all 1."""
        return (self.labels > 0).long() if self.separate else self.labels


class Reader:
    """Reads one network, whatever tensors are in it at the time.

    Args:
        grafted: The network.
        recorded: What the adapter's header says.
    """

    def __init__(self, grafted: Grafted, recorded: Recorded) -> None:
        """Look up what its channels mean."""
        self.grafted, self.recorded, self.representation = grafted, recorded, recorded.representation

    @property
    def by_class(self) -> bool:
        """Whether it gives class maps, so that pixels are pseudo labels; else objects are."""
        return isinstance(self.representation, ClassMaps | BorderMaps)

    @property
    def channels(self) -> int:
        """K, channels of class maps; 2 where there are objects."""
        return cast(Maps, self.representation).channels if self.by_class else 2

    @property
    def separates(self) -> bool:
        """Whether it separates objects, in whatever way."""
        return self.representation.kind == "instance"

    @property
    def counted_channels(self) -> int:
        """Values of :meth:`counted`: background and classes, or 2 where objects are separated."""
        return 2 if self.separates else self.channels

    def counted(self, answer: Answer) -> Tensor:
        """(N, S, S) int64 classes of the data set, as pixels are counted; 1 for any object where they are separated."""
        return (answer.labels > 0).long() if self.separates else answer.labels

    def drawn(self, answer: Answer) -> Tensor:
        """(N, S, S) int64 on the CPU: classes, or objects 1, 2, ... of each image."""
        if answer.separate or answer.probabilities is None or not isinstance(self.representation, ObjectMaps):
            return answer.labels.cpu()
        area = self.recorded.recipe.min_area
        maps = answer.probabilities.float().cpu().numpy()
        return torch.stack([torch.from_numpy(self.representation.objects(one, min_area=area)[0]).long() for one in maps])

    def encode(self, image: Tensor) -> tuple[Tensor, Features]:
        """Slabs as slices (N, 3, S, S), and their features."""
        flat, _, depth = flat_slabs(image, None)
        return flat, self.grafted.encode(flat) if depth == 1 else self.grafted.encode(flat, depth=depth)

    def class_logits(self, flat: Tensor, features: Features) -> Tensor:
        """(N, K, S, S) of class maps, at the size of the input."""
        output = self.grafted.predict(flat, features=features)
        logits = as_multiclass(at_least_float(cast(Maps, self.representation).logits(output)))
        return functional.interpolate(logits, size=flat.shape[-2:], mode="bilinear", align_corners=False)

    def answer(self, image: Tensor) -> Answer:
        """What the network says of images (B, 3, S, S) or slabs (B, 3, D, S, S)."""
        return self.read(*self.encode(image))

    def read(self, flat: Tensor, features: Features) -> Answer:
        """The same of images that are encoded."""
        if self.by_class:
            probabilities = self.class_logits(flat, features).softmax(dim=1)
            confidence, labels = probabilities.max(dim=1)
            return Answer(labels=labels, confidence=confidence, probabilities=probabilities)
        if isinstance(self.representation, WindowObjects):
            found = self.representation.find(self.grafted, features, flat)
            pairs = [self._found(found.select(found.image_index == i), flat.shape[-1]) for i in range(len(flat))]
        else:
            pairs = self._from_maps(flat, features)
        labels, confidence = (torch.stack(part).to(flat.device) for part in zip(*pairs, strict=True))
        return Answer(labels=labels, confidence=confidence, separate=True)

    def _from_maps(self, flat: Tensor, features: Features) -> list[tuple[Tensor, Tensor]]:
        representation = cast(ObjectMaps, self.representation)
        logits = at_least_float(representation.logits(self.grafted.predict(flat, features=features)))
        logits = functional.interpolate(logits, size=flat.shape[-2:], mode="bilinear", align_corners=False)
        pairs = []
        for maps in representation.maps(logits).cpu().numpy():
            labels, scores = representation.objects(maps, min_area=self.recorded.recipe.min_area)
            pairs.append(_with_confidence(labels, scores, maps[0]))
        return pairs

    def _found(self, found: FoundObjects, side: int) -> tuple[Tensor, Tensor]:
        """Labels and confidence of one image."""
        place, pieces = (slice(0, side), slice(0, side)), list[Piece]()
        for logits, score in zip(found.logits.float().cpu(), found.scores.tolist(), strict=True):
            large = functional.interpolate(logits[None, None], size=(side, side), mode="bilinear", align_corners=False)
            piece = piece_of((large[0, 0] > 0).numpy(), place, window=0, score=score)
            pieces += [] if piece is None else [piece]
        labels, scores = paint_pieces(pieces, (side, side), min_area=self.recorded.recipe.min_area)
        return _with_confidence(labels, scores, np.zeros((side, side), dtype=np.float32))


def _with_confidence(
    labels: NDArray[np.int32], scores: NDArray[np.float32], foreground: NDArray[np.float32]
) -> tuple[Tensor, Tensor]:
    """Labels and confidence of one image, of its objects and what speaks for one (H, W) elsewhere."""
    table = np.concatenate([np.zeros(1, dtype=np.float32), scores.astype(np.float32)])
    confidence = np.where(labels > 0, table[labels], 1.0 - foreground).astype(np.float32)
    return torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(np.clip(confidence, 0.0, 1.0))
