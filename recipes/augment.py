"""Random changes of a batch of images and labels, as one vectorised torch function.

The same function serves grafts and the UNet baselines of the benchmarks, so that neither has an advantage. Every random
number comes from the generator that is passed in.
"""

import hashlib
import math

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.errors import ShapeError
from samgraft.recipes.config import AugmentConfig
from samgraft.recipes.losses import IGNORE

__all__ = ["AugmentConfig", "augment", "augment_views"]


def augment(image: Tensor, label: Tensor, generator: torch.Generator, config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Change every image of a batch on its own.

    Args:
        image: (B, C, H, W) float in [0, 1].
        label: (B, H, W) integer; sampled nearest, never blended. Pixels from outside the image become ``IGNORE``.
        generator: Source of randomness, on the CPU.
        config: Which changes, how strong.

    Returns:
        Image (same shape, in [0, 1]) and label (same shape and dtype).

    Raises:
        ShapeError: image and label do not fit together.
    """
    if image.ndim != 4 or label.shape != (image.shape[0], *image.shape[2:]):
        raise ShapeError(
            f"image is {tuple(image.shape)}, label {tuple(label.shape)}; expected (B, C, H, W) and (B, H, W)"
        )
    if not config.enabled:
        return image, label
    if config.quarter_turns:
        image, label = _quarter_turns(image, label, generator)
    image, label = _warp(image, label, generator, config)
    return _intensity(image, generator, config), label


def augment_views(
    image: Tensor, label: Tensor, generator: torch.Generator, config: AugmentConfig, views: int
) -> tuple[Tensor, Tensor]:
    """Change every image into one of its ``views`` views: the same view of the same image is always the same pixels.

    Args:
        image: (B, C, H, W) float in [0, 1].
        label: (B, H, W) integer.
        generator: Chooses the views.
        config: Which changes, how strong.
        views: How many different views an image has.

    Returns:
        As :func:`augment`.
    """
    chosen = torch.randint(views, (len(image),), generator=generator).tolist()
    changed = []
    for row, view in enumerate(chosen):
        digest = hashlib.blake2b(image[row].cpu().contiguous().numpy().data, digest_size=7)
        own = torch.Generator().manual_seed((int.from_bytes(digest.digest(), "big") << 6) + view)
        changed.append(augment(image[row : row + 1], label[row : row + 1], own, config))
    images, labels = zip(*changed, strict=True)
    return torch.cat(images), torch.cat(labels)


def _uniform(generator: torch.Generator, shape: tuple[int, ...], low: float, high: float, like: Tensor) -> Tensor:
    values = torch.rand(shape, generator=generator) * (high - low) + low
    return values.to(device=like.device, dtype=like.dtype)


def _chance(generator: torch.Generator, count: int, probability: float, like: Tensor) -> Tensor:
    """(count, 1, 1, 1): 1 where the change happens."""
    return (torch.rand((count, 1, 1, 1), generator=generator) < probability).to(device=like.device, dtype=like.dtype)


def _quarter_turns(image: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    turns = torch.randint(0, 4 if image.shape[2] == image.shape[3] else 2, (len(image),), generator=generator)
    step = 1 if image.shape[2] == image.shape[3] else 2
    images = [torch.rot90(x, int(k) * step, (1, 2)) for x, k in zip(image, turns, strict=True)]
    labels = [torch.rot90(x, int(k) * step, (0, 1)) for x, k in zip(label, turns, strict=True)]
    return torch.stack(images), torch.stack(labels)


def _matrices(image: Tensor, generator: torch.Generator, config: AugmentConfig) -> Tensor:
    """(B, 2, 3): output to input coordinates in [-1, 1], (x, y); rotation keeps pixel angles on any aspect."""
    count, height, width = len(image), image.shape[2], image.shape[3]
    radians = math.radians(config.rotate)
    angle = _uniform(generator, (count,), -radians, radians, image)
    limit = math.log1p(config.scale)
    zoom = torch.exp(_uniform(generator, (count,), -limit, limit, image))
    shift = _uniform(generator, (count, 2), -2 * config.shift, 2 * config.shift, image)
    sign = torch.ones(count, 2, device=image.device, dtype=image.dtype)
    for axis, wanted in enumerate((config.flip_x, config.flip_y)):
        draw = torch.rand((count,), generator=generator).to(image.device)
        if wanted:
            sign[:, axis] = torch.where(draw < 0.5, -1.0, 1.0).to(image.dtype)
    cos, sin, aspect = torch.cos(angle) / zoom, torch.sin(angle) / zoom, height / width
    top = torch.stack([cos * sign[:, 0], -sin * aspect * sign[:, 1], shift[:, 0]], dim=1)
    bottom = torch.stack([sin / aspect * sign[:, 0], cos * sign[:, 1], shift[:, 1]], dim=1)
    return torch.stack([top, bottom], dim=1)


def _warp(image: Tensor, label: Tensor, generator: torch.Generator, config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Affine and elastic in one resampling: bilinear for images, nearest for labels."""
    count, _, height, width = image.shape
    matrices = _matrices(image, generator, config)
    moves = config.rotate or config.scale or config.shift or config.flip_x or config.flip_y
    if not moves and not config.elastic:
        return image, label
    places = functional.affine_grid(matrices, [count, 1, height, width], align_corners=False)  # (B, H, W, 2)
    if config.elastic:
        nodes = config.elastic_nodes
        field = _uniform(generator, (count, 2, nodes, nodes), -2 * config.elastic, 2 * config.elastic, image)
        field = functional.interpolate(field, size=(height, width), mode="bicubic", align_corners=True)
        field = field * _chance(generator, count, config.probability, image)
        places = places + field.permute(0, 2, 3, 1)
    moved = functional.grid_sample(image, places, mode="bilinear", padding_mode="zeros", align_corners=False)
    raised = (label.double() - IGNORE).unsqueeze(1)  # IGNORE becomes 0, which is also what lies outside
    picked = functional.grid_sample(raised, places.double(), mode="nearest", padding_mode="zeros", align_corners=False)
    return moved, (picked[:, 0].round() + IGNORE).to(label.dtype)


def _intensity(image: Tensor, generator: torch.Generator, config: AugmentConfig) -> Tensor:
    count, channels = image.shape[:2]
    gamma = torch.exp(_uniform(generator, (count, 1, 1, 1), -config.gamma, config.gamma, image))
    gamma = 1 + (gamma - 1) * _chance(generator, count, config.probability, image)
    contrast = 1 + _uniform(generator, (count, 1, 1, 1), -config.contrast, config.contrast, image)
    brightness = _uniform(generator, (count, 1, 1, 1), -config.brightness, config.brightness, image)
    colour = 1 + _uniform(generator, (count, channels, 1, 1), -config.colour, config.colour, image)
    if config.gamma:
        image = image.clamp(1e-6, 1).pow(gamma)
    mean = image.mean(dim=(1, 2, 3), keepdim=True)
    image = ((image - mean) * contrast + mean + brightness) * colour
    image = _blur(image, generator, config)
    deviation = _uniform(generator, (count, 1, 1, 1), 0.0, config.noise, image)
    deviation = deviation * _chance(generator, count, config.probability, image)
    if config.noise:
        image = image + deviation * torch.randn(image.shape, generator=generator).to(image)
    return image.clamp(0, 1)


def _blur(image: Tensor, generator: torch.Generator, config: AugmentConfig) -> Tensor:
    """Separable Gaussian with its own width per image; one grouped convolution per axis."""
    count, channels, height, width = image.shape
    sigma = _uniform(generator, (count, 1), 0.0, config.blur, image)
    sigma = sigma * _chance(generator, count, config.probability, image)[:, :, 0, 0]
    radius = min(int(math.ceil(2.5 * config.blur)), (min(height, width) - 1) // 2)
    if radius < 1:
        return image
    at = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (at / sigma.clamp_min(1e-3)) ** 2)  # (B, 2r+1)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)[:, None, None]
    flat = image.reshape(1, count * channels, height, width)
    flat = functional.pad(flat, (radius, radius, radius, radius), mode="reflect")
    flat = functional.conv2d(flat, kernel, groups=count * channels)
    flat = functional.conv2d(flat, kernel.transpose(2, 3), groups=count * channels)
    return flat.reshape(image.shape)
