"""The frozen teacher: embeddings and objects of a view, computed once and kept on disk.

A view is a square (3, S, S) in [0, 1] of the base side, the larger of the two networks' sides; each network sees it at
its own. Embeddings go through ``recipes.cache`` (fp16, memory-mapped, keyed by content and weights).
"""

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.backbones.hf import HFSamBackbone, hash_tensors
from samgraft.adapters.graft import attach
from samgraft.adapters.prompts.base import Prompts
from samgraft.adapters.prompts.grid import grid_points
from samgraft.errors import CheckpointError
from samgraft.recipes.cache.features import CachedEncoder, feature_key
from samgraft.recipes.cache.store import FeatureStore
from samgraft.recipes.distill.prompting import Objects, choose_objects, scale_prompts

OBJECTS_FORMAT = 1
"""Counts up when the same view would give other objects."""


def resize_square(tensor: Tensor, side: int) -> Tensor:
    """(B, C, s, s) to (B, C, side, side), bilinear by pixel centres; averaging when shrinking."""
    if tensor.shape[-1] == side:
        return tensor
    options = {"mode": "bilinear", "align_corners": False, "antialias": tensor.shape[-1] > side}
    return functional.interpolate(tensor, size=(side, side), **options)  # type: ignore[arg-type]


class Teacher:
    """A frozen backbone that is asked, never trained; not a module, so that no checkpoint holds it.

    Args:
        backbone: The backbone.
        size: Side in pixels of what it sees.
        store: Where embeddings are kept; None computes them every time.
        points_per_side: Grid of points that asks for objects.
        most: Objects kept per view.

    Attributes:
        grid: Tokens per side of an embedding.
    """

    def __init__(
        self, backbone: HFSamBackbone, *, size: int, store: FeatureStore | None, points_per_side: int, most: int
    ) -> None:
        """Hash the weights, to compare at the end."""
        self.backbone, self.size, self.store = backbone, size, store
        self.grid = size // backbone.spec.patch_size
        self.points_per_side, self.most = points_per_side, most
        self.hash = hash_tensors(backbone.sam.state_dict())
        self._encoder = None if store is None else CachedEncoder(attach(backbone, []), store)

    @property
    def computed(self) -> int:
        """Embeddings that were computed and not looked up, as far as a store counts them."""
        return 0 if self._encoder is None else self._encoder.misses

    def to(self, device: torch.device) -> None:
        """Move the backbone."""
        self.backbone.to(device)

    @torch.no_grad()
    def neck(self, view: Tensor, *, keep: bool = True) -> Tensor:
        """Embedding (B, C, h, w) of views (B, 3, S, S) in [0, 1]; float32, rounded to fp16 on the way if kept."""
        seen = resize_square(view, self.size)
        with torch.autocast(device_type=seen.device.type, enabled=False):
            if keep and self._encoder is not None:
                return self._encoder(seen).neck.float()
            return self.backbone.encode(seen).neck.float()

    @torch.no_grad()
    def decode(self, neck: Tensor, prompts: Prompts, *, side: int, multimask: bool) -> tuple[Tensor, Tensor]:
        """Mask logits (N, K, 4h, 4w) and predicted IoU (N, K) for prompts in pixels of a view of ``side``."""
        placed = scale_prompts(prompts, self.size / side).to(neck.device)
        with torch.autocast(device_type=neck.device.type, enabled=False):
            return self.backbone.decode(Features(neck=neck), placed, multimask=multimask)

    @torch.no_grad()
    def objects(self, view: Tensor, neck: Tensor, *, keep: bool = True) -> list[Objects]:
        """What the teacher finds in each view with a grid of points; ``neck`` is the views' embedding."""
        seen = resize_square(view, self.size)
        return [self._objects_of(seen[i], neck[i : i + 1], keep) for i in range(len(seen))]

    def _objects_of(self, seen: Tensor, neck: Tensor, keep: bool) -> Objects:
        about = f"objects {OBJECTS_FORMAT} {self.points_per_side} {self.most}"
        key, cells = feature_key(self.backbone, seen, about, ()), 4 * self.grid
        found = self.store.get(key) if keep and self.store is not None else None
        if found is not None:
            return Objects(boxes=found["boxes"].float(), points=found["points"].float(), cells=cells)
        points = grid_points((self.size, self.size), self.points_per_side)[:, None]
        index = torch.zeros(len(points), dtype=torch.int64)
        clicks = Prompts(image_index=index, points=points, labels=torch.ones(len(points), 1, dtype=torch.int64))
        logits, iou = self.decode(neck, clicks, side=self.size, multimask=True)
        own = torch.Generator().manual_seed(int(key[:15], 16))
        objects = choose_objects(logits.flatten(0, 1), iou.flatten(), self.most, own)
        if keep and self.store is not None:
            self.store.put(key, {"boxes": objects.boxes, "points": objects.points})
        return objects

    def require_unchanged(self) -> None:
        """Compare the tensors with those at the start.

        Raises:
            CheckpointError: a tensor of the teacher changed.
        """
        now = hash_tensors(self.backbone.sam.state_dict())
        if now != self.hash:
            raise CheckpointError(
                f"the frozen teacher changed during training (hash {self.hash[:12]} became {now[:12]}); do not use "
                "this student, and report how it was trained"
            )
