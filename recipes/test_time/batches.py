"""Inputs of a scene in batches that the encoder can take at once."""

from torch import Tensor

from samgraft.adapters.graft import Grafted
from samgraft.recipes.engine.pipeline import encode_batch


def batches(grafted: Grafted, inputs: Tensor) -> tuple[Tensor, ...]:
    """Parts of (n, 3, S, S) or slabs (n, 3, D, S, S), as many at once as the size of their tokens allows."""
    slices = inputs.shape[2] if inputs.ndim == 5 else 1
    parts: tuple[Tensor, ...] = inputs.split(max(1, encode_batch(grafted.backbone, inputs.shape[-1]) // slices))
    return parts
