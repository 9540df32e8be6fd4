"""Intensity scales: exact bounds, guarded constants, stored and restored."""

from pathlib import Path

import numpy as np
import pytest

from samgraft.domains import Intensity, ct_window, fit_intensity, open_scene
from samgraft.errors import ConfigError, InputError
from tests.data import volumes


def test_ct_windows_are_width_and_level() -> None:
    for name, lower, upper in (("soft", -160, 240), ("lung", -910, 590), ("brain", 0, 80)):
        window = ct_window(name)
        assert (window.kind, window.lower, window.upper) == ("ct_window", lower, upper)
    assert ct_window(100, 50).apply(np.array([-1000, 0, 50, 100, 3000])).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    with pytest.raises(ConfigError, match="'liver' is unknown; choose from soft, lung, brain"):
        ct_window("liver")
    with pytest.raises(ConfigError, match="expected width > 0"):
        ct_window(0, 10)


def test_percentiles_of_the_non_zero_values() -> None:
    values = np.concatenate([np.zeros(5000), np.arange(1, 1002)]).astype(np.int16)
    scale = fit_intensity(values, "MR")
    assert scale.kind == "percentile" and np.allclose((scale.lower, scale.upper), (6.0, 996.0))
    assert fit_intensity(values.astype(np.uint16)).kind == "percentile"


def test_uint8_takes_its_range_and_unknown_low_values_count_as_ct() -> None:
    assert fit_intensity(np.array([3, 9], np.uint8)) == Intensity(
        kind="range", lower=0.0, upper=255.0, note="uint8 range"
    )
    guess = fit_intensity(np.array([-1000, 40, 300], np.int16))
    assert guess.kind == "ct_window" and "taken for CT because values reach -1000" in guess.note
    assert fit_intensity(np.array([-1000, 40, 300], np.int16), "MR").kind == "percentile"


@pytest.mark.parametrize("value", [0, 7])
def test_constant_images_never_give_nan(value: int) -> None:
    array = np.full((4, 4), value, np.int16)
    out = fit_intensity(array).apply(array)
    assert out.dtype == np.float32 and (out == 0).all()


def test_nan_is_refused_by_apply() -> None:
    with pytest.raises(InputError, match="values hold NaN"):
        ct_window("soft").apply(np.array([np.nan, 1.0]))


def test_dict_round_trip_and_bad_dicts() -> None:
    scale = ct_window("lung")
    assert Intensity.from_dict(scale.to_dict()) == scale
    with pytest.raises(ConfigError, match=r"unknown keys \['x'\], missing keys \['upper'\]"):
        Intensity.from_dict({"kind": "range", "lower": 0, "x": 1})
    with pytest.raises(ConfigError, match="kind is 'log'"):
        Intensity.from_dict({"kind": "log", "lower": 0, "upper": 1})
    with pytest.raises(ConfigError, match="lower <= upper"):
        Intensity.from_dict({"kind": "range", "lower": 2, "upper": 1})


def test_scene_is_sampled_and_its_modality_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = open_scene(volumes.dicom_series(tmp_path / "a", volumes.ramp()))
    assert fit_intensity(scene) == ct_window("soft"), "the DICOM header says CT"
    plain = open_scene(volumes.nifti(tmp_path / "a.nii", volumes.ramp().transpose(2, 1, 0), np.eye(4)))
    whole = fit_intensity(plain)
    used = volumes.ramp()[volumes.ramp() != 0]
    assert np.allclose((whole.lower, whole.upper), np.percentile(used, (0.5, 99.5)))
    monkeypatch.setattr("samgraft.domains.medical.intensity._SAMPLE", 90)
    assert fit_intensity(plain).kind == "percentile"
