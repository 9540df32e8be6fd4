"""One training loop for every arm: AdamW, cosine over a budget of time, Dice + cross-entropy, no selection of an epoch.

The budget is of process time (:func:`fit`), or of whatever clock :func:`loop` is given.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.recipes.augment import augment
from samgraft.recipes.config import AugmentConfig
from samgraft.recipes.losses import IGNORE, SegmentationLoss
from tests.benchmarks._data import Case
from tests.benchmarks._sets import Forward, SetSpec, tensors

VOLUME_SHAPE = (40, 56, 40)
"""Training crop of the 3D network, (D, H, W); hippocampus volumes have about 35 x 51 x 36 voxels."""


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """Settings of one arm."""

    lr: float
    batch: int
    weight_decay: float = 1e-2
    warmup: float = 0.05
    """Share of the budget in which the learning rate rises."""
    clip: float = 1.0
    """Largest gradient norm."""


def rate(progress: float, warmup: float) -> float:
    """Factor of the learning rate at ``progress`` in [0, 1] of the budget: linear rise, then cosine to zero."""
    if progress < warmup:
        return progress / warmup + 1e-3
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Index batches without end: every picture once per round, in random order; short rounds are joined."""
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]


def fit(
    forward: Forward,
    parameters: Iterable[nn.Parameter],
    spec: SetSpec,
    cases: Sequence[Case],
    options: Optimiser,
    *,
    deadline: float,
    three: bool,
    seed: int,
) -> dict[str, float | int]:
    """Train until ``time.process_time()`` reaches ``deadline``.

    Args:
        forward: Network with gradient, see ``Forward``.
        parameters: What is trained.
        spec: The set.
        cases: Training cases.
        options: Settings of the arm.
        deadline: Process time at which training ends.
        three: Whether ``forward`` takes volumes.
        seed: Order of batches and augmentation.

    Returns:
        Steps and last smoothed loss.
    """
    start = time.process_time()
    pictures = volumes(cases) if three else tensors(spec, cases)
    return loop(forward, parameters, spec, pictures, options, start=start, deadline=deadline, three=three, seed=seed)


def loop(
    forward: Forward,
    parameters: Iterable[nn.Parameter],
    spec: SetSpec,
    pictures: tuple[Tensor, Tensor],
    options: Optimiser,
    *,
    start: float,
    deadline: float,
    seed: int,
    three: bool = False,
    clock: Callable[[], float] = time.process_time,
    penalty: Callable[[], Tensor | None] = lambda: None,
    factors: Mapping[nn.Parameter, float] | None = None,
) -> dict[str, float | int]:
    """Train on what ``tensors`` or ``volumes`` gave, from ``start`` to ``deadline`` of ``clock``.

    Args:
        forward: Network with gradient, see ``Forward``.
        parameters: What is trained.
        spec: The set.
        pictures: Images and labels.
        options: Settings of the arm.
        start: When the budget began, in seconds of ``clock``.
        deadline: When training ends; the step under way is finished.
        seed: Order of batches and augmentation.
        three: Whether ``forward`` takes volumes.
        clock: Seconds.
        penalty: Added to the loss of the pass just done, if it is not None.
        factors: Parameter -> multiple of the learning rate; 1 where it is not named.

    Returns:
        Steps and last smoothed loss.
    """
    loss_of = SegmentationLoss(class_weights=spec.class_weights)

    def objective(image: Tensor, label: Tensor) -> Tensor:
        loss, extra = loss_of(forward(image), label), penalty()
        return loss if extra is None else loss + extra

    (images, labels), generator = pictures, torch.Generator().manual_seed(seed)
    change = augment_volume if three else augment
    drawn = (
        change(images[index], labels[index], generator, spec.augment)
        for index in batches(len(images), options.batch, generator)
    )
    found = descend(objective, parameters, drawn, options, start=start, deadline=deadline, clock=clock, factors=factors)
    return found | {"images": len(images)}


def descend(
    objective: Callable[[Tensor, Tensor], Tensor],
    parameters: Iterable[nn.Parameter],
    drawn: Iterable[tuple[Tensor, Tensor]],
    options: Optimiser,
    *,
    start: float,
    deadline: float,
    clock: Callable[[], float] = time.process_time,
    factors: Mapping[nn.Parameter, float] | None = None,
) -> dict[str, float | int]:
    """The same for any loss and any batches.

    Args:
        objective: Images and labels of a batch -> scalar loss.
        parameters: What is trained.
        drawn: Batches without end, already changed at random.
        options: Settings of the arm; its size of a batch is not read.
        start: When the budget began, in seconds of ``clock``.
        deadline: When training ends; the step under way is finished.
        clock: Seconds.
        factors: Parameter -> multiple of the learning rate; 1 where it is not named.
    """
    trained = list(parameters)
    alike: dict[float, list[nn.Parameter]] = {}
    for parameter in trained:
        alike.setdefault((factors or {}).get(parameter, 1.0), []).append(parameter)
    groups = [{"params": own, "factor": factor} for factor, own in alike.items()]
    optimiser = torch.optim.AdamW(groups, lr=options.lr, weight_decay=options.weight_decay)
    steps, smooth = 0, float("nan")
    for image, label in drawn:
        progress = (clock() - start) / max(deadline - start, 1e-6)
        if progress >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = options.lr * group["factor"] * rate(progress, options.warmup)
        loss = objective(image, label)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, options.clip)
        optimiser.step()
        steps += 1
        smooth = loss.item() if steps == 1 else 0.95 * smooth + 0.05 * loss.item()
    return {"steps": steps, "loss": smooth}


def volumes(cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
    """Volumes (N, 1, D, H, W) and labels (N, D, H, W) of ``VOLUME_SHAPE``, centred; ``IGNORE`` outside."""
    images, labels = [], []
    for case in cases:
        images.append(torch.from_numpy(_centred(case.image, 0))[None])
        labels.append(torch.from_numpy(_centred(case.label.astype(np.int64), IGNORE)))
    return torch.stack(images), torch.stack(labels)


def _centred(array: np.ndarray, fill: int) -> np.ndarray:
    for axis, want in enumerate(VOLUME_SHAPE):
        have = array.shape[axis]
        first = max(0, (have - want) // 2)
        array = np.take(array, range(first, min(first + want, have)), axis=axis)
        missing = max(0, want - have)
        pads = [(0, 0)] * 3
        pads[axis] = (missing // 2, missing - missing // 2)
        array = np.pad(array, pads, constant_values=fill)
    return array


def augment_volume(
    image: Tensor, label: Tensor, generator: torch.Generator, config: AugmentConfig
) -> tuple[Tensor, Tensor]:
    """``samgraft.recipes.augment`` in three dimensions: rotation about all axes, scale, shift, gamma, gain, noise.

    Args:
        image: (B, 1, D, H, W) in [0, 1].
        label: (B, D, H, W); ``IGNORE`` outside.
        generator: Source of randomness.
        config: The same ranges as in two dimensions.
    """
    count = len(image)

    def draw(*shape: int, span: float) -> Tensor:
        return (torch.rand((count, *shape), generator=generator) * 2 - 1) * span

    turn = torch.eye(3).expand(count, 3, 3)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        angle, plane = draw(span=math.radians(config.rotate)), torch.eye(3).repeat(count, 1, 1)
        plane[:, first, first] = plane[:, second, second] = angle.cos()
        plane[:, first, second], plane[:, second, first] = -angle.sin(), angle.sin()
        turn = turn @ plane
    sides = torch.tensor(image.shape[:1:-1], dtype=torch.float32)  # (x, y, z)
    turn = turn * sides[None, None] / sides[None, :, None] / torch.exp(draw(1, 1, span=math.log1p(config.scale)))
    places = functional.affine_grid(
        torch.cat([turn, draw(3, 1, span=2 * config.shift)], 2), list(image.shape), align_corners=False
    )
    moved = functional.grid_sample(image, places, align_corners=False)
    raised = (label - IGNORE).float()[:, None]
    picked = functional.grid_sample(raised, places, mode="nearest", align_corners=False)[:, 0].round().long() + IGNORE
    moved = moved.clamp(1e-6, 1).pow(torch.exp(draw(1, 1, 1, 1, span=config.gamma)))
    moved = moved * (1 + draw(1, 1, 1, 1, span=config.contrast)) + draw(1, 1, 1, 1, span=config.brightness)
    noise = torch.randn(moved.shape, generator=generator) * draw(1, 1, 1, 1, span=config.noise).clamp_min(0)
    return (moved + noise).clamp(0, 1), picked
