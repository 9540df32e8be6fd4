"""Training in bfloat16: it runs, learns, leaves the backbone alone, and its adapter answers as in float32."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from samgraft.adapters.backbones.attention import attend, relative_table
from samgraft.recipes.config import AugmentConfig, FitConfig, TrainConfig
from samgraft.recipes.losses import SegmentationLoss
from samgraft.recipes.training import build, make_trainer
from tests.adapters.toy import toy_backbone, toy_image
from tests.recipes._sets import write_pictures
from tests.recipes.test_tasks import small_config

BOUND = 0.05
"""Largest difference of logits between bfloat16 and float32, as a share of their largest value; 8 bits of mantissa
round by 2^-9 = 0.002 at each of some fifty operations in a row."""


def mixed(path: Path) -> FitConfig:
    """Sixteen steps on small pictures without augmentation, so that losses can be compared."""
    config = small_config(path, layout="image_mask")
    train = TrainConfig(steps=16, val_every=16, progress=False, accelerator="cpu", precision="bf16-mixed", cache=False)
    return replace(config, augment=AugmentConfig(enabled=False), train=train)


def test_a_mixed_fit_learns_and_leaves_the_backbone_alone(tmp_path: Path) -> None:
    config = mixed(write_pictures(tmp_path / "p"))
    task, data = build(config, backbone=toy_backbone())
    before = {name: tensor.clone() for name, tensor in toy_backbone().named_parameters()}
    found: list[float] = []
    step = task.training_step

    def recorded(batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = step(batch, batch_idx)
        assert loss.dtype == torch.float32
        found.append(loss.item())
        return loss

    task.training_step = recorded  # type: ignore[method-assign]
    make_trainer(config, tmp_path / "run").fit(task, datamodule=data)
    assert sum(found[-4:]) < 0.8 * sum(found[:4])
    own = {id(p) for p in task.grafted.trainable_parameters()}
    frozen = {n: p for n, p in task.grafted.backbone.named_parameters() if id(p) not in own}
    assert set(frozen) == set(before)
    assert all(p.dtype == torch.float32 and torch.equal(p, before[name]) for name, p in frozen.items())
    assert all(p.dtype == torch.float32 for p in task.grafted.trainable_parameters())

    task.eval()
    with torch.no_grad():
        exact = task(toy_image())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = task(toy_image())
    error = ((rounded.float() - exact).abs().max() / exact.abs().max()).item()
    assert 1e-4 < error < BOUND


@pytest.mark.parametrize("magnitude", [1.0, 4.0])
def test_gradients_of_attention_in_bfloat16(magnitude: float) -> None:
    """Under autocast and after a plain cast, against float32; also where logits are large and weights peaked."""
    generator = torch.Generator().manual_seed(0)
    shape, grid = (2, 3, 24, 16), (4, 6)
    sizes = (magnitude, magnitude, 1.0)
    parts = [(size * torch.randn(shape, generator=generator)).bfloat16().float() for size in sizes]
    tables = [torch.randn(2 * n - 1, 16, generator=generator).mul_(0.2).bfloat16().float() for n in grid]
    weight = torch.randn(shape, generator=generator)

    def gradients(dtype: torch.dtype, autocast: bool = False) -> list[torch.Tensor]:
        leaves = [t.to(dtype).detach().requires_grad_() for t in (*parts, *tables)]
        query, key, value, down, across = leaves
        rel = (relative_table(down, grid[0]), relative_table(across, grid[1]))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = attend(query, key, value, rel)
        (out.float() * weight).sum().backward()
        return [out.float(), *[leaf.grad.float() for leaf in leaves if leaf.grad is not None]]

    exact = gradients(torch.float32)
    for found in (gradients(torch.bfloat16), gradients(torch.float32, autocast=True)):
        assert len(found) == len(exact) == 6
        for one, other in zip(found, exact, strict=True):
            assert ((one - other).norm() / other.norm()).item() < 0.025


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dice_is_taken_in_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.randint(0, 3, (2, 64, 64), generator=torch.Generator().manual_seed(1))
    loss = SegmentationLoss()
    plain = loss(logits.float(), labels)
    assert torch.equal(loss(logits, labels), plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(logits, labels), plain)
