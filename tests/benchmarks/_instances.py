"""Objects from maps in the benchmarks: any network under any representation, the same crops, loss and clock.

Pictures are drawn alike, however large they are, and cut at random places; the other benchmarks walk fixed windows,
where four large pictures of nuclei have as many as all others. Scores are of the file's grid, with the blending and
reading that ``samgraft segment`` does.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from monai.networks.nets import UNet
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.decoders.base import DecoderConfig
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts.base import GraftConfig
from samgraft.grid import Grid
from samgraft.recipes.augment import augment
from samgraft.recipes.config import AugmentConfig, TaskConfig
from samgraft.recipes.data.cases import CaseArrays
from samgraft.recipes.data.fit import Fit
from samgraft.recipes.inference import predict_instances
from samgraft.recipes.instances import InstanceMatch, average_precision, match_instances, mean_matched_iou
from samgraft.recipes.representations import DistanceMaps, ObjectMaps, head_of, represent
from tests.benchmarks._backbone import open_backbone
from tests.benchmarks._data import Case
from tests.benchmarks._sets import Forward, SetSpec
from tests.benchmarks._train import Optimiser, rate

THRESHOLDS = tuple(np.arange(0.5, 0.96, 0.05).round(2).tolist())
"""IoU of AP averaged over thresholds, as COCO does."""


@dataclass(kw_only=True, eq=False)
class MapsArm:
    """A network that gives the maps of a representation."""

    module: nn.Module
    forward: Forward
    """(B, 3, S, S) in [0, 1] -> logits (B, K, s, s)."""
    representation: ObjectMaps
    trained: list[nn.Parameter]
    grafted: Grafted | None = None


def grafted_arm(
    backbone: str, head: DecoderConfig, grafts: Sequence[GraftConfig], spec: SetSpec, *, seed: int
) -> MapsArm:
    """A head on a frozen backbone; whether it gives distances or classes decides the representation."""
    torch.manual_seed(seed)
    grafted = attach(open_backbone(backbone), grafts, decoder=head)
    representation = represent("instance", head_of(grafted), classes=1, border=spec.border)
    assert isinstance(representation, ObjectMaps)

    def forward(image: Tensor) -> Tensor:
        return representation.logits(grafted.predict(image))

    return MapsArm(
        module=grafted,
        forward=forward,
        representation=representation,
        trained=grafted.trainable_parameters(),
        grafted=grafted,
    )


def unet_arm(representation: ObjectMaps | None = None, *, seed: int) -> MapsArm:
    """Baseline: MONAI residual UNet from scratch with the same targets, loss and watershed."""
    torch.manual_seed(seed)
    chosen = DistanceMaps() if representation is None else representation
    network = UNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=chosen.channels,
        channels=(16, 32, 64, 128, 256),
        strides=(2, 2, 2, 2),
        num_res_units=2,
        norm=("INSTANCE", {"affine": True}),
    )

    def forward(image: Tensor) -> Tensor:
        logits: Tensor = network(image * 4 - 2)
        return logits

    return MapsArm(module=network, forward=forward, representation=chosen, trained=list(network.parameters()))


def crops(
    cases: Sequence[Case], spec: SetSpec, batch: int, seed: int, augmentation: AugmentConfig
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end: images (B, 3, S, S) in [0, 1] and instance maps (B, S, S)."""
    random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    while True:
        pairs = [_crop(cases[int(random.integers(len(cases)))], spec, random) for _ in range(batch)]
        images, labels = zip(*pairs, strict=True)
        yield augment(torch.stack(images), torch.stack(labels), generator, augmentation)


def _crop(case: Case, spec: SetSpec, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A window at a random place (or the whole), fitted to the network input."""
    starts = [int(random.integers(max(1, n - (spec.window or n) + 1))) for n in case.label.shape]
    rows, cols = (slice(start, start + (spec.window or n)) for start, n in zip(starts, case.label.shape, strict=True))
    label = torch.from_numpy(case.label[rows, cols].astype(np.int64))
    fit = Fit(source=(label.shape[0], label.shape[1]), size=spec.size)
    image = torch.from_numpy(np.ascontiguousarray(case.image[rows, cols].transpose(2, 0, 1)))
    return fit.image(image), fit.labels(label)


def train(
    arm: MapsArm,
    spec: SetSpec,
    cases: Sequence[Case],
    options: Optimiser,
    *,
    budget: float,
    seed: int,
    augmentation: AugmentConfig | None = None,
    task: TaskConfig | None = None,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float | int]:
    """Train for ``budget`` seconds of ``clock``; steps and last smoothed loss."""
    task = replace(task or TaskConfig(), kind="instance", class_weights=_weights(arm, spec))
    loss_of = arm.representation.loss(task)
    factors = {} if arm.grafted is None else arm.grafted.rate_factors()
    optimiser = torch.optim.AdamW(
        [{"params": [p], "factor": factors.get(p, 1.0)} for p in arm.trained],
        lr=options.lr,
        weight_decay=options.weight_decay,
    )
    arm.module.train()
    start, steps, smooth = clock(), 0, float("nan")
    for image, label in crops(cases, spec, options.batch, seed, augmentation or spec.augment):
        progress = (clock() - start) / budget
        if progress >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = options.lr * group["factor"] * rate(progress, options.warmup)
        logits = functional.interpolate(arm.forward(image), image.shape[-2:], mode="bilinear", align_corners=False)
        loss = loss_of(logits, arm.representation.target(label))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(arm.trained, options.clip)
        optimiser.step()
        steps += 1
        smooth = loss.item() if steps == 1 else 0.95 * smooth + 0.05 * loss.item()
    arm.module.eval()
    return {"steps": steps, "loss": smooth}


def _weights(arm: MapsArm, spec: SetSpec) -> tuple[float, ...] | None:
    return None if isinstance(arm.representation, DistanceMaps) else spec.class_weights


def found_objects(arm: MapsArm, spec: SetSpec, case: Case) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Objects on the grid of the file."""
    area = spec.min_area * (spec.size / (spec.window or max(case.label.shape))) ** 2  # native to network pixels
    return predict_instances(
        arm.forward,
        _arrays(case),
        size=spec.size,
        window=spec.window,
        min_area=max(1, round(area)),
        representation=arm.representation,
    )


def _arrays(case: Case) -> CaseArrays:
    pixels = (case.image.transpose(2, 0, 1)[None] * 255).round().astype(np.uint8)
    grid = Grid(shape=case.label.shape, affine=np.eye(3))
    return CaseArrays(id=case.name, image=pixels, labels=case.label[None], grid=grid)


def score(matches: Sequence[InstanceMatch]) -> dict[str, float | int]:
    """AP50, AP over IoU 0.5 to 0.95, mean best IoU of true objects."""
    return {
        "n": len(matches),
        "ap50": average_precision(matches),
        "ap": float(np.mean([average_precision(matches, threshold=t) for t in THRESHOLDS])),
        "object_iou": mean_matched_iou(matches),
    }


def evaluate(arm: MapsArm, spec: SetSpec, cases: Sequence[Case]) -> dict[str, float | int]:
    """Scores of an arm over cases."""
    return score([match_instances(case.name, *found_objects(arm, spec, case), case.label) for case in cases])
