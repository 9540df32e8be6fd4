"""Fourier amplitudes mixed into training images: values, chances, and where the other images come from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from samgraft.errors import ConfigError, InputError
from samgraft.recipes.augment import augment, augment_views, low_places
from samgraft.recipes.config import AugmentConfig, DataConfig, FitConfig, TaskConfig, TrainConfig
from samgraft.recipes.data.amplitudes import bank_of_tiles
from samgraft.recipes.data.module import SegmentationData
from samgraft.recipes.tasks import SegmentationTask
from samgraft.recipes.training import fit
from tests.adapters.toy import toy_backbone
from tests.recipes._sets import write_pictures, write_volumes

STILL: dict[str, Any] = {
    "rotate": 0, "scale": 0, "shift": 0, "gamma": 0, "contrast": 0, "brightness": 0, "noise": 0, "blur": 0,
}  # fmt: skip


def textured(seed: int, mean: float, *, depth: tuple[int, ...] = ()) -> Tensor:
    """(3, *depth, 40, 40) around ``mean``."""
    noise = torch.rand((3, *depth, 40, 40), generator=torch.Generator().manual_seed(seed))
    return mean + 0.3 * (noise - 0.5)


def test_low_places_are_symmetric() -> None:
    rows, cols = low_places(40, 60, 0.05)
    assert rows.tolist() == [38, 39, 0, 1, 2] and cols.tolist() == [58, 59, 0, 1, 2]
    assert low_places(40, 40, 0.001)[0].tolist() == [39, 0, 1] and low_places(1, 2, 0.1)[0].tolist() == [0]


@pytest.mark.parametrize("depth", [(), (4,)])
def test_amplitudes_are_blended_and_phases_stay(depth: tuple[int, ...]) -> None:
    image, other = torch.stack([textured(1, 0.4, depth=depth)] * 50), textured(2, 0.6)
    label = torch.zeros(50, *depth, 40, 40, dtype=torch.int32)
    rows, cols = low_places(40, 40, 0.1)
    bank = torch.fft.fft2(other)[:, rows[:, None], cols].abs()[None]
    config = AugmentConfig(**STILL, fourier=1.0, fourier_beta=0.1)
    mixed, _ = augment(image, label, torch.Generator().manual_seed(0), config, amplitudes=bank)
    before, after = torch.fft.fft2(image), torch.fft.fft2(mixed)
    own, wanted = before[..., rows[:, None], cols], bank if not depth else bank.unsqueeze(2)
    part = ((after[..., 0, 0].abs() - before[..., 0, 0].abs()) / (wanted[..., 4, 4] - before[..., 0, 0].abs())).mean(
        dim=tuple(range(1, image.ndim - 2))
    )
    assert part.min() >= -1e-4 and part.max() <= 1 + 1e-4 and 0.35 < part.mean() < 0.65
    share = part.view(-1, *(1,) * (image.ndim - 1))
    found = after[..., rows[:, None], cols]
    torch.testing.assert_close(found.abs(), own.abs() + share * (wanted - own.abs()), atol=0.02, rtol=1e-3)
    strong = own.abs() > 1
    assert (torch.angle(found / own)[strong].abs() < 0.02).all()
    mask = torch.ones(40, 40, dtype=torch.bool)
    mask[rows[:, None], cols] = False
    torch.testing.assert_close(after[..., mask], before[..., mask], atol=2e-3, rtol=0)


def test_no_bank_and_no_chance_change_no_bit() -> None:
    image, label = torch.stack([textured(3, 0.5)] * 2), torch.zeros(2, 40, 40, dtype=torch.int32)
    bank = torch.ones(1, 3, 5, 5)
    plain, _ = augment(image, label, torch.Generator().manual_seed(0), AugmentConfig(**STILL))
    torch.testing.assert_close(plain, image)
    for config, given in ((AugmentConfig(**STILL, fourier=0.0), bank), (AugmentConfig(**STILL, fourier=1.0), None)):
        assert torch.equal(augment(image, label, torch.Generator(), config, amplitudes=given)[0], plain)


def test_views_come_back() -> None:
    image, label = torch.stack([textured(n, 0.5) for n in range(3)]), torch.zeros(3, 40, 40, dtype=torch.int32)
    config, bank = AugmentConfig(**STILL, fourier=1.0), bank_of_tiles([(torch.zeros(3, 40, 40) + 90, 0)], 0.05)
    draws = [
        augment_views(image, label, torch.Generator().manual_seed(s), config, 1, amplitudes=bank)[0] for s in (0, 7)
    ]
    assert torch.equal(*draws) and not torch.equal(draws[0], image)


def test_the_bank_of_a_folder_has_the_means_of_its_images(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    for number, value in enumerate((51, 204)):
        Image.fromarray(np.full((30, 50, 3), value, np.uint8)).save(tmp_path / "target" / f"{number}.png")
    data = SegmentationData(
        DataConfig(layout="image_mask", path=str(write_pictures(tmp_path / "p")), size=64), kind="semantic", size=64
    )
    bank = data.amplitudes(AugmentConfig(fourier=str(tmp_path / "target"), fourier_beta=0.05))
    assert bank.shape == (2, 3, 7, 7)
    torch.testing.assert_close(bank[:, :, 3, 3] / 64**2, torch.tensor([[0.2] * 3, [0.8] * 3]), atol=1e-5, rtol=0)
    bank[:, :, 3, 3] = 0
    assert bank.abs().max() < 1e-2
    tiles = data.amplitudes(AugmentConfig(fourier=0.5))
    assert tiles.shape == (4, 3, 7, 7)
    with pytest.raises(InputError, match="no such file or folder"):
        data.amplitudes(AugmentConfig(fourier=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("slab", [None, 4])
@pytest.mark.parametrize("target", [True, False])
def test_training_uses_it_and_reads_no_label_of_the_target(
    tmp_path: Path, slab: int | None, target: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, other = write_volumes(tmp_path / "s"), write_volumes(tmp_path / "t", seed=5)
    for label in (other / "labelsTr").iterdir():
        label.unlink()
    config = FitConfig(
        task=TaskConfig(grafts={"lora": {}}),
        data=DataConfig(path=str(source), size=32, batch_size=2, slab=slab),
        augment=AugmentConfig(fourier=str(other / "imagesTr") if target else 0.5),
        train=TrainConfig(steps=2, val_every=2, progress=False, accelerator="cpu"),
    )
    banks: list[Tensor] = []
    step = SegmentationTask.training_step

    def spied(self: SegmentationTask, *given: Any) -> Tensor:
        assert self.amplitudes is not None
        banks.append(self.amplitudes)
        return step(self, *given)

    monkeypatch.setattr(SegmentationTask, "training_step", spied)
    result = fit(config, tmp_path / "run", backbone=toy_backbone(), report=False)
    assert len(banks) == 2 and banks[0].shape[1:] == (3, 3, 3)
    assert len(banks[0]) == (4 * 6 if target else 18 if slab is None else 9)
    assert result.adapter.is_file()
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert all(np.isfinite(list(json.loads(line).values())).all() for line in lines)


def test_settings_are_checked() -> None:
    for value in (-0.1, 1.5):
        with pytest.raises(ConfigError, match=f"augment.fourier is {value}; expected a folder"):
            AugmentConfig(fourier=value)
    with pytest.raises(ConfigError, match=r"augment.fourier_beta is 0\.5"):
        AugmentConfig(fourier_beta=0.5)
