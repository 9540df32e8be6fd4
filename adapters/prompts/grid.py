"""A regular grid of foreground points on every image: the prompts of "segment everything".

Source:
    Segment Anything, arXiv:2304.02643, section B (32 x 32 points; mask filtering is not done here).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from samgraft.adapters.prompts.base import PrompterConfig, PromptGenerator, Prompts
from samgraft.errors import ConfigError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone, Features


@dataclass(frozen=True, kw_only=True)
class GridConfig(PrompterConfig):
    """n x n single-point prompts per image; nothing is trained."""

    method: ClassVar[str] = "grid"
    points_per_side: int = 16
    """n: points along each side, at the centres of n x n equal cells."""
    multimask: bool = True
    """Ask for three masks per point, since one point is ambiguous."""

    def __post_init__(self) -> None:
        """Check the number."""
        if self.points_per_side < 1:
            raise ConfigError(f"grid: points_per_side is {self.points_per_side}; expected at least 1")

    def build(self, backbone: "Backbone") -> "GridPrompts":
        """Create the generator; the backbone does not matter."""
        del backbone
        return GridPrompts(self)


class GridPrompts(PromptGenerator):
    """N = B n n prompts of one foreground point each; image-major, then row by row."""

    def __init__(self, config: GridConfig) -> None:
        """Remember the number of points."""
        super().__init__()
        self.config = config
        self.multimask = config.multimask

    def forward(self, features: "Features", image: Tensor, context: Mapping[str, Any]) -> Prompts:
        """Prompts for every image; ``context["valid"]`` (B, H, W) bool, if given, drops points on invalid pixels."""
        batch, _, height, width = image.shape
        points = grid_points((height, width), self.config.points_per_side).to(image.device)
        number = len(points)
        index = torch.arange(batch, device=image.device).repeat_interleave(number)
        prompts = Prompts(
            image_index=index,
            points=points.repeat(batch, 1)[:, None],
            labels=torch.ones(batch * number, 1, dtype=torch.int64, device=image.device),
        )
        valid: Tensor | None = context.get("valid")
        if valid is None:
            return prompts
        pixel = points.round().long().repeat(batch, 1)
        return prompts.select(valid.to(image.device)[index, pixel[:, 1], pixel[:, 0]])


def grid_points(size: tuple[int, int], points_per_side: int) -> Tensor:
    """(n n, 2) points (x, y) at the centres of n x n equal cells of an image of ``size`` (H, W), row by row."""
    height, width = size
    step = (torch.arange(points_per_side, dtype=torch.float64) + 0.5) / points_per_side
    y, x = torch.meshgrid(step * height - 0.5, step * width - 0.5, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2).float()


def chunk_prompts(prompts: Prompts, rows: int) -> Iterator[Prompts]:
    """Split into consecutive parts of at most ``rows`` instances, so that decoding fits in memory.

    Raises:
        ConfigError: ``rows`` is below 1.
    """
    if rows < 1:
        raise ConfigError(f"chunks of {rows} prompts; expected at least 1")
    for start in range(0, len(prompts), rows):
        yield prompts.select(torch.arange(start, min(start + rows, len(prompts)), device=prompts.image_index.device))
