"""Encode through the store: what nothing attached can change is computed once per view, whoever asks."""

import hashlib

import torch
from torch import Tensor

from samgraft.adapters.backbones.base import Backbone, Features, Prefix
from samgraft.adapters.graft import Grafted
from samgraft.recipes.cache.store import FeatureStore, narrow

FORMAT = 1
"""Counts up when the same image would give other numbers, such as after a change of the encoder's arithmetic."""


class CachedEncoder:
    """``grafted.encode`` with the frozen blocks looked up.

    What comes from the store and what was just computed went through fp16 alike, so a run does not depend on what the
    store happens to hold.

    Args:
        grafted: Backbone with its parts.
        store: Where features are kept.

    Attributes:
        blocks: Leading blocks that are looked up.
        whole: Whether that is the whole encoder, neck included.
        hits: Views that were found.
        misses: Views that were computed.
    """

    def __init__(self, grafted: Grafted, store: FeatureStore) -> None:
        """Find out which blocks are frozen."""
        self.grafted, self.store = grafted, store
        self.blocks, self.whole = grafted.frozen_blocks(), grafted.frozen_encoder()
        self.hits = self.misses = 0

    def __call__(self, image: Tensor, depth: int = 1) -> Features:
        """Features of ``image`` (B, 3, H, W) in [0, 1], with the taps that the parts need.

        So many images as ``depth`` says are the slices of a volume; frozen blocks, which see one slice, are looked up
        slice by slice.
        """
        taps = self.grafted.taps()
        if not self.whole and self.blocks == 0:
            return self.grafted.encode(image, depth=depth)
        kept = tuple(tap for tap in taps if self.whole or tap < self.blocks)
        found = self._look_up(image, kept)
        low = {tap: found[f"tap.{tap}"] for tap in kept}
        if self.whole:
            return Features(neck=found["neck"], taps=low, depth=depth)
        prefix = Prefix(tokens=found["tokens"], stop=self.blocks, taps=low, depth=depth)
        return self.grafted.backbone.resume(prefix, image, taps=taps)

    @torch.no_grad()
    def _look_up(self, image: Tensor, taps: tuple[int, ...]) -> dict[str, Tensor]:
        keys = [feature_key(self.grafted.backbone, view, self._depth(), taps) for view in image]
        entries = [self.store.get(key) for key in keys]
        missing = [i for i, entry in enumerate(entries) if entry is None]
        self.hits, self.misses = self.hits + len(keys) - len(missing), self.misses + len(missing)
        if missing:
            computed = self._compute(image[missing], taps)
            for row, i in enumerate(missing):
                entry = {name: narrow(tensor[row]) for name, tensor in computed.items()}
                self.store.put(keys[i], entry)
                entries[i] = entry
        whole = [entry for entry in entries if entry is not None]
        return {name: torch.stack([entry[name].to(image) for entry in whole]) for name in whole[0]}

    def _depth(self) -> str:
        return "neck" if self.whole else str(self.blocks)

    def _compute(self, image: Tensor, taps: tuple[int, ...]) -> dict[str, Tensor]:
        backbone = self.grafted.backbone
        prefix = backbone.prefix(image, backbone.spec.num_blocks if self.whole else self.blocks, taps)
        found = {f"tap.{tap}": tensor for tap, tensor in prefix.taps.items()}
        if self.whole:
            return found | {"neck": backbone.resume(prefix, image).neck}
        return found | {"tokens": prefix.tokens}


def feature_key(backbone: Backbone, view: Tensor, depth: str, taps: tuple[int, ...]) -> str:
    """BLAKE2b (hex) of all that decides the features of one view (3, H, W)."""
    spec = backbone.spec
    weights = backbone.weights_hash() + backbone.quantized
    about = (FORMAT, weights, spec.mean, spec.std, depth, taps, tuple(view.shape), str(view.dtype))
    digest = hashlib.blake2b(repr(about).encode(), digest_size=20)
    digest.update(view.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
