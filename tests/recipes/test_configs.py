"""Every shipped recipe is parsed against the dataclasses, and run on tiny data of its layout."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import yaml

from samgraft.adapters.backbones import load_backbone
from samgraft.adapters.bundle import read_meta
from samgraft.errors import ConfigError
from samgraft.recipes.commands.parsing import CONFIGS, config_names, read_fit_config
from samgraft.recipes.config import DataConfig, FitConfig, TaskConfig, TrainConfig, to_yaml
from samgraft.recipes.training import fit
from samgraft.recipes.weak.simulate import simulate
from tests.adapters.toy import toy_backbone
from tests.recipes._sets import write_pictures, write_rasters, write_volumes
from tests.recipes.test_raster_recipes import RECIPES as MOSAICS


def weakly(write: Callable[[Path], Path], name: str) -> Callable[[Path], Path]:
    """The same data set with the weak labels that a recipe wants beside its masks."""

    def made(folder: Path) -> Path:
        root, config = write(folder), read_fit_config(CONFIGS / f"{name}.yaml")
        data = DataConfig(layout=config.data.layout, path=str(root))
        simulate(data, config.task.kind, config.data.supervision, root, class_names=config.task.class_names)
        return root

    return made


WRITERS: dict[str, Callable[[Path], Path]] = {
    "ct_tumour": lambda p: write_volumes(p, modality="CT"),
    "mr_hippocampus": write_volumes,
    "mr_structure_3d": write_volumes,
    "cardiac_mr": write_pictures,
    "nerve_us": lambda p: write_pictures(p, classes=2),
    "nuclei": lambda p: write_pictures(p, instances=True),
    "nuclei_few": lambda p: write_pictures(p, instances=True),
    "procedural_objects": lambda p: write_pictures(p, instances=True),
    "retina_vessels": write_pictures,
    "aerial_buildings": write_rasters,
    "ct_to_mr": weakly(write_volumes, "ct_to_mr"),
    "stain_to_stain": weakly(lambda p: write_pictures(p, instances=True), "stain_to_stain"),
    "city_to_city": weakly(write_rasters, "city_to_city"),
    "camera_to_camera": weakly(write_pictures, "camera_to_camera"),
}


def test_every_recipe_has_data() -> None:
    assert set(config_names()) == set(WRITERS) | set(MOSAICS)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_recipe_runs(name: str, tmp_path: Path) -> None:
    config = read_fit_config(CONFIGS / f"{name}.yaml")
    data = replace(
        config.data,
        path=str(WRITERS[name](tmp_path / "data")),
        size=64,
        batch_size=2,
        window=48 if config.data.window else None,
    )
    train = replace(config.train, fast_dev_run=True, progress=False, accelerator="cpu")
    backbone = toy_backbone() if config.train.start_from is None else load_backbone(config.task.backbone)
    result = fit(replace(config, data=data, train=train), tmp_path / "run", backbone=backbone, report=False)
    assert read_meta(result.adapter).task == config.task.kind
    assert read_fit_config(tmp_path / "run" / "config.yaml") == replace(config, data=data, train=train)


def test_every_key_of_every_recipe_is_a_field() -> None:
    known = {f.name: {g.name for g in fields(f.default_factory())} for f in fields(FitConfig)}  # type: ignore[misc, arg-type]
    for name in config_names():
        content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        for group, values in content.items():
            assert set(values) <= known[group], (name, group)


def test_a_saved_configuration_reads_back(tmp_path: Path) -> None:
    config = FitConfig(
        data=DataConfig(path="x y", intensity=(-1.5, 2.0), bands=(3, 2, 1)), task=TaskConfig(class_names=("a", "b"))
    )
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config.to_dict()))
    assert read_fit_config(path) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {siz: 3}", "siz"),
        ("data: {size: 3}", "data.size is 3; expected at least 16 pixels"),
        ("task: {lr: fast}", "lr"),
        ("train: {steps: 0}", "train.steps is 0; expected at least 1"),
        ("data: {intensity: [5, 5]}", "expected lower < upper"),
        ("task: {kind: panoptic}", "kind"),
    ],
)
def test_wrong_settings_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_fit_config(path)


def test_configurations_are_frozen_and_documented() -> None:
    for kind in (TaskConfig, DataConfig, TrainConfig):
        assert is_dataclass(kind)
        with pytest.raises(AttributeError, match="cannot assign"):
            kind().seed = 3  # type: ignore[misc, attr-defined, union-attr]
