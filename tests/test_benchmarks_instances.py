"""The benchmarks' way from maps to objects, with networks whose answer is known."""

import numpy as np
import torch
from torch import Tensor, nn

from samgraft.adapters.decoders.distance_maps import distance_targets
from samgraft.recipes.config import AugmentConfig
from samgraft.recipes.representations import DistanceMaps
from tests.benchmarks._data import Case
from tests.benchmarks._instances import MapsArm, crops, evaluate, train, unet_arm
from tests.benchmarks._sets import SetSpec
from tests.benchmarks._train import Optimiser

SPEC = SetSpec(name="toy", size=32, classes=3, budget=1, headline=("ap50",), window=32, min_area=4)


def picture() -> Case:
    """(48, 70) with three objects; the first channel holds their numbers over 255."""
    label = np.zeros((48, 70), dtype=np.int32)
    label[4:13, 20:29], label[4:13, 29:38], label[36:45, 55:66] = 1, 2, 3
    image = np.zeros((48, 70, 3), dtype=np.float32)
    image[..., 0] = label / np.float32(255)
    return Case(id="a", name="a", image=image, label=label)


def oracle(image: Tensor) -> Tensor:
    """Logits of the exact maps of what the first channel says."""
    numbers = (image[:, 0] * 255).round().long().numpy()
    maps = torch.stack([torch.from_numpy(distance_targets(one)) for one in numbers])
    return maps.clamp(1e-4, 1 - 1e-4).logit()


def test_crops_keep_image_and_label_together() -> None:
    batches = crops([picture()], SPEC, 3, 0, AugmentConfig(enabled=False))
    for _ in range(3):
        image, label = next(batches)
        assert image.shape == (3, 3, 32, 32) and label.shape == (3, 32, 32)
        assert torch.equal((image[:, 0] * 255).round().long(), label)


def test_exact_maps_find_every_object() -> None:
    arm = MapsArm(module=nn.Identity(), forward=oracle, representation=DistanceMaps(), trained=[])
    found = evaluate(arm, SPEC, [picture()])
    assert found["n"] == 1 and found["ap50"] == 1.0 and found["object_iou"] > 0.9


def test_the_baseline_learns_the_maps() -> None:
    """A few steps by a clock that counts calls: the loss falls, and what is trained is all of the UNet."""
    arm = unet_arm(seed=0)
    assert arm.forward(torch.rand(2, 3, 32, 48)).shape == (2, 3, 32, 48)
    ticks = iter(range(1000))
    options = Optimiser(lr=3e-3, batch=2)
    still = AugmentConfig(enabled=False)
    same = {"seed": 0, "augmentation": still, "clock": lambda: next(ticks)}
    first = train(unet_arm(seed=0), SPEC, [picture()], options, budget=1.5, **same)
    ticks = iter(range(1000))
    last = train(arm, SPEC, [picture()], options, budget=30, **same)
    assert first["steps"] == 1 and last["steps"] == 29
    assert last["loss"] < 0.9 * first["loss"]
    assert all(p.grad is not None for p in arm.trained) and not arm.module.training
