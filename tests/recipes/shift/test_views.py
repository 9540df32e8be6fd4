"""Sets on disk and the views of them: groups, which slices and windows, pixel sizes, missing pixels, bad files."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from samgraft.adapters.bundle import BundleMeta
from samgraft.domains.opening import open_scene
from samgraft.errors import ConfigError, InputError
from samgraft.recipes.alignment import evenly
from samgraft.recipes.header import InputRecipe
from samgraft.recipes.look import look_at
from samgraft.recipes.shift import views
from samgraft.recipes.shift.sets import find_set
from samgraft.recipes.shift.views import View, Viewer, recorded_input, set_views, spread_windows
from tests.data.rasters import NORTH_UP, pixels, write_raster
from tests.recipes._sets import write_pictures, write_rasters, write_volumes
from tests.recipes.shift._pictures import write_set


def seen(path: Path, limit: int, viewer: Viewer | None = None) -> list[View]:
    return list(set_views(find_set(path), viewer or Viewer(), limit))


def recipe(meta: dict[str, object], **options: object) -> Viewer:
    """As an adapter with this header sees images."""
    given = InputRecipe(**{"size": 64, **options})  # type: ignore[arg-type]
    header = BundleMeta(classes={1: "x"}, extra={"input": asdict(given)}, **meta)  # type: ignore[arg-type]
    return Viewer(recorded=recorded_input(header))


def test_patients_come_from_the_split_file(tmp_path: Path) -> None:
    found = find_set(write_pictures(tmp_path / "set", cases=5))
    assert [m.name for m in found.members] == ["P0-000", "P0-001", "P1-002", "P1-003", "P2-004"]
    assert [m.group for m in found.members] == ["P0", "P0", "P1", "P1", "P2"] and found.grouped_by == "split file"


def test_patients_come_from_names(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "set", cases=4)
    assert [m.group for m in find_set(root, group=r"-(\d\d)").members] == ["00", "00", "00", "00"]
    assert [m.group for m in find_set(root, group=r"\d$").members] == ["0", "1", "2", "3"]
    with pytest.raises(InputError, match="no match for --group"):
        find_set(root, group="Q")
    with pytest.raises(ConfigError, match="no regular expression"):
        find_set(root, group="(")


def test_channels_of_volumes_belong_together_and_labels_are_left_alone(tmp_path: Path) -> None:
    root = write_volumes(tmp_path / "set", cases=2, modality="CT")
    for file in sorted((root / "imagesTr").iterdir()):
        file.with_name(file.name.replace("_0000", "_0001")).write_bytes(file.read_bytes())
    for file in (root / "labelsTr").iterdir():
        file.write_bytes(b"no label is opened")
    found = find_set(root)
    assert [m.name for m in found.members] == ["case_00", "case_01"] and found.modality == "CT"
    assert [len(m.files) for m in found.members] == [2, 2] and found.members[0].open().channels == 2
    assert len(list(set_views(found, Viewer(modality="CT"), 4))) == 4


def test_a_list_names_files_beside_it(tmp_path: Path) -> None:
    root = write_set(tmp_path / "a", count=4)
    (tmp_path / "some.txt").write_text("# two of four\na/a-3.png\n\na/a-1.png\n")
    found = find_set(tmp_path / "some.txt")
    assert [m.files for m in found.members] == [(root / "a-1.png",), (root / "a-3.png",)]
    (tmp_path / "none.txt").write_text("# nothing\n")
    with pytest.raises(InputError, match="lists no file"):
        find_set(tmp_path / "none.txt")
    with pytest.raises(InputError, match="no such file"):
        find_set(tmp_path / "missing")


def test_slices_of_volumes_are_spread_evenly(tmp_path: Path) -> None:
    root = write_volumes(tmp_path / "set", cases=2)
    found = seen(root, 4)
    assert [v.name for v in found] == ["case_00, 1", "case_00, 4", "case_01, 1", "case_01, 4"]
    scene = open_scene(root / "imagesTr" / "case_01_0000.nii.gz")
    expected = look_at(scene).apply(scene.read((slice(4, 5), slice(None), slice(None)))[:, 0])
    np.testing.assert_array_equal(found[3].image, expected)
    assert found[3].spacing == (1, 1) and found[3].group == "case_01" and found[3].image.shape == (3, 36, 40)
    assert len(seen(root, 100)) == 12  # no slice twice


def test_the_adapter_says_which_axis_is_cut(tmp_path: Path) -> None:
    found = seen(write_volumes(tmp_path / "set", cases=1), 2, recipe({}, slice_axis=2))
    assert [v.image.shape for v in found] == [(3, 6, 36)] * 2 and found[0].spacing == (4, 1)


def test_a_scale_that_does_not_fit_is_said_and_not_used(tmp_path: Path) -> None:
    root = write_volumes(tmp_path / "set", cases=1)  # MR values of about 100 to 500
    window = {"kind": "ct_window", "lower": -160.0, "upper": 240.0}
    viewer = recipe({"modality": "CT", "intensity": window})
    found = seen(root, 2, viewer)
    assert 0.1 < found[0].image.mean() < 0.7 and "does not fit" in viewer.notes[0] and len(viewer.notes) == 1


def test_some_of_many_pictures(tmp_path: Path) -> None:
    found = seen(write_set(tmp_path / "a", count=5), 4)
    assert [v.name for v in found] == ["a-0", "a-1", "a-3", "a-4"] and found[0].spacing is None
    assert found[0].image.shape == (3, 60, 70) and found[0].image.dtype == np.float32


def test_middles_are_even() -> None:
    assert evenly(9, 3) == [1, 4, 7] and evenly(8, 1) == [4] and evenly(4, 9) == [0, 1, 2, 3]


def test_windows_are_spread_over_both_axes() -> None:
    places = spread_windows((40, 64), 16, 8)
    assert [(r.start, c.start) for r, c in places] == [(r, c) for r in (0, 24) for c in (0, 16, 32, 48)]
    assert spread_windows((40, 64), 16, 1) == [(slice(12, 28), slice(24, 40))]
    assert spread_windows((10, 64), 16, 2) == [(slice(0, 10), slice(0, 16)), (slice(0, 10), slice(48, 64))]
    assert spread_windows((40, 64), None, 5) == [(slice(0, 40), slice(0, 64))]


def test_windows_of_a_raster_skip_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "WINDOW", 16)
    array = pixels((3, 48, 64))
    array[:, :, :40] = 0
    (tmp_path / "r").mkdir()
    write_raster(tmp_path / "r" / "a.tif", array, nodata=0)
    found = seen(tmp_path / "r", 4)
    assert len(found) == 4 and all(v.image.shape == (3, 16, 16) for v in found)
    assert all(int(v.name.rsplit(" ", 1)[1]) >= 32 for v in found)
    half = next(v for v in found if v.name.endswith("column 32"))
    assert np.isnan(half.image[:, :, :8]).all() and np.isfinite(half.image[:, :, 8:]).all()
    np.testing.assert_allclose(half.spacing, abs(NORTH_UP.a), rtol=1e-3)


def test_zeros_without_a_nodata_value_are_taken_for_missing(tmp_path: Path) -> None:
    array = pixels((3, 40, 50))
    array[:, :, :10] = 0
    (tmp_path / "r").mkdir()
    write_raster(tmp_path / "r" / "a.tif", array)
    viewer = Viewer()
    (found,) = seen(tmp_path / "r", 1, viewer)
    assert np.isnan(found.image[:, :, :10]).all() and np.isfinite(found.image[:, :, 10:]).all()
    assert "no nodata value" in viewer.notes[0]
    array[:, :, :10] = 5
    array[:, 0, 0] = 0  # one black pixel is none that is missing
    write_raster(tmp_path / "r" / "a.tif", array)
    assert np.isfinite(seen(tmp_path / "r", 1)[0].image).all()


def test_rasters_are_seen_at_the_pixel_size_of_the_adapter(tmp_path: Path) -> None:
    root = write_rasters(tmp_path / "set", cases=1)
    (found,) = seen(root, 1, recipe({}, gsd=(1.0, 1.0)))
    assert found.image.shape == (3, 48, 48)
    np.testing.assert_allclose(found.spacing, 1.0, rtol=2e-2)
    np.testing.assert_allclose(found.file_spacing, 0.5, rtol=1e-3)


def test_a_damaged_file_is_left_out_and_named(tmp_path: Path) -> None:
    root = write_set(tmp_path / "a", count=3)
    (root / "a-1.png").write_bytes(b"no picture")
    viewer = Viewer()
    assert [v.name for v in seen(root, 3, viewer)] == ["a-0", "a-2"] and "a-1 was left out" in viewer.notes[0]
    for file in root.iterdir():
        file.write_bytes(b"no picture")
    with pytest.raises(InputError, match="none of 3 images"):
        seen(root, 3)


def test_a_split_of_other_files_is_no_hindrance(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "set", cases=2)
    (root / "splits.json").write_text(json.dumps([{"train": ["Z"], "val": ["Y"]}]))
    assert [m.group for m in find_set(root).members] == ["P0-000", "P0-001"]
