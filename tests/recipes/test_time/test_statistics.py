"""Alignment of channel statistics by hand, and its effect on the neck."""

import pytest
import torch

from samgraft.adapters.extending import extended
from samgraft.adapters.grafts import NeckAffineConfig
from samgraft.errors import CheckpointError
from samgraft.recipes.features import FeatureMoments, domain_features
from samgraft.recipes.representations import ClassMaps
from samgraft.recipes.test_time.methods import StatisticsConfig
from samgraft.recipes.test_time.statistics import EXTRA, align_statistics, alignment
from tests.adapters.toy import toy_image
from tests.recipes._adapters import toy_adapter


def source(mean: tuple[float, ...], variance: tuple[float, ...]) -> FeatureMoments:
    return FeatureMoments(
        backbone="", images=1, mean=mean, variance=variance, threshold=1.0, token_mean=mean, token_variance=variance
    )


def wide(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_without_a_prior_the_statistics_of_training_come_out() -> None:
    scale, shift = alignment(
        wide(2.0, 5.0), wide(4.0, 1.0), 8, source((1.0, 0.0), (9.0, 0.25)), StatisticsConfig(prior=0)
    )
    assert (scale + 1).tolist() == [1.5, 0.5] and shift.tolist() == [1.0 - 3.0, -2.5]


def test_a_prior_of_as_many_inputs_goes_half_the_way() -> None:
    scale, shift = alignment(wide(3.0), wide(7.0), 16, source((1.0,), (1.0,)), StatisticsConfig(prior=16))
    assert (scale + 1).item() == pytest.approx(0.5) and shift.item() == pytest.approx(1 - 0.5 * 2)  # mean 2, variance 4


def test_scales_are_bounded_and_channels_counted() -> None:
    scale, _ = alignment(wide(0.0, 0.0), wide(0.0, 1e6), 1, source((0.0, 0.0), (1.0, 1.0)), StatisticsConfig(prior=0))
    assert (scale + 1).tolist() == [4.0, 0.25]
    with pytest.raises(CheckpointError, match="features of 1 channels; the encoder gives 2"):
        alignment(wide(0.0, 0.0), wide(1.0, 1.0), 1, source((0.0,), (1.0,)), StatisticsConfig())


def test_the_neck_gets_the_moments_of_training() -> None:
    grafted, maps = toy_adapter(), ClassMaps(classes=2)
    trained, scene = toy_image(batch=3, seed=1), 0.4 * toy_image(batch=4, seed=2) + 0.3
    said = domain_features(grafted, [image[None] for image in trained])
    with extended(grafted, {EXTRA: NeckAffineConfig()}), torch.no_grad():
        align_statistics(grafted, maps, scene, said, StatisticsConfig(prior=0, limit=100))
        neck = grafted.encode(scene).neck
        torch.testing.assert_close(neck.mean(dim=(0, 2, 3)), torch.tensor(said.token_mean), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(
            neck.var(dim=(0, 2, 3), correction=0), torch.tensor(said.token_variance), atol=1e-4, rtol=1e-3
        )
