"""Tensors into a ``SamModel``: every key matched by name and shape, none invented, none dropped."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import SamConfig, SamModel

from samgraft.errors import CheckpointError

TIED = ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")
"""Two names of one tensor. A file may hold either or both."""


def build_model(config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str) -> SamModel:
    """Create a model in float32 from its configuration and all of its tensors.

    Args:
        config: Keyword arguments of :class:`transformers.SamConfig`.
        tensors: Name in the ``SamModel`` -> tensor; copied if it is not float32.
        source: Where they come from, for messages.

    Raises:
        CheckpointError: the configuration is refused, a key is missing, unknown or of another shape, or a tensor holds
            NaN or Inf. The message names the keys.
    """
    try:
        with torch.device("meta"):
            model = SamModel(SamConfig(**config))
    except Exception as error:  # transformers raises its own validation errors, of several kinds
        raise CheckpointError(f"configuration in {source} does not describe a SamModel: {error}") from error
    filled = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    for name, other in (TIED, TIED[::-1]):
        if name not in filled and other in filled:
            filled[name] = filled[other]
    check_tensors(filled, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, source)
    model.load_state_dict(filled, strict=True, assign=True)
    model.prompt_encoder.shared_embedding.positional_embedding = model.shared_image_embedding.positional_embedding
    return model.eval()


def check_tensors(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Refuse tensors that are not exactly the expected ones.

    Args:
        tensors: What was found.
        shapes: What is expected, by name.
        source: Where they come from, for messages.

    Raises:
        CheckpointError: keys or shapes differ, or a value is not finite.
    """
    missing = sorted(set(shapes) - set(tensors))
    unknown = sorted(set(tensors) - set(shapes))
    if missing or unknown:
        raise CheckpointError(
            f"{source} is not a complete SAM: missing {brief(missing)}; unknown {brief(unknown)}; get the original file"
        )
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differing = [f"{name} {found[name]} not {shapes[name]}" for name in sorted(shapes) if found[name] != shapes[name]]
    if differing:
        raise CheckpointError(f"{source} has other shapes: {brief(differing)}; get the original file")
    broken = sorted(name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all()))
    if broken:
        raise CheckpointError(f"{source} holds NaN or Inf in {brief(broken)}; get the file again")


def brief(names: list[str]) -> str:
    """The first five of ``names`` and how many more there are; "nothing" for none."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) + more) if names else "nothing"
