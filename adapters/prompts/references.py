"""Labelled reference images: what one-shot and in-context methods are shown before a new image comes.

    references = make_references(images, masks)                     # or boxes, scribbles, points
    references = references.encode(backbone, taps=prompter.taps)    # once; kept with the references
    prompts = prompter(features, image, {"references": references})

Whatever the annotation is, it becomes masks here and nowhere else. Masks come down to the grid of the features as the
share of every cell that the object covers, so an object smaller than a cell still has a place and a prototype.

References are other images than the one under evaluation; nothing here can check that, the caller has to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.config import check_choice
from samgraft.errors import ConfigError, PromptError, ShapeError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone

Kind = Literal["mask", "box", "scribble", "points"]
KINDS = ("mask", "box", "scribble", "points")
ENCODED_TOGETHER = 8
"""Reference images that are encoded at once."""
DRAWN_RADIUS = 0.015
"""Radius of a drawn point or line over the longer side of the image, where none is named; at least a pixel."""

Annotation = Sequence[float] | Sequence[Sequence[float]] | Tensor | None
"""A box (x0, y0, x1, y1), or points (n, 2) of a scribble or of clicks, in (x, y) pixels; None: not in this image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class References:
    """R labelled images of K kinds of objects. Build them with :func:`make_references`."""

    images: Tensor
    """(R, 3, H, W) in [0, 1]; sides are multiples of the patch, and need not be those of the image to segment."""
    masks: Tensor
    """(R, K, H, W) float in [0, 1]: how much of each pixel is object k."""
    kind: Kind = "mask"
    """What a person gave. Only for "mask" the pixels outside are known to be background."""
    valid: Tensor | None = None
    """(R, H, W) bool: False on padding; None if there is none."""
    features: Features | None = None
    """Of ``images``; see :meth:`encode`."""

    def __post_init__(self) -> None:
        """Check shapes, values, and that there is something of every object."""
        check_choice("references", "kind", self.kind, KINDS)
        images, masks = tuple(self.images.shape), tuple(self.masks.shape)
        if len(images) != 4 or images[1] != 3 or len(masks) != 4 or (images[0], *images[2:]) != (masks[0], *masks[2:]):
            raise ShapeError(f"references: images {images}, masks {masks}; expected (R, 3, H, W) and (R, K, H, W)")
        if 0 in masks:
            raise ShapeError(f"references: masks {masks} hold nothing; give at least one image with one object")
        if not bool(((self.masks >= 0) & (self.masks <= 1)).all()):
            raise PromptError("reference masks hold values outside [0, 1] or NaN; give bool, or shares in [0, 1]")
        if self.valid is not None and tuple(self.valid.shape) != (images[0], *images[2:]):
            raise ShapeError(f"references: valid {tuple(self.valid.shape)}; expected {(images[0], *images[2:])}")
        empty = (self._shown().sum(dim=(0, 2, 3)) == 0).nonzero().flatten().tolist()
        if empty:
            raise PromptError(
                f"no reference shows object {empty[0]} (of {masks[1]}, from 0): its masks are empty in all "
                f"{masks[0]} images; give an image with a mask of it, or leave the object out"
            )

    def __len__(self) -> int:
        """R, the number of images."""
        return len(self.images)

    @property
    def num_objects(self) -> int:
        """K."""
        return self.masks.shape[1]

    def select(self, rows: Sequence[int]) -> "References":
        """Only the images named by ``rows``, with their features.

        Raises:
            PromptError: an object is in none of them.
        """
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.images.device)
        features = self.features
        if features is not None:
            features = Features(neck=features.neck[index], taps={tap: x[index] for tap, x in features.taps.items()})
        valid = None if self.valid is None else self.valid[index]
        return replace(self, images=self.images[index], masks=self.masks[index], valid=valid, features=features)

    @torch.no_grad()
    def encode(self, backbone: "Backbone", taps: Sequence[int] = ()) -> "References":
        """The same on the backbone's device with features, a few images at once; as it is if they are there already.

        Args:
            backbone: Frozen or grafted; references and images to segment must go through the same.
            taps: Encoder blocks whose output is wanted beside the neck.
        """
        if self.features is not None and all(tap in self.features.taps for tap in taps):
            return self
        parameter = next(backbone.parameters())
        images = self.images.to(parameter.device)
        parts = [backbone.encode(some, taps) for some in images.split(ENCODED_TOGETHER)]
        features = Features(
            neck=torch.cat([part.neck for part in parts]),
            taps={tap: torch.cat([part.taps[tap] for part in parts]) for tap in taps},
        )
        valid = None if self.valid is None else self.valid.to(parameter.device)
        return replace(self, images=images, masks=self.masks.to(parameter.device), valid=valid, features=features)

    def ready(self, taps: Sequence[int] = ()) -> Features:
        """The features.

        Raises:
            ConfigError: they were not computed, or without a tap that is needed.
        """
        if self.features is None or any(tap not in self.features.taps for tap in taps):
            raise ConfigError(
                f"references have no features of blocks {list(taps)}; call references.encode(backbone, "
                "taps=prompter.taps) first and put the result into the context"
            )
        return self.features

    def shares(self, *, parts: int = 1) -> Tensor:
        """(R, K, parts h, parts w): share of each cell (or part of a cell) that an object covers, padding left out.

        Args:
            parts: Parts along each side of a cell.
        """
        grid = self._grid(parts)
        return functional.adaptive_avg_pool2d(self._shown().float(), grid)

    def known(self, *, parts: int = 1) -> Tensor:
        """(R, parts h, parts w): share of each cell that is no padding."""
        grid = self._grid(parts)
        if self.valid is None:
            return torch.ones(len(self), *grid, device=self.images.device)
        return functional.adaptive_avg_pool2d(self.valid[:, None].float(), grid)[:, 0]

    def _shown(self) -> Tensor:
        return self.masks if self.valid is None else self.masks * self.valid[:, None]

    def _grid(self, parts: int) -> tuple[int, int]:
        height, width = self.ready().neck.shape[-2:]
        return height * parts, width * parts


def references_of(context: Mapping[str, Any]) -> References:
    """``context["references"]``.

    Raises:
        ConfigError: there are none.
    """
    references = context.get("references")
    if not isinstance(references, References):
        raise ConfigError(
            f"context holds {sorted(context) or 'nothing'}; this method needs context['references'], a References "
            "object from make_references(images, masks)"
        )
    return references


def make_references(
    images: Tensor,
    annotations: Tensor | Sequence[Sequence[Annotation]],
    *,
    kind: Kind = "mask",
    radius: float | None = None,
    valid: Tensor | None = None,
) -> References:
    """References from any annotation.

    Args:
        images: (R, 3, H, W) in [0, 1].
        annotations: For "mask" a tensor (R, K, H, W) or (R, H, W), bool or shares in [0, 1]. Else per image, per
            object: a box (first and last pixel inside), the corners of a scribbled line, or clicked points.
        kind: What the annotations are.
        radius: Of a drawn point or line in pixels.
        valid: (R, H, W) bool: False on padding.

    Raises:
        ShapeError: shapes that do not belong together.
        PromptError: an object without any annotation, a value out of range, or a place outside the image.
    """
    check_choice("references", "kind", kind, KINDS)
    if isinstance(annotations, Tensor):
        if kind != "mask":
            raise ShapeError(f"references: a tensor of annotations holds masks, not {kind}; give lists, or kind='mask'")
        masks = annotations[:, None] if annotations.ndim == 3 else annotations
    elif kind == "mask":
        raise ShapeError("references: masks come as one tensor (R, K, H, W) or (R, H, W); stack them")
    else:
        size = (int(images.shape[-2]), int(images.shape[-1]))
        rows = [torch.stack([draw(kind, one, size, radius=radius) for one in image]) for image in annotations]
        if len({len(row) for row in rows}) > 1:
            raise ShapeError(f"references: images have {[len(r) for r in rows]} objects; use None where one is not")
        masks = torch.stack(rows).to(images.device)
    masks = masks.to(images.dtype) if images.is_floating_point() else masks.float()
    return References(images=images, masks=masks, kind=kind, valid=valid)


def masks_from_labels(labels: Tensor, num_objects: int) -> Tensor:
    """(R, K, H, W) bool masks of labels (R, H, W): value k + 1 is object k, everything else background.

    Raises:
        ShapeError: not (R, H, W).
    """
    if labels.ndim != 3:
        raise ShapeError(f"reference labels have shape {tuple(labels.shape)}; expected (R, H, W)")
    values = torch.arange(1, num_objects + 1, device=labels.device)
    return labels[:, None] == values[:, None, None]


def draw(kind: Kind, annotation: Annotation, size: tuple[int, int], *, radius: float | None = None) -> Tensor:
    """(H, W) bool: an annotation as a mask.

    Args:
        kind: "box": all pixels of it; "scribble": pixels near the line through its points; "points": pixels near them.
        annotation: In (x, y) pixels; None gives an empty mask.
        size: (H, W).
        radius: How near, in pixels; the nearest pixel is always drawn.

    Raises:
        PromptError: another shape, not finite, or outside the image.
    """
    height, width = size
    if annotation is None:
        return torch.zeros(size, dtype=torch.bool)
    places = torch.as_tensor(annotation, dtype=torch.float64)
    if kind == "box" and tuple(places.shape) == (4,):
        places = places.reshape(2, 2)
    elif kind == "box" or places.ndim != 2 or places.shape[1] != 2 or len(places) == 0:
        wanted = "four numbers x0, y0, x1, y1" if kind == "box" else "(x, y) of at least one point"
        raise PromptError(f"{kind} annotation has shape {tuple(places.shape)}; expected {wanted}")
    outer = torch.tensor([width - 0.5, height - 0.5], dtype=torch.float64)
    if not bool(((places >= -0.5) & (places <= outer)).all()):  # also false for NaN
        raise PromptError(
            f"{kind} annotation {places.tolist()} leaves the image: x 0..{width - 1}, y 0..{height - 1}; "
            "coordinates are (x, y) pixels"
        )
    x, y = torch.arange(width, dtype=torch.float64), torch.arange(height, dtype=torch.float64)
    if kind == "box":
        (x0, y0), (x1, y1) = (places + torch.tensor([[-0.5], [0.5]], dtype=torch.float64)).tolist()
        if x1 < x0 or y1 < y0:
            raise PromptError(f"box annotation {places.flatten().tolist()} ends before it starts; swap its corners")
        inside: Tensor = ((y >= y0) & (y <= y1))[:, None] & ((x >= x0) & (x <= x1))
        return inside
    reach = max(1.0, DRAWN_RADIUS * max(size)) if radius is None else max(float(radius), 0.5**0.5)
    ends = places[1:] if kind == "scribble" and len(places) > 1 else places
    starts = places[:-1] if kind == "scribble" and len(places) > 1 else places
    pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (H, W, 2)
    drawn = torch.zeros(size, dtype=torch.bool)
    for start, end in zip(starts, ends, strict=True):
        along = end - start
        share = ((pixels - start) @ along / along.square().sum().clamp_min(1e-12)).clamp(0, 1)
        drawn |= (pixels - start - share[..., None] * along).norm(dim=-1) <= reach
    return drawn


def prototypes(cells: Tensor, shares: Tensor) -> Tensor:
    """Area-weighted means (K, D) of cells (R, h, w, D), with the shares (R, K, h, w) that each object has of them."""
    weight = shares.flatten(2).transpose(0, 1).flatten(1).to(cells.dtype)  # (K, R h w)
    return (weight @ cells.flatten(0, 2)) / weight.sum(dim=1, keepdim=True)
