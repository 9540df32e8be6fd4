"""Describing cells so that those of two images can be compared, and what methods built on that have in common.

A cell is described by the encoder (neck or a tap), and optionally by where it lies and how it looks. The similarity of
two cells is a weighted mean of cosines,

    (cos(features) + position * cos(places) + appearance * cos(looks)) / (1 + position + appearance)

so one matrix product of unit vectors gives it. Place and look are angles: a coordinate that runs from 0 to 1 over the
image becomes (cos pi x, sin pi x), for which the nearest are the most alike.

Source:
    This project; which tap describes cells best was measured with ``python -m tests.benchmarks.one_shot --taps``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.prompts.base import PrompterConfig, Prompts
from samgraft.adapters.prompts.objects import FoundObjects, ObjectPrompter, Objects
from samgraft.adapters.prompts.references import References, prototypes, references_of
from samgraft.adapters.prompts.refining import decode_best, found_objects
from samgraft.errors import ConfigError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone

NECK, MIDDLE = "neck", "middle"
MEMORY = 2**24
"""Numbers of a similarity matrix that are held at once."""


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig(PrompterConfig):
    """Base of the configurations of methods that are shown references."""

    tap: str | int = MIDDLE
    """Whose cells are compared: "neck", "middle" (the block after half of them), a block (negative: from the end)."""
    centre: bool = True
    """Take the mean over all cells of the references from every feature: what all cells share tells nothing."""
    position: float = 2.0
    """Weight of where a cell lies, against 1 for features. For images that show the same view; 0 where objects can be
    anywhere, as in tiles of a map.
    """
    appearance: float = 0.0
    """Weight of mean and spread of the colours in a cell, against 1 for features."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if isinstance(self.tap, str) and self.tap not in (NECK, MIDDLE):
            raise ConfigError(f"{self.method}: tap is {self.tap!r}; expected 'neck', 'middle' or the number of a block")
        for name in ("position", "appearance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{self.method}: {name} is {getattr(self, name)}; expected a weight of at least 0")

    def block(self, num_blocks: int) -> int | None:
        """Encoder block that is read, or None for the neck.

        Raises:
            ConfigError: there is no such block.
        """
        if isinstance(self.tap, str):
            return None if self.tap == NECK else num_blocks // 2
        if not -num_blocks <= self.tap < num_blocks:
            raise ConfigError(f"{self.method}: tap {self.tap} is no block; the backbone has 0..{num_blocks - 1}")
        return self.tap % num_blocks


class ReferencePrompter(ObjectPrompter):
    """Writes prompts for every image and each of the K objects of ``context["references"]``, image-major.

    ``context["valid"]`` (B, H, W) bool, if given, is False on padding, where nothing is looked for.
    """

    def __init__(self, config: ReferenceConfig, backbone: "Backbone") -> None:
        """Remember what is read; ``backbone`` is only read."""
        super().__init__()
        self.settings = config
        self.block = config.block(backbone.spec.num_blocks)
        self.taps = () if self.block is None else (self.block,)

    def losses(self, backbone: "Backbone", features: Features, image: Tensor, objects: Objects) -> dict[str, Tensor]:
        """Nothing is trained."""
        del backbone, features, image, objects
        return {}

    def find(self, backbone: "Backbone", features: Features, image: Tensor, context: Mapping[str, Any]) -> FoundObjects:
        """One mask for each image and object, or several; references without features are encoded.

        Raises:
            ConfigError: no references, or such as the method cannot use.
        """
        context = {**context, "references": references_of(context).encode(backbone, self.taps)}
        return self.answer(backbone, features, image, context)

    def answer(
        self, backbone: "Backbone", features: Features, image: Tensor, context: Mapping[str, Any]
    ) -> FoundObjects:
        """What :meth:`find` gives, from encoded references: the best of the decoder's masks for each prompt."""
        prompts: Prompts = self(features, image, context)
        logits, scores = decode_best(backbone, features, prompts, multimask=self.multimask)
        return found_objects(prompts, logits, scores, references_of(context).num_objects)

    def cells(self, features: Features, image: Tensor, references: References) -> tuple[Tensor, Tensor]:
        """Unit vectors of the cells of images (B, h, w, D) and of references (R, h', w', D).

        Raises:
            ConfigError: features of images or references lack a tap.
        """
        shown, seen = (self._raw(f) for f in (references.ready(self.taps), features))
        if self.settings.centre:
            mean = prototypes(shown, references.known()[:, None])[0]
            shown, seen = shown - mean, seen - mean
        return self._extended(seen, image), self._extended(shown, references.images)

    def _raw(self, features: Features) -> Tensor:
        if self.block is None:
            return features.neck.permute(0, 2, 3, 1)
        if self.block not in features.taps:
            raise ConfigError(
                f"{self.settings.method} reads block {self.block}; features have {sorted(features.taps)}; encode with "
                "taps=prompter.taps"
            )
        return features.taps[self.block]

    def _extended(self, raw: Tensor, image: Tensor) -> Tensor:
        config, grid = self.settings, (raw.shape[1], raw.shape[2])
        parts = [functional.normalize(raw, dim=-1)]
        if config.position > 0:
            parts.append(math.sqrt(config.position) * place_code(grid).to(raw).expand(len(raw), -1, -1, -1))
        if config.appearance > 0:
            parts.append(math.sqrt(config.appearance) * look_code(image, grid).to(raw.dtype))
        return torch.cat(parts, dim=-1) / math.sqrt(1 + config.position + config.appearance)


def angles(values: Tensor) -> Tensor:
    """Unit vectors (..., 2 n) of values (..., n) in [0, 1]: the mean cosine of pi times their differences."""
    turned = math.pi * values
    return torch.cat([turned.cos(), turned.sin()], dim=-1) / math.sqrt(values.shape[-1])


def place_code(grid: tuple[int, int]) -> Tensor:
    """Unit vectors (1, h, w, 4) of where cells lie."""
    y, x = ((torch.arange(n, dtype=torch.float32) + 0.5) / n for n in grid)
    return angles(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1))[None]


def look_code(image: Tensor, grid: tuple[int, int]) -> Tensor:
    """Unit vectors (B, h, w, 12) of mean and spread (twice the deviation) of the colours of (B, 3, H, W) in [0, 1]."""
    mean = functional.adaptive_avg_pool2d(image.float(), grid)
    square = functional.adaptive_avg_pool2d(image.float().square(), grid)
    spread = 2 * (square - mean.square()).clamp_min(0).sqrt()
    return angles(torch.cat([mean, spread.clamp(0, 1)], dim=1).permute(0, 2, 3, 1))


def valid_cells(context: Mapping[str, Any], features: Features) -> Tensor:
    """(B, h, w) bool: cells that are not all padding, by ``context["valid"]`` (B, H, W) bool or None."""
    neck = features.neck
    batch, _, height, width = neck.shape
    valid: Tensor | None = context.get("valid")
    if valid is None:
        return torch.ones(batch, height, width, dtype=torch.bool, device=neck.device)
    return functional.adaptive_avg_pool2d(valid[:, None].to(neck), (height, width))[:, 0] > 0


def allowed_cells(context: Mapping[str, Any], features: Features) -> Tensor:
    """(B, h w) bool: :func:`valid_cells`, row by row; every cell of an image that is nothing but padding."""
    valid = valid_cells(context, features).flatten(1)
    return valid | ~valid.any(dim=1, keepdim=True)


def size_of(maps: Tensor) -> tuple[int, int]:
    """(h, w) of maps (..., h, w)."""
    return int(maps.shape[-2]), int(maps.shape[-1])


def image_major(batch: int, kinds: int, device: torch.device) -> Tensor:
    """(batch kinds,) int64: 0 for each of the kinds of the first image, then 1."""
    return torch.arange(batch, device=device).repeat_interleave(kinds)


def cell_centres(grid: tuple[int, int], patch: float) -> Tensor:
    """(h w, 2) places (x, y) in pixels of the centres of cells of ``patch`` pixels, row by row."""
    y, x = ((torch.arange(n, dtype=torch.float32) + 0.5) * patch - 0.5 for n in grid)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)


def nearest(queries: Tensor, memory: Tensor, number: int, *, bound: int = MEMORY) -> tuple[Tensor, Tensor]:
    """The ``number`` most similar rows of a memory for each query, a tile of the product at a time.

    Args:
        queries: (Q, D).
        memory: (M, D).
        number: At most this many; fewer if the memory is smaller.
        bound: Numbers of the product that are held at once.

    Returns:
        Similarities (Q, k), falling, and rows of the memory (Q, k).
    """
    k = min(number, len(memory))
    columns = max(k, min(len(memory), bound))
    rows = max(1, bound // columns)
    values, places = [], []
    for some in queries.split(rows):
        best, where = some.new_empty(len(some), 0), torch.empty(len(some), 0, dtype=torch.int64, device=some.device)
        for start in range(0, len(memory), columns):
            tile = memory[start : start + columns]
            value, index = (some @ tile.T).topk(min(k, len(tile)), dim=1)
            best, where = torch.cat([best, value], dim=1), torch.cat([where, start + index], dim=1)
            best, chosen = best.topk(min(k, best.shape[1]), dim=1)
            where = where.gather(1, chosen)
        values.append(best)
        places.append(where)
    return torch.cat(values), torch.cat(places)
