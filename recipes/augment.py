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
from samgraft.recipes.ranks import ALONE, Share

__all__ = ["AugmentConfig", "augment", "augment_views"]


class _Draws:
    """Random numbers of the whole batch, of which this process keeps those of its own rows.

    Every process draws them all: one that skipped the others' would no longer agree with them in the next batch.
    """

    def __init__(self, generator: torch.Generator, share: Share) -> None:
        self.generator, self.share = generator, share

    def rand(self, shape: tuple[int, ...]) -> Tensor:
        """Uniform in [0, 1)."""
        return self.share.rows(torch.rand(self._whole(shape), generator=self.generator))

    def randn(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal."""
        return self.share.rows(torch.randn(self._whole(shape), generator=self.generator))

    def randint(self, high: int, count: int) -> Tensor:
        """Whole numbers below ``high``."""
        return self.share.rows(torch.randint(high, (count * self.share.world,), generator=self.generator))

    def _whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0] * self.share.world, *shape[1:])


def augment(
    image: Tensor,
    label: Tensor,
    generator: torch.Generator,
    config: AugmentConfig,
    *,
    share: Share = ALONE,
    amplitudes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Change every image of a batch on its own.

    Args:
        image: (B, C, H, W) float in [0, 1], or (B, C, D, H, W): all slices of a slab are changed alike.
        label: (B, H, W) or (B, D, H, W) integer; sampled nearest, never blended. Pixels from outside the image become
            ``IGNORE``.
        generator: Source of randomness, on the CPU.
        config: Which changes, how strong.
        share: Which rows of the global batch these images are; numbers are drawn for all of it, so that several
            processes change their images as one process would.
        amplitudes: (n, C, k, k) low-frequency amplitudes for ``config.fourier`` (``recipes.data.amplitudes``); None
            mixes nothing.

    Returns:
        Image (same shape, in [0, 1]) and label (same shape and dtype).

    Raises:
        ShapeError: image and label do not fit together.
    """
    if image.ndim not in (4, 5) or label.shape != (image.shape[0], *image.shape[2:]):
        raise ShapeError(
            f"image is {tuple(image.shape)}, label {tuple(label.shape)}; expected (B, C, H, W) and (B, H, W), or both "
            "with slices D before H"
        )
    if not config.enabled:
        return image, label
    draws = _Draws(generator, share)
    if amplitudes is not None:
        image = _mix_amplitudes(image, amplitudes, draws, config)
    shape, flat = image.shape[1:-2], image.flatten(1, -3)  # slices of a slab are further channels
    labels = label.unsqueeze(1) if label.ndim == 3 else label
    if config.quarter_turns:
        flat, labels = _quarter_turns(flat, labels, draws)
    flat, labels = _warp(flat, labels, draws, config)
    changed = _intensity(flat.unflatten(1, shape), draws, config)
    return changed, labels[:, 0] if label.ndim == 3 else labels


def augment_views(
    image: Tensor,
    label: Tensor,
    generator: torch.Generator,
    config: AugmentConfig,
    views: int,
    *,
    share: Share = ALONE,
    amplitudes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Change every image into one of its ``views`` views: the same view of the same image is always the same pixels.

    Args:
        image: (B, C, H, W) float in [0, 1].
        label: (B, H, W) integer.
        generator: Chooses the views.
        config: Which changes, how strong.
        views: How many different views an image has.
        share: As in :func:`augment`.
        amplitudes: As in :func:`augment`.

    Returns:
        As :func:`augment`.
    """
    chosen = _Draws(generator, share).randint(views, len(image)).tolist()
    changed = []
    for row, view in enumerate(chosen):
        digest = hashlib.blake2b(image[row].cpu().contiguous().numpy().data, digest_size=7)
        own = torch.Generator().manual_seed((int.from_bytes(digest.digest(), "big") << 6) + view)
        changed.append(augment(image[row : row + 1], label[row : row + 1], own, config, amplitudes=amplitudes))
    images, labels = zip(*changed, strict=True)
    return torch.cat(images), torch.cat(labels)


def _uniform(draws: _Draws, shape: tuple[int, ...], low: float, high: float, like: Tensor) -> Tensor:
    values = draws.rand(shape) * (high - low) + low
    return values.to(device=like.device, dtype=like.dtype)


def _chance(draws: _Draws, count: int, probability: float, like: Tensor) -> Tensor:
    """(count, 1, 1, 1): 1 where the change happens."""
    return (draws.rand((count, 1, 1, 1)) < probability).to(device=like.device, dtype=like.dtype)


def low_places(height: int, width: int, beta: float) -> tuple[Tensor, Tensor]:
    """Rows and columns of a two-dimensional spectrum with at most ``beta`` cycles per pixel, negative ones first."""
    half = max(1, int(beta * min(height, width)))
    down, right = (min(half, (side - 1) // 2) for side in (height, width))
    return torch.arange(-down, down + 1) % height, torch.arange(-right, right + 1) % width


def _mix_amplitudes(image: Tensor, amplitudes: Tensor, draws: _Draws, config: AugmentConfig) -> Tensor:
    """Blend the low-frequency amplitudes of each image with those of one entry of a bank; phases stay.

    Source:
        Yang and Soatto 2020, arXiv:2004.05498, section 3.1; blended by a random share as in Xu et al. 2021,
        arXiv:2105.11120, equation 7.
    """
    count, one = len(image), (len(image), *(1,) * (image.ndim - 1))
    probability = config.probability if isinstance(config.fourier, str) else float(config.fourier)
    wanted = draws.randint(len(amplitudes), count)
    part = _uniform(draws, one, 0.0, 1.0, image) * _chance(draws, count, probability, image).view(one)
    down, right = (places.to(image.device) for places in low_places(*image.shape[-2:], config.fourier_beta))
    spectrum = torch.fft.fft2(image)
    low = spectrum[..., down[:, None], right]
    other = amplitudes.to(image)[wanted.to(image.device)]
    other = other if image.ndim == 4 else other.unsqueeze(2)  # the slices of a slab are changed alike
    spectrum[..., down[:, None], right] = torch.polar(low.abs() + part * (other - low.abs()), low.angle())
    mixed = torch.fft.ifft2(spectrum).real.clamp(0, 1)
    return torch.where(part > 0, mixed, image)


def _quarter_turns(image: Tensor, label: Tensor, draws: _Draws) -> tuple[Tensor, Tensor]:
    turns = draws.randint(4 if image.shape[2] == image.shape[3] else 2, len(image))
    step = 1 if image.shape[2] == image.shape[3] else 2
    images = [torch.rot90(x, int(k) * step, (1, 2)) for x, k in zip(image, turns, strict=True)]
    labels = [torch.rot90(x, int(k) * step, (1, 2)) for x, k in zip(label, turns, strict=True)]
    return torch.stack(images), torch.stack(labels)


def _matrices(image: Tensor, draws: _Draws, config: AugmentConfig) -> Tensor:
    """(B, 2, 3): output to input coordinates in [-1, 1], (x, y); rotation keeps pixel angles on any aspect."""
    count, height, width = len(image), image.shape[2], image.shape[3]
    radians = math.radians(config.rotate)
    angle = _uniform(draws, (count,), -radians, radians, image)
    limit = math.log1p(config.scale)
    zoom = torch.exp(_uniform(draws, (count,), -limit, limit, image))
    shift = _uniform(draws, (count, 2), -2 * config.shift, 2 * config.shift, image)
    sign = torch.ones(count, 2, device=image.device, dtype=image.dtype)
    for axis, wanted in enumerate((config.flip_x, config.flip_y)):
        draw = draws.rand((count,)).to(image.device)
        if wanted:
            sign[:, axis] = torch.where(draw < 0.5, -1.0, 1.0).to(image.dtype)
    cos, sin, aspect = torch.cos(angle) / zoom, torch.sin(angle) / zoom, height / width
    top = torch.stack([cos * sign[:, 0], -sin * aspect * sign[:, 1], shift[:, 0]], dim=1)
    bottom = torch.stack([sin / aspect * sign[:, 0], cos * sign[:, 1], shift[:, 1]], dim=1)
    return torch.stack([top, bottom], dim=1)


def _warp(image: Tensor, label: Tensor, draws: _Draws, config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Affine and elastic in one resampling: bilinear for images, nearest for labels (B, L, H, W)."""
    count, _, height, width = image.shape
    matrices = _matrices(image, draws, config)
    moves = config.rotate or config.scale or config.shift or config.flip_x or config.flip_y
    if not moves and not config.elastic:
        return image, label
    places = functional.affine_grid(matrices, [count, 1, height, width], align_corners=False)  # (B, H, W, 2)
    if config.elastic:
        nodes = config.elastic_nodes
        field = _uniform(draws, (count, 2, nodes, nodes), -2 * config.elastic, 2 * config.elastic, image)
        field = functional.interpolate(field, size=(height, width), mode="bicubic", align_corners=True)
        field = field * _chance(draws, count, config.probability, image)
        places = places + field.permute(0, 2, 3, 1)
    moved = functional.grid_sample(image, places, mode="bilinear", padding_mode="zeros", align_corners=False)
    raised = label.double() - IGNORE  # IGNORE becomes 0, which is also what lies outside
    picked = functional.grid_sample(raised, places.double(), mode="nearest", padding_mode="zeros", align_corners=False)
    return moved, (picked.round() + IGNORE).to(label.dtype)


def _intensity(image: Tensor, draws: _Draws, config: AugmentConfig) -> Tensor:
    count, channels, depth = *image.shape[:2], image.shape[2:-2]  # depth: () or (D,)
    one = (count, *(1,) * (image.ndim - 1))
    if config.invert:
        image = image + _chance(draws, count, config.invert, image).view(one) * (1 - 2 * image)
    gamma = torch.exp(_uniform(draws, one, -config.gamma, config.gamma, image))
    gamma = 1 + (gamma - 1) * _chance(draws, count, config.probability, image).view(one)
    contrast = 1 + _uniform(draws, one, -config.contrast, config.contrast, image)
    brightness = _uniform(draws, one, -config.brightness, config.brightness, image)
    colour = 1 + _uniform(draws, (count, channels, *one[2:]), -config.colour, config.colour, image)
    if config.gamma:
        image = image.clamp(1e-6, 1).pow(gamma)
    mean = image.mean(dim=tuple(range(1, image.ndim)), keepdim=True)
    image = ((image - mean) * contrast + mean + brightness) * colour
    image = _blur(image.flatten(1, -3), draws, config).unflatten(1, (channels, *depth))
    deviation = _uniform(draws, one, 0.0, config.noise, image)
    deviation = deviation * _chance(draws, count, config.probability, image).view(one)
    if config.noise:
        image = image + deviation * draws.randn(tuple(image.shape)).to(image)
    return image.clamp(0, 1)


def _blur(image: Tensor, draws: _Draws, config: AugmentConfig) -> Tensor:
    """Separable Gaussian with its own width per image; one grouped convolution per axis."""
    count, channels, height, width = image.shape
    sigma = _uniform(draws, (count, 1), 0.0, config.blur, image)
    sigma = sigma * _chance(draws, count, config.probability, image)[:, :, 0, 0]
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
