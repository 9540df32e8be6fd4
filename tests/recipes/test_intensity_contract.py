"""The intensity scale is part of the adapter: fixed window, percentiles or z-score; a CT adapter wants HU."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import samgraft
from samgraft.domains.medical.intensity import IntensityRule, ct_window, fit_intensity, require_hu
from samgraft.errors import CheckpointError, ConfigError, InputError
from samgraft.recipes import cli
from samgraft.recipes.config import DataConfig
from samgraft.recipes.data.layouts import index_data
from samgraft.recipes.engine.recorded import Recorded
from samgraft.recipes.header import InputRecipe
from tests.data import volumes
from tests.recipes._sets import write_volumes

pytestmark = pytest.mark.medical


def _recorded(**options: Any) -> Recorded:
    return Recorded(recipe=InputRecipe(size=64), classes={1: "tumour"}, **options)


def _scene(path: Path, values: Any) -> Any:
    return samgraft.open(volumes.nifti(path, np.asarray(values).reshape(2, 3, -1), np.eye(4)))


HU = np.arange(-600, 600, 100, dtype=np.int16)


def test_rules_measure_the_non_zero_values() -> None:
    values = np.array([0, 0, 0, 10, 20, 30, 40], np.float32)  # mean 25, population deviation sqrt(125)
    zscore = IntensityRule(kind="zscore", low=-2, high=1).fit(values)
    assert zscore.kind == "zscore"
    assert (zscore.lower, zscore.upper) == pytest.approx((25 - 2 * 125**0.5, 25 + 125**0.5))
    percentile = IntensityRule(kind="percentile", low=25, high=100).fit(values)
    assert (percentile.lower, percentile.upper) == pytest.approx((17.5, 40.0))
    assert fit_intensity(values.astype(np.uint8), "CT", rule=IntensityRule(low=0, high=50)).upper == 25.0
    constant = IntensityRule(kind="zscore", low=-3, high=3).fit(np.full(5, 7.0))
    assert (constant.apply(np.full(5, 7.0)) == 0).all()


def test_rules_come_back_from_json_and_bad_ones_are_named() -> None:
    rule = IntensityRule(kind="zscore", low=-3, high=3)
    assert IntensityRule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    with pytest.raises(ConfigError, match="expected one of percentile, zscore"):
        IntensityRule(kind="log")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected low < high, both within 0 to 100"):
        IntensityRule(low=5, high=101)
    with pytest.raises(ConfigError, match="expected low < high$"):
        IntensityRule(kind="zscore", low=3, high=-3)
    with pytest.raises(CheckpointError, match="expected kind, low, high"):
        _ = _recorded(intensity={"kind": "percentile", "low": 1}).rule


@pytest.mark.parametrize(
    ("modality", "options", "want"),
    [
        ("CT", {}, ct_window("soft").to_dict()),
        ("MRI", {}, {"kind": "percentile", "low": 0.5, "high": 99.5}),
        ("MRI", {"normalise": "zscore"}, {"kind": "zscore", "low": -3.0, "high": 3.0}),
        ("CT", {"normalise": "zscore", "normalise_range": (-1.0, 2.0)}, {"kind": "zscore", "low": -1.0, "high": 2.0}),
        ("MRI", {"intensity": (0.0, 500.0)}, {"kind": "range", "lower": 0.0, "upper": 500.0, "note": "data.intensity"}),
        ("thermal", {}, None),
    ],
)
def test_the_scale_of_training_is_recorded_and_repeated(
    tmp_path: Path, modality: str, options: dict[str, Any], want: dict[str, Any] | None
) -> None:
    config = DataConfig(layout="nnunet", path=str(write_volumes(tmp_path / "set", modality=modality)), **options)
    data = index_data(config, "semantic")
    assert data.intensity == want
    trained = data.train[0].load().image[:, 0]
    scene = samgraft.open(tmp_path / "set" / "imagesTr" / "case_00_0000.nii.gz")
    used = _recorded(intensity=want, modality=data.modality or "").look(scene)
    shown = used.apply(scene.read())[0] * 255 + 0.5
    assert np.abs(shown.astype(np.uint8).astype(int) - trained.astype(int)).max() <= 1


def test_contradictory_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="both set the scale"):
        DataConfig(intensity=(0.0, 1.0), normalise="zscore")
    with pytest.raises(ConfigError, match="it needs data.normalise"):
        DataConfig(normalise_range=(0.0, 1.0))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.arange(12, dtype=np.uint8), "8-bit gray values"),
        (np.arange(12, dtype=np.uint16) * 100, "uint16 without a negative value"),
        (np.arange(12, dtype=np.int16), "int16 without a negative value"),
        (np.arange(12, dtype=np.float32), "float32 without a negative value"),
    ],
)
@pytest.mark.parametrize("options", [{"intensity": ct_window("soft").to_dict()}, {"modality": "CT"}])
def test_what_cannot_have_been_hu_is_refused_for_a_ct_adapter(
    tmp_path: Path, values: Any, words: str, options: dict[str, Any]
) -> None:
    scene = _scene(tmp_path / "a.nii", values)
    with pytest.raises(InputError, match=rf"no Hounsfield units: {words}.*add --trust-values, or call"):
        _recorded(**options).look(scene)
    look = _recorded(**options).look(scene.trust_values())
    assert (look.lower, look.upper) == ((-160.0,), (240.0,))


def test_hounsfield_units_and_other_adapters_pass(tmp_path: Path) -> None:
    for dtype in ("int16", "float32"):
        scene = _scene(tmp_path / f"{dtype}.nii", HU.astype(dtype))
        look = _recorded(intensity=ct_window("soft").to_dict()).look(scene)
        assert look.lower == (-160.0,)
    _recorded(modality="MR").look(_scene(tmp_path / "mr.nii", np.arange(12, dtype=np.uint8)))
    _recorded(intensity={"kind": "range", "lower": 0, "upper": 9}).look(_scene(tmp_path / "r.nii", HU + 600))


def test_one_negative_voxel_off_the_middle_is_enough(tmp_path: Path) -> None:
    values = np.arange(1, 61, dtype=np.int16).reshape(2, 3, 10)
    values[1, 2, 9] = -1
    require_hu(_scene(tmp_path / "a.nii", values))


def test_the_flag_of_the_command_reaches_the_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def stop(scene: Any, **options: Any) -> None:
        seen.append(scene.trusted)
        raise InputError("far enough")

    monkeypatch.setattr("samgraft.recipes.api.segment", stop)
    _scene(tmp_path / "a.nii", HU)
    words = ["segment", str(tmp_path / "a.nii"), "--box", "0", "0", "1", "1", "-o", str(tmp_path / "m.nii")]
    assert cli.main(words) == 2 and cli.main([*words, "--trust-values"]) == 2
    assert seen == [False, True]
