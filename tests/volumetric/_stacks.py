"""Toy volumes, and which slices a network lets through to which."""

import torch
from torch import Tensor

from samgraft.adapters.graft import Grafted


def volume(depth: int, height: int = 40, width: int = 64, *, volumes: int = 1, seed: int = 0) -> Tensor:
    """(volumes * depth, 3, H, W) in [0, 1]; every slice is another one."""
    return torch.rand(volumes * depth, 3, height, width, generator=torch.Generator().manual_seed(seed))


def move(grafted: Grafted, scale: float = 0.2) -> None:
    """Move every attached parameter, so that the parts do something that can be seen."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in grafted.trainable_parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def sees(answer: Tensor, image: Tensor) -> list[int]:
    """Slices of ``image`` (D, ...) that ``answer`` depends on.

    A random sum is derived: a plain one would not move where a norm is the last step.
    """
    weights = torch.randn(answer.shape, generator=torch.Generator().manual_seed(1)).to(answer.dtype)
    (slope,) = torch.autograd.grad((answer * weights).sum(), image, retain_graph=True)
    return slope.flatten(1).abs().amax(dim=1).nonzero().flatten().tolist()
