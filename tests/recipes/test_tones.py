"""Tones of a scene: by hand, the same in every window, and with an adapter that was adapted to one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import samgraft
from samgraft.adapters.bundle import read_meta, replace_meta
from samgraft.errors import ConfigError
from samgraft.recipes.alignment import in_tone
from samgraft.recipes.config import DataConfig
from samgraft.recipes.data.layouts import index_data
from samgraft.recipes.engine.run import load_adapter
from samgraft.recipes.look import look_at
from samgraft.recipes.starting import start_from
from samgraft.recipes.tones import TONES, FittedTone, ends_of, tone_of, toned_alone
from samgraft.recipes.training import build, load_adapted
from tests.adapters.toy import toy_backbone
from tests.recipes._sets import write_volumes
from tests.recipes.adaptation._sets import train_source, write_discs
from tests.recipes.test_tasks import small_config


def colours() -> np.ndarray:
    """(3, 4, 6) float32 in [0, 1], unlike in every channel."""
    return np.random.default_rng(0).uniform(0.1, 0.9, (3, 4, 6)).astype(np.float32)


def test_values_by_hand() -> None:
    image = colours()
    gray = np.broadcast_to(image.mean(axis=0), image.shape)
    wanted = {
        "plain": image,
        "gray": gray,
        "negative": 1 - image,
        "brighter": image**0.6,
        "darker": image**1.7,
        "stretched": np.clip((image - 0.2) / 0.5, 0, 1),
        "negative stretched": 1 - np.clip((image - 0.2) / 0.5, 0, 1),
        "gray stretched": np.clip((gray - 0.2) / 0.5, 0, 1),
        "gray negative stretched": 1 - np.clip((gray - 0.2) / 0.5, 0, 1),
    }
    assert set(wanted) == set(TONES)
    for name, values in wanted.items():
        found = FittedTone(name=name, low=0.2, high=0.7).apply(image)
        assert found.dtype == np.float32 and np.allclose(found, values, atol=1e-6), name
    with pytest.raises(ConfigError, match="'sepia' is no tone; expected one of plain"):
        tone_of("sepia")


def test_quantiles_of_a_histogram_are_those_of_its_pixels() -> None:
    pixels = np.random.default_rng(1).integers(40, 200, 100_000)
    low, high = ends_of(np.bincount(pixels, minlength=256))
    assert low == pytest.approx(np.quantile(pixels, 0.01) / 255, abs=1 / 255)
    assert high == pytest.approx(np.quantile(pixels, 0.99) / 255, abs=1 / 255)
    flat = np.zeros(256)
    flat[7] = 5
    assert ends_of(flat)[0] < ends_of(flat)[1]


@pytest.mark.parametrize("name", sorted(set(TONES) - {"plain"}))
def test_a_pixel_has_one_value_in_every_window(tmp_path: Path, name: str) -> None:
    picture = (colours().repeat(20, axis=1).repeat(20, axis=2) * 255).astype(np.uint8)
    Image.fromarray(picture.transpose(1, 2, 0)).save(tmp_path / "a.png")
    scene = samgraft.open(tmp_path / "a.png")
    look = in_tone(name, scene, look_at(scene))
    whole = look.apply(scene.read())
    part = look.apply(scene.read((slice(10, 50), slice(30, 90))))
    assert np.array_equal(part, whole[:, 10:50, 30:90])
    alone = toned_alone(torch.from_numpy(look_at(scene).apply(scene.read()))[None], TONES[name])[0].numpy()
    assert np.allclose(whole, alone, atol=0.02)  # as a tile that is the whole picture was tried
    assert look.facts()["tone"]["name"] == name
    assert in_tone("plain", scene, look_at(scene)) == look_at(scene)


def test_volumes_are_measured_across_their_coarsest_axis(tmp_path: Path) -> None:
    path = next((write_volumes(tmp_path / "v") / "imagesTr").glob("*.nii.gz"))
    scene = samgraft.open(path)
    look = in_tone("negative stretched", scene, look_at(scene))
    values = look_at(scene).apply(scene.read().reshape(1, 1, -1))[0]
    assert look.tone is not None and look.tone.low == pytest.approx(np.quantile(values, 0.01), abs=0.01)
    assert look.tone.high == pytest.approx(np.quantile(values, 0.99), abs=0.01)


@pytest.fixture(scope="module")
def negative(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Discs, and an adapter of them that sees everything as a negative."""
    root = tmp_path_factory.mktemp("tones")
    torch.manual_seed(0)
    adapter = train_source(write_discs(root / "d", cases=8), root / "run", toy_backbone(), steps=30)
    meta = read_meta(adapter)
    assert meta.extra["input"]["tone"] == "plain"
    replace_meta(adapter, replace(meta, extra={**meta.extra, "input": {**meta.extra["input"], "tone": "negative"}}))
    return root / "d", adapter


def test_an_adapter_sees_images_in_its_tone(negative: tuple[Path, Path], tmp_path: Path) -> None:
    root, adapter = negative
    picture = root / "images" / "s00.png"
    Image.fromarray(255 - np.asarray(Image.open(picture))).save(tmp_path / "turned.png")
    network = load_adapter(adapter, toy_backbone())
    found = samgraft.segment(tmp_path / "turned.png", adapter=network, progress=False)
    plain = read_meta(adapter)
    replace_meta(adapter, replace(plain, extra={**plain.extra, "input": {**plain.extra["input"], "tone": "plain"}}))
    try:
        wanted = samgraft.segment(picture, adapter=load_adapter(adapter, toy_backbone()), progress=False)
    finally:
        replace_meta(adapter, plain)
    assert np.array_equal(found.labels, wanted.labels) and wanted.labels.any()
    assert found.meta["tone"] == "negative" and "tone" not in wanted.meta


def test_training_and_validation_see_it_too(negative: tuple[Path, Path]) -> None:
    root, adapter = negative
    data = DataConfig(path=str(root), layout="image_mask", size=64)
    seen = [index_data(replace(data, tone=tone), "semantic", None).train[0].read() for tone in ("plain", "negative")]
    assert np.array_equal(seen[1].image, 255 - seen[0].image) and np.array_equal(seen[1].labels, seen[0].labels)
    config = replace(small_config(root), data=data)
    assert load_adapted(config, adapter, backbone=toy_backbone())[1].config.tone == "negative"


def test_a_run_goes_on_in_the_tone_of_the_adapter(negative: tuple[Path, Path]) -> None:
    root, adapter = negative
    config = replace(small_config(root), data=DataConfig(path=str(root), layout="image_mask", size=64))
    config = replace(config, task=replace(config.task, grafts={"lora": {"rank": 4}}))
    task, _ = build(config, backbone=toy_backbone())
    with pytest.raises(ConfigError, match="in the tone 'negative', and this run in 'plain'; set data.tone"):
        start_from(adapter, task.grafted, task.class_names)
    start_from(adapter, task.grafted, task.class_names, tone="negative")
