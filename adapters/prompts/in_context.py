"""In context: every cell of a new image asks its nearest neighbours among labelled cells what it is.

The cells of all references are a memory, each with the labels of its pixels. A cell of the new image takes the labels
of its k most similar memory cells, weighted by a softmax of the cosines over a temperature. That gives a soft label
map without any training, and it improves as labelled images are added. The map is the result, or it becomes prompts
(points, a box, a mask) for the frozen decoder, which draws the border.

    label(q) = sum_i softmax_i(cos(q, m_i) / T) label(m_i)     over the k nearest m_i

Where references disagree about the place of an object, no probability reaches one half. So an object is where the map
is above half of its maximum, if that maximum is more than chance (``least``).

The product with the memory is computed in tiles, so what is held at once does not grow with the number of references.

Source:
    Hummingbird, arXiv:2306.01667, section 3 (nearest-neighbour read-out of dense features; k 30, temperature 0.02).
Deviations:
    Cells keep the labels of ``detail`` x ``detail`` parts, so the map is finer than the features. No learned pooling
    and no pretraining for it; features may be centred and extended by place and look. Prompts are this project's, and
    so is the cleaning of islands and small holes (``islands``, ``fill_holes``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.config import check_positive
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.matching import (
    MEMORY,
    NECK,
    ReferencePrompter,
    image_major,
    nearest,
    size_of,
    valid_cells,
)
from samgraft.adapters.prompts.objects import FoundObjects
from samgraft.adapters.prompts.references import References, references_of
from samgraft.adapters.prompts.refining import decode_refined, found_objects, tight_boxes
from samgraft.adapters.prompts.tidy import IslandsConfig
from samgraft.errors import ConfigError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone

WAYS = ("points", "box", "mask")
LIMIT = 1e-3
"""Probabilities are kept this far from 0 and 1 before they become logits."""


@dataclass(frozen=True, kw_only=True)
class InContextConfig(IslandsConfig):
    """Nearest-neighbour labels from a memory of labelled images; nothing is trained."""

    method: ClassVar[str] = "in_context"
    tap: str | int = NECK
    """As in the other methods; the cells of the neck served the labels of neighbours best."""
    position: float = 4.0
    """As in the other methods."""
    neighbours: int = 30
    """k."""
    temperature: float = 0.02
    """Of the softmax over cosines."""
    detail: int = 4
    """Parts along each side of a cell that have labels of their own."""
    relative: bool = True
    """The border of an object lies at half of the map's maximum, if that is less than 1; else at one half."""
    least: float = 0.02
    """A map whose maximum is below this shows nothing; only with ``relative``."""
    prompts: tuple[str, ...] = ()
    """What the map becomes: any of "points", "box", "mask"; none: the map itself is the result."""
    refinements: int = 0
    """Times that the decoder is asked again, with its mask and the mask's box; only with ``prompts``."""

    def __post_init__(self) -> None:
        """Check choices and numbers."""
        super().__post_init__()
        check_positive(self.method, "temperature", self.temperature)
        wrong = [way for way in self.prompts if way not in WAYS]
        if wrong:
            raise ConfigError(f"in_context: prompts name {wrong}; choose from {', '.join(WAYS)}")
        if not 0 <= self.least <= 1:
            raise ConfigError(f"in_context: least is {self.least}; expected a probability, 0 to 1")
        if self.neighbours < 1 or self.detail < 1 or self.refinements < 0:
            raise ConfigError(
                f"in_context: neighbours {self.neighbours}, detail {self.detail}, refinements {self.refinements}; "
                "expected at least 1, 1 and 0"
            )

    def build(self, backbone: "Backbone") -> "InContextPrompter":
        """Create the generator; the backbone is only read."""
        return InContextPrompter(self, backbone)


class InContextPrompter(ReferencePrompter):
    """Soft labels, and prompts made of them."""

    def __init__(self, config: InContextConfig, backbone: "Backbone") -> None:
        """Remember the options."""
        super().__init__(config, backbone)
        self.config = config
        self.multimask = config.prompts == ("points",)

    def read_out(self, features: Features, image: Tensor, references: References) -> Tensor:
        """(B, K, detail h, detail w) probabilities in [0, 1] of the objects.

        Raises:
            ConfigError: the references are points or scribbles, so that nothing is known to be background.
        """
        if references.kind in ("points", "scribble"):
            raise ConfigError(
                f"references are {references.kind}, which do not say what is background; in_context needs masks or "
                "boxes; use reference_region, or persam"
            )
        seen, shown = self.cells(features, image, references)
        detail, (height, width) = self.config.detail, seen.shape[1:3]
        kept = (references.known() > 0.5).flatten()
        memory = shown.flatten(0, 2)[kept]
        labels = functional.pixel_unshuffle(references.shares(parts=detail).flatten(0, 1)[:, None], detail)
        labels = labels.unflatten(0, (len(references), -1)).flatten(1, 2)  # (R, K d d, h', w')
        labels = labels.permute(0, 2, 3, 1).flatten(0, 2)[kept].to(memory.dtype)
        found = read_labels(
            seen.flatten(0, 2), memory, labels, neighbours=self.config.neighbours, temperature=self.config.temperature
        )
        cells = found.reshape(len(image), height, width, references.num_objects, detail**2)
        cells = cells.permute(0, 3, 4, 1, 2).flatten(0, 1)  # (B K, d d, h, w)
        read: Tensor = functional.pixel_shuffle(cells, detail)[:, 0].unflatten(0, (len(image), -1))
        return read

    def forward(self, features: Features, image: Tensor, context: Mapping[str, Any]) -> Prompts:
        """Prompts (B K) made of the soft labels; without ``prompts`` in the configuration, masks."""
        return self._prompts(self._soft(features, image, context), features, image)

    def answer(
        self, backbone: "Backbone", features: Features, image: Tensor, context: Mapping[str, Any]
    ) -> FoundObjects:
        """One mask for each image and object: the map itself, or what the decoder makes of its prompts."""
        references, soft = references_of(context), self._soft(features, image, context)
        prompts = self._prompts(soft, features, image)
        if not self.config.prompts:
            scores = soft.new_zeros(len(prompts)) if prompts.scores is None else prompts.scores
            logits = log_odds(soft)
            if self.config.relative:
                logits = logits - log_odds(border(soft, self.config.least))
            tidy = self.config.tidy(logits.flatten(0, 1), references, None, size_of(image))
            return found_objects(prompts, tidy, scores, references.num_objects)
        rounds = self.config.refinements
        size = size_of(image)
        logits, scores = decode_refined(backbone, features, prompts, size, multimask=self.multimask, rounds=rounds)
        point = None if prompts.points is None else prompts.points[:, 0]
        logits = self.config.tidy(logits, references, point, size)
        return found_objects(prompts, logits, scores, references.num_objects)

    def _soft(self, features: Features, image: Tensor, context: Mapping[str, Any]) -> Tensor:
        soft = self.read_out(features, image, references_of(context))
        valid = valid_cells(context, features)[:, None]
        return soft * functional.interpolate(valid.to(soft), size=soft.shape[-2:], mode="nearest-exact")

    def _prompts(self, soft: Tensor, features: Features, image: Tensor) -> Prompts:
        batch, kinds = soft.shape[:2]
        size = size_of(image)
        ways = self.config.prompts or ("mask",)
        flat = soft.flatten(0, 1)
        regions = torch.stack([main_region(one) for one in flat])
        prompts = Prompts(
            image_index=image_major(batch, kinds, soft.device),
            scores=(flat * regions).flatten(1).sum(dim=1) / regions.flatten(1).sum(dim=1),
        )
        if "points" in ways:
            points = torch.stack([inner_point(one, size) for one in regions])[:, None]
            prompts = replace(prompts, points=points.to(soft), labels=torch.ones_like(points[..., 0]).long())
        if "box" in ways:
            prompts = replace(prompts, boxes=tight_boxes(regions.to(soft) - 0.5, size))
        if "mask" in ways:
            grid = tuple(4 * n for n in features.neck.shape[-2:])
            sized = functional.interpolate(flat[:, None], size=grid, mode="bilinear", align_corners=False)
            prompts = replace(prompts, masks=log_odds(sized))
        return prompts


def read_labels(
    queries: Tensor, memory: Tensor, labels: Tensor, *, neighbours: int, temperature: float, bound: int = MEMORY
) -> Tensor:
    """Labels of the nearest memory rows, weighted by a softmax of their similarity.

    Args:
        queries: (Q, D) unit vectors.
        memory: (M, D) unit vectors.
        labels: (M, L).
        neighbours: k; all rows if the memory is smaller.
        temperature: Similarities are divided by it.
        bound: Numbers of an intermediate result that are held at once.

    Returns:
        (Q, L).
    """
    rows = max(1, bound // (min(neighbours, len(memory)) * labels.shape[1]))
    found = []
    for some in queries.split(rows):
        similarity, index = nearest(some, memory, neighbours, bound=bound)
        weight = (similarity / temperature).softmax(dim=1)
        found.append((weight[:, None] @ labels[index])[:, 0])
    return torch.cat(found)


def border(soft: Tensor, least: float) -> Tensor:
    """(B, K, 1, 1): half of the maximum of maps (B, K, h, w) in [0, 1]; one half where that is below ``least``."""
    top = soft.amax(dim=(2, 3), keepdim=True)
    return torch.where(top < least, torch.full_like(top, 0.5), top / 2)


def log_odds(probability: Tensor) -> Tensor:
    """Logits of probabilities, finite."""
    return torch.logit(probability, eps=LIMIT)


def main_region(soft: Tensor) -> Tensor:
    """(h, w) bool: the part of a soft map (h, w) above half of its maximum that has the largest sum, 4-connected.

    It holds at least one pixel, also of a map that is zero everywhere.
    """
    values = soft.detach().double().cpu().numpy()
    if not values.max() > 0:
        region = np.zeros(values.shape, dtype=bool)
        region[values.shape[0] // 2, values.shape[1] // 2] = True
        return torch.from_numpy(region).to(soft.device)
    parts, count = ndimage.label(values > values.max() / 2)
    sums = ndimage.sum_labels(values, parts, np.arange(1, count + 1))
    return torch.from_numpy(parts == 1 + int(np.argmax(sums))).to(soft.device)


def inner_point(region: Tensor, size: tuple[int, int]) -> Tensor:
    """(2,) float64 (x, y) in pixels of an input of ``size`` (H, W): the cell of a region (h, w) farthest from its rim.

    Of several the one nearest to their mean, so that a bar is met in its middle.
    """
    cells = region.cpu().numpy()
    depth = ndimage.distance_transform_edt(np.pad(cells, 1))[1:-1, 1:-1]
    deepest = np.argwhere(depth >= depth.max() - 1e-9)
    row, col = deepest[np.square(deepest - deepest.mean(axis=0)).sum(axis=1).argmin()]
    scale = (size[1] / cells.shape[1], size[0] / cells.shape[0])
    return torch.tensor([(col + 0.5) * scale[0] - 0.5, (row + 0.5) * scale[1] - 0.5], dtype=torch.float64)
