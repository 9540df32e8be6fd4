"""What an adapter's header remembers of its training images as the frozen encoder sees them.

``meta.extra["features"]`` is :class:`FeatureMoments` as JSON. It says where a domain lies among others (the router of
``samgraft.recipes.continual``) and what the adapted encoder's output is like (statistics at test time).

An image is a few network inputs spread over it; its feature is their mean of the neck, pooled over all tokens. The
distance of an image x is the root of the mean over channels of (x - mean)^2 / variance: a Mahalanobis distance with a
diagonal covariance, divided by the root of the number of channels. The variance is that of single inputs, shrunken
towards its mean over channels, since a handful of images says little about each of 256 channels. How far is too far
comes from the training images themselves: each one is measured against the others.

Source:
    Mahalanobis distance of features to tell what a network was not trained on: arXiv:1807.03888, section 2; the
    shrunken covariance is that of Ledoit and Wolf with the target of equal variances, with a fixed weight.
Deviations:
    One class, the diagonal only, and a threshold without any foreign image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.bundle import BundleMeta, read_meta, replace_meta
from samgraft.adapters.extending import put_back
from samgraft.adapters.graft import Grafted
from samgraft.domains.scene import Scene
from samgraft.errors import CheckpointError, InputError
from samgraft.recipes.data.cases import CaseRef
from samgraft.recipes.data.slabs import flat_slabs
from samgraft.recipes.engine.pipeline import encode_batch
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.header import InputRecipe
from samgraft.recipes.sampled import case_inputs, scene_inputs, spread

KEY = "features"
"""Of ``BundleMeta.extra``."""
IMAGES, INPUTS, FEW = 32, 4, 64
"""Most training images that are looked at, inputs of each of them, and inputs of all where there are few images."""
WEIGHT = 8.0
"""The mean variance counts as so many inputs beside the variance of each channel."""
SLACK = 1.5
"""An image is unknown where it is so many times as far as the farthest training image is from the others."""
Vectors = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class FeatureMoments:
    """Of the training images of one adapter."""

    backbone: str
    """SHA-256 of the frozen weights."""
    images: int
    """How many were looked at."""
    mean: tuple[float, ...]
    """(C,) of the pooled neck of the frozen encoder."""
    variance: tuple[float, ...]
    """(C,) of the same over inputs, shrunken."""
    threshold: float
    """Distance from which on an image is none of these."""
    token_mean: tuple[float, ...]
    """(C,) of the neck of the adapted encoder, over all tokens."""
    token_variance: tuple[float, ...]
    """(C,) of the same."""

    def distance(self, feature: Vectors) -> float:
        """How far an image's feature (C,) is."""
        return distance(feature, np.array(self.mean), np.array(self.variance))

    def to_json(self) -> dict[str, Any]:
        """JSON types, six digits."""
        return {name: _short(value) for name, value in asdict(self).items()}

    @classmethod
    def from_meta(cls, meta: BundleMeta, owner: str = "the adapter") -> "FeatureMoments":
        """Read it from a header.

        Args:
            meta: The header.
            owner: What the adapter is called in messages.

        Raises:
            CheckpointError: it is not there, or not what this version writes.
        """
        given = meta.extra.get(KEY)
        if given is None:
            raise CheckpointError(
                f"{owner} says nothing about the features of its training images; it is older, or made of others; add "
                "them with samgraft route --learn IMAGE ... --adapters FILE"
            )
        try:
            values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
            found = cls(**values)
            sizes = {len(v) for v in (found.mean, found.variance, found.token_mean, found.token_variance)}
        except (TypeError, AttributeError) as error:
            raise CheckpointError(f"{owner} has features that this version cannot read: {error}; update") from error
        if len(sizes) != 1 or not found.threshold > 0 or min(found.variance) <= 0:
            raise CheckpointError(f"{owner} has features that contradict themselves; write them again")
        return found


def distance(feature: Vectors, mean: Vectors, variance: Vectors) -> float:
    """Root of the mean over channels of (feature - mean)^2 / variance; all (C,)."""
    return float(np.sqrt(((feature - mean) ** 2 / variance).mean()))


def shrunken(inputs: Vectors, mean: Vectors) -> Vectors:
    """Variance (C,) of inputs (n, C) about ``mean`` (C,), shrunken towards its mean over channels.

    Raises:
        InputError: fewer than two inputs, or all the same.
    """
    count = len(inputs)
    own = ((inputs - mean) ** 2).sum(axis=0) / max(count - 1, 1)
    if count < 2 or not own.mean() > 0:
        raise InputError(
            f"{count} network inputs, and no difference between them, say nothing about how images of this kind "
            "differ; give more training images"
        )
    found: Vectors = (WEIGHT * own.mean() + count * own) / (WEIGHT + count)
    return found


def moments(images: Sequence[Vectors]) -> tuple[Vectors, Vectors, float]:
    """Mean (C,), variance (C,) and threshold of images, each (n_i, C): the pooled features of its inputs.

    With a single image its inputs stand for images.

    Raises:
        InputError: too little to tell a variance.
    """
    mean, variance = _mean_and_variance(images)
    apart = list(images) if len(images) > 1 else [row[None] for row in images[0]]
    if len(apart) == 2:  # what is left of two is one, whose variance nobody knows
        own = [distance(one.mean(axis=0), mean, variance) for one in apart]
    else:
        others = [[one for j, one in enumerate(apart) if j != i] for i in range(len(apart))]
        own = [distance(one.mean(axis=0), *_mean_and_variance(rest)) for one, rest in zip(apart, others, strict=True)]
    return mean, variance, SLACK * max(own)


def _mean_and_variance(images: Sequence[Vectors]) -> tuple[Vectors, Vectors]:
    mean = np.mean([one.mean(axis=0) for one in images], axis=0)
    return mean, shrunken(np.concatenate(images), mean)


@torch.no_grad()
def necks(backbone: Backbone, inputs: Tensor) -> Iterable[Tensor]:
    """Necks (b, C, h, w) of network inputs or slabs, a few at a time, as the backbone is now."""
    device = next(backbone.parameters()).device
    flat, _, slices = flat_slabs(inputs, None)
    batch = encode_batch(backbone, flat.shape[-1])
    for part in flat.split(max(1, batch // slices) * slices):
        there = part.to(device)
        yield (backbone.encode(there) if slices == 1 else backbone.encode(there, depth=slices)).neck


def pooled(backbone: Backbone, inputs: Tensor) -> Vectors:
    """(n, C): mean over tokens of what the backbone gives for single inputs (n, 3, S, S), as it is now."""
    return np.concatenate([neck.double().mean(dim=(2, 3)).cpu().numpy() for neck in necks(backbone, inputs)])


class TokenSums:
    """Mean and variance of the tokens of a neck, channel by channel, summed up in float64."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.images, self._count = 0, 0
        self._sum, self._square = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

    def add(self, neck: Tensor) -> None:
        """Count the tokens of (b, C, h, w)."""
        wide = neck.detach().double().cpu()
        self.images += len(wide)
        self._count += wide.numel() // wide.shape[1]
        self._sum = self._sum + wide.sum(dim=(0, 2, 3))
        self._square = self._square + wide.square().sum(dim=(0, 2, 3))

    def mean(self) -> Tensor:
        """(C,) float64."""
        return self._sum / max(self._count, 1)

    def variance(self) -> Tensor:
        """(C,) float64, not below zero."""
        return (self._square / max(self._count, 1) - self.mean().square()).clamp_min(0)


def domain_features(grafted: Grafted, images: Iterable[Tensor]) -> FeatureMoments:
    """Moments of training images, by the frozen and by the adapted encoder.

    Args:
        grafted: The adapter on its backbone; taken out and put back between images.
        images: Network inputs of each image, (n, 3, S, S) or slabs (n, 3, D, S, S).

    Raises:
        InputError: too little to tell a variance.
    """
    frozen: list[Vectors] = []
    tokens = TokenSums()
    mode = grafted.training
    grafted.eval()
    try:
        for inputs in images:
            for neck in necks(grafted.backbone, inputs):
                tokens.add(neck)
            backbone = grafted.detach()
            frozen.append(pooled(backbone, flat_slabs(inputs, None)[0]))
            grafted.install()
    finally:
        if not grafted.attached:
            grafted.install()
        grafted.train(mode)
    if not frozen:
        raise InputError("there is no training image to remember; give at least one")
    mean, variance, threshold = moments(frozen)
    return FeatureMoments(
        backbone=grafted.base_hash,
        images=len(frozen),
        mean=tuple(mean.tolist()),
        variance=tuple(variance.tolist()),
        threshold=threshold,
        token_mean=tuple(tokens.mean().tolist()),
        token_variance=tuple(tokens.variance().tolist()),
    )


def inputs_per_image(images: int) -> int:
    """How many inputs of each image are looked at, where there are so many images."""
    return max(INPUTS, FEW // max(images, 1))


def remember_features(adapter: Path, grafted: Grafted, cases: Sequence[CaseRef]) -> None:
    """Write the moments of training cases into the header of an adapter file; the end of ``samgraft fit``.

    Cases are read again, a few inputs of each. Where too little was trained on to tell a variance, nothing is written.

    Args:
        adapter: The file.
        grafted: A network of the same parts; it gets the file's tensors meanwhile.
        cases: Training cases.
    """
    meta = read_meta(adapter)
    recipe = InputRecipe.from_meta(meta)
    chosen = [cases[index] for index in sorted(spread(len(cases), IMAGES))]
    few = inputs_per_image(len(chosen))
    before = {key: value.clone() for key, value in grafted.graft_state().items()}
    grafted.load_graft_state(safetensors.torch.load_file(adapter))
    try:
        found = domain_features(grafted, (case_inputs(ref.read(), recipe, few) for ref in chosen))
    except InputError:
        return
    finally:
        put_back(grafted, before)
    write_features(adapter, found)


def learn_features(grafted: Grafted, recorded: Recorded, scenes: Sequence[Scene]) -> FeatureMoments:
    """The same of image files, for an adapter that was trained without it.

    Args:
        grafted: The adapter on its backbone.
        recorded: What its header says.
        scenes: Images that it was trained on, or others of their kind.

    Raises:
        InputError: too little to tell a variance, or an image that the adapter cannot see.
    """
    chosen = [scenes[index] for index in sorted(spread(len(scenes), IMAGES))]
    few = inputs_per_image(len(chosen))
    return domain_features(grafted, (scene_inputs(scene, recorded, few) for scene in chosen))


def write_features(adapter: Path, features: FeatureMoments) -> None:
    """Put moments into the header of an adapter file; its tensors stay as they are."""
    meta = read_meta(adapter)
    replace_meta(adapter, replace(meta, extra={**meta.extra, KEY: features.to_json()}))


def _short(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_short(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
