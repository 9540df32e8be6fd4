"""Reference region: point at something in one image, and the places that look like it in another become prompts.

The annotation may be a mask, a box, a scribble or a few clicks. Each cell of the new image has the similarity of the
most similar cell of the region; the best places become foreground points that keep a distance from each other. Where
the annotation says what is background, the similarity to that is taken off, and the least similar place becomes a
background point.

Source:
    SEEM, arXiv:2304.06718, section 3.2 (a visual prompt is pooled from the region of another image).
Deviations:
    SEEM trains a sampler and a decoder for it. Here nothing is trained, and the region becomes points.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.manual import BACKGROUND, FOREGROUND, PADDING
from samgraft.adapters.prompts.matching import (
    ReferenceConfig,
    ReferencePrompter,
    allowed_cells,
    cell_centres,
    image_major,
    nearest,
)
from samgraft.adapters.prompts.references import References, references_of
from samgraft.errors import ConfigError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone, Features


@dataclass(frozen=True, kw_only=True)
class ReferenceRegionConfig(ReferenceConfig):
    """Points where a new image looks like an annotated region of another."""

    method: ClassVar[str] = "reference_region"
    points: int = 3
    """Most foreground points."""
    apart: float = 2.0
    """Least distance of two points, in cells."""
    alike: float = 0.8
    """A further point lies at least this share of the way from the mean similarity to the first one's."""
    negative: bool = True
    """Give a background point, where the references say what is background."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if self.points < 1 or self.apart < 0 or not 0 <= self.alike <= 1:
            raise ConfigError(
                f"reference_region: points {self.points}, apart {self.apart}, alike {self.alike}; expected at least 1, "
                "at least 0, and 0 to 1"
            )

    def build(self, backbone: "Backbone") -> "ReferenceRegionPrompter":
        """Create the generator; the backbone is only read."""
        return ReferenceRegionPrompter(self, backbone)


class ReferenceRegionPrompter(ReferencePrompter):
    """At most ``points`` foreground points and one background point for each image and object."""

    multimask = True

    def __init__(self, config: ReferenceRegionConfig, backbone: "Backbone") -> None:
        """Remember the options."""
        super().__init__(config, backbone)
        self.config = config

    def forward(self, features: "Features", image: Tensor, context: Mapping[str, Any]) -> Prompts:
        """Prompts (B K) of points, padded; scores are similarities of the first point, 0 to 1."""
        references = references_of(context)
        seen, shown = self.cells(features, image, references)
        free = allowed_cells(context, features)
        grid = (int(seen.shape[1]), int(seen.shape[2]))
        patch = image.shape[-2] / grid[0]
        centres = cell_centres(grid, patch).to(seen)
        rows, labels, scores = [], [], []
        for cells, allowed in zip(seen, free, strict=True):
            for kind in range(references.num_objects):
                own, other = self._support(cells.flatten(0, 1), shown, references, kind)
                places, marks = self._chosen(own, other, allowed, centres, apart=self.config.apart * patch)
                rows.append(places)
                labels.append(marks)
                scores.append(((1 + own[allowed].max()) / 2).clamp(0, 1))
        index = image_major(len(image), references.num_objects, image.device)
        return Prompts(
            image_index=index, points=torch.stack(rows), labels=torch.stack(labels), scores=torch.stack(scores)
        )

    def _support(self, cells: Tensor, shown: Tensor, references: References, kind: int) -> tuple[Tensor, Tensor | None]:
        """(S,) similarity of each cell to the most similar cell of the region, and of the background or None."""
        share = references.shares()[:, kind].flatten()
        memory = shown.flatten(0, 2)
        most = float(share.max())
        own = nearest(cells, memory[share >= 0.5 * min(most, 1.0)], 1)[0][:, 0]
        outside = (share == 0) & (references.known() > 0.5).flatten()
        if references.kind in ("points", "scribble") or not bool(outside.any()):
            return own, None
        return own, nearest(cells, memory[outside], 1)[0][:, 0]

    def _chosen(
        self, own: Tensor, other: Tensor | None, allowed: Tensor, centres: Tensor, *, apart: float
    ) -> tuple[Tensor, Tensor]:
        """Points (points + 1, 2) and their labels: the best supported places, then the background point."""
        support = own if other is None else own - other
        left = support.masked_fill(~allowed, -torch.inf)
        number = self.config.points
        places = centres.new_zeros(number + 1, 2)
        labels = torch.full((number + 1,), PADDING, dtype=torch.int64, device=centres.device)
        least = -torch.inf
        for row in range(number):
            best = left.argmax()
            if not float(left[best]) > least:
                break
            if row == 0:
                spread = float(left[best]) - float(support[allowed].mean())
                least = float(left[best]) - (1 - self.config.alike) * spread - 1e-9
            places[row], labels[row] = centres[best], FOREGROUND
            left = left.masked_fill((centres - centres[best]).norm(dim=1) < max(apart, 1e-6), -torch.inf)
        if self.config.negative and other is not None:
            worst = support.masked_fill(~allowed, torch.inf).argmin()
            places[number], labels[number] = centres[worst], BACKGROUND
        return places, labels
