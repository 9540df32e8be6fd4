"""Moments of training images: distance, shrinking and threshold by hand; what a header keeps; that fit writes it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from samgraft.adapters.bundle import BundleMeta, read_header, read_meta, tensors_hash
from samgraft.domains.opening import open_scene
from samgraft.errors import CheckpointError, InputError
from samgraft.recipes.api import adapter_meta, load_adapter
from samgraft.recipes.config import AugmentConfig, DataConfig, FitConfig, TaskConfig, TrainConfig
from samgraft.recipes.engine.recorded import recorded
from samgraft.recipes.features import (
    SLACK,
    FeatureMoments,
    TokenSums,
    distance,
    domain_features,
    learn_features,
    moments,
    shrunken,
    write_features,
)
from samgraft.recipes.training import fit
from tests.adapters.toy import toy_backbone
from tests.recipes._adapters import blobs, save_picture, toy_adapter, toy_file
from tests.recipes._sets import write_pictures


def test_distance_is_the_root_mean_square_offset_in_deviations() -> None:
    found = distance(np.array([3.0, 1.0]), np.array([1.0, 1.0]), np.array([4.0, 9.0]))
    assert found == pytest.approx(math.sqrt(0.5))  # offsets of one deviation and of none


def test_variance_is_shrunken_towards_its_mean() -> None:
    inputs = np.array([[0.0, 10.0], [2.0, 10.0], [4.0, 10.0]])  # variances 4 and 0 about (2, 10)
    found = shrunken(inputs, np.array([2.0, 10.0]))
    assert found.tolist() == pytest.approx([(8 * 2 + 3 * 4) / 11, 8 * 2 / 11])
    for few in (inputs[:1], np.ones((4, 2))):
        with pytest.raises(InputError, match="say nothing about how images of this kind differ"):
            shrunken(few, few.mean(axis=0))


def test_threshold_is_that_of_the_image_farthest_from_the_others() -> None:
    images = [np.array([[-1.0], [1.0]]), np.array([[0.0], [2.0]]), np.array([[9.0], [11.0]])]
    mean, variance, threshold = moments(images)
    assert mean.tolist() == [pytest.approx(11 / 3)]
    rest = np.array([-1.0, 1.0, 0.0, 2.0])  # without the last image: mean 0.5
    own = ((rest - 0.5) ** 2).sum() / 3
    assert threshold == pytest.approx(SLACK * 9.5 / math.sqrt(own))  # one channel: shrinking changes nothing
    assert variance.shape == (1,)


def test_of_one_image_its_inputs_are_told_apart() -> None:
    mean, _, threshold = moments([np.array([[0.0], [1.0], [5.0]])])
    left = np.array([0.0, 1.0])
    assert mean.tolist() == [2.0]
    assert threshold == pytest.approx(SLACK * 4.5 / left.std(ddof=1))


def test_tokens_are_summed_over_images() -> None:
    sums = TokenSums()
    necks = torch.tensor([[[[0.0, 2.0]], [[1.0, 1.0]]], [[[4.0, 6.0]], [[1.0, 5.0]]]])  # (2, 2, 1, 2)
    for neck in necks:
        sums.add(neck[None])
    assert sums.images == 2
    assert sums.mean().tolist() == [3.0, 2.0] and sums.variance().tolist() == [5.0, 3.0]


def test_the_frozen_and_the_adapted_encoder_are_looked_at() -> None:
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 3, 64, 64, generator=generator) for _ in range(3)]
    grafted = toy_adapter()
    before = tensors_hash(grafted.graft_state())
    found = domain_features(grafted, images)
    assert grafted.attached and tensors_hash(grafted.graft_state()) == before
    frozen = toy_backbone()
    with torch.no_grad():
        pooled = torch.stack([frozen.encode(image).neck.double().mean(dim=(0, 2, 3)) for image in images])
        adapted = torch.cat([grafted.encode(image).neck for image in images]).double()
    np.testing.assert_allclose(found.mean, pooled.mean(dim=0), rtol=1e-6)
    np.testing.assert_allclose(found.token_mean, adapted.mean(dim=(0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.token_variance, adapted.var(dim=(0, 2, 3), correction=0), rtol=1e-5)
    assert found.backbone == frozen.weights_hash() and found.images == 3
    again = FeatureMoments.from_meta(BundleMeta(extra={"features": found.to_json()}))
    np.testing.assert_allclose(again.mean, found.mean, rtol=1e-5)
    assert again.distance(pooled.mean(dim=0).numpy()) < 1e-3


def test_headers_without_or_with_damaged_features_are_named() -> None:
    with pytest.raises(CheckpointError, match="x.graft says nothing about the features .* samgraft route --learn"):
        FeatureMoments.from_meta(BundleMeta(), "x.graft")
    with pytest.raises(CheckpointError, match="features that this version cannot read"):
        FeatureMoments.from_meta(BundleMeta(extra={"features": {"mean": [1.0]}}))
    odd = {"backbone": "a", "images": 2, "mean": [1.0], "variance": [0.0], "threshold": 1.0}
    with pytest.raises(CheckpointError, match="contradict themselves"):
        FeatureMoments.from_meta(BundleMeta(extra={"features": {**odd, "token_mean": [1.0], "token_variance": [1.0]}}))


def test_an_older_adapter_learns_them_from_image_files(tmp_path: Path) -> None:
    backbone, file = toy_backbone(), toy_file(tmp_path / "a.graft")
    scenes = [open_scene(save_picture(tmp_path / f"{i}.png", blobs(seed=i))) for i in range(4)]
    grafted = load_adapter(file, backbone)
    found = learn_features(grafted, recorded(grafted, adapter_meta(grafted)), scenes)
    before = read_header(file)["tensors_sha256"]
    write_features(file, found)
    assert read_header(file)["tensors_sha256"] == before
    assert FeatureMoments.from_meta(read_meta(file)).images == 4


def test_fit_writes_them_of_its_training_cases(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "set")
    config = FitConfig(
        task=TaskConfig(grafts={"lora": {"rank": 2}}, head="class_tokens"),
        data=DataConfig(layout="image_mask", path=str(data), size=64, window=48, batch_size=2),
        augment=AugmentConfig(),
        train=TrainConfig(steps=2, val_every=1, progress=False, accelerator="cpu"),
    )
    backbone = toy_backbone()
    result = fit(config, tmp_path / "run", backbone=backbone, report=False)
    found = FeatureMoments.from_meta(read_meta(result.adapter))
    assert found.images == 4 and found.backbone == backbone.weights_hash()  # two of six pictures validate
    backbone = toy_backbone()
    grafted = load_adapter(result.adapter, backbone)
    said = recorded(grafted, adapter_meta(grafted))
    names = sorted(path for path in (data / "images").iterdir() if not path.name.startswith("P2"))
    again = learn_features(grafted, said, [open_scene(path) for path in names])
    np.testing.assert_allclose(found.mean, again.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.token_variance, again.token_variance, rtol=1e-4)
    assert found.threshold == pytest.approx(again.threshold, rel=1e-4)
