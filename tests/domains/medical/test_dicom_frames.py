"""Enhanced (multi-frame) DICOM: frames are slices, placed by their functional groups."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samgraft.domains import open_scene
from samgraft.errors import InputError
from tests.data import volumes

pytestmark = pytest.mark.medical
SHAPE = (6, 4, 5)


@pytest.mark.parametrize("packed", [False, True])
def test_frames_are_ordered_by_place_and_scaled(tmp_path: Path, packed: bool) -> None:
    scene = open_scene(volumes.enhanced(tmp_path / "a.dcm", volumes.ramp(SHAPE), packed=packed))
    assert (scene.format, scene.modality, scene.grid.world) == ("multi-frame DICOM", "CT", "LPS")
    assert np.array_equal(scene.read()[0], volumes.ramp(SHAPE) * 2.0 - 10)
    assert scene.grid.shape == SHAPE and np.allclose(scene.grid.spacing, (2.5, 0.8, 0.6))
    assert np.allclose(scene.grid.to_world(np.array([5.0, 2, 3])), (-20.5 + 1.8, 13.25 + 1.6, 112.5))
    window = (slice(1, 3), slice(2, 4), slice(0, 2))
    assert np.array_equal(scene.read(window)[0], volumes.ramp(SHAPE)[window] * 2.0 - 10)


def _frame(head: Any, number: int, **groups: Any) -> None:
    """Put one more group with these elements into a frame."""
    from pydicom.dataset import Dataset

    for sequence, values in groups.items():
        item = Dataset()
        for tag, value in values.items():
            setattr(item, tag, value)
        setattr(head.PerFrameFunctionalGroupsSequence[number], sequence, [item])


def _second_stack(head: Any) -> None:
    _frame(head, 4, FrameContentSequence={"StackID": "2"})


def _turned(head: Any) -> None:
    _frame(head, 2, PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]})


def _no_place(head: Any) -> None:
    del head.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence


def _same_place(head: Any) -> None:
    groups = head.PerFrameFunctionalGroupsSequence
    groups[3].PlanePositionSequence = groups[0].PlanePositionSequence


def _film(head: Any) -> None:
    del head.PerFrameFunctionalGroupsSequence


def _colour(head: Any) -> None:
    head.SamplesPerPixel, head.PhotometricInterpretation = 3, "RGB"


@pytest.mark.parametrize(
    ("tweak", "message"),
    [
        (_second_stack, r"holds 2 stacks \('1': 5 frames, '2': 1 frames\); split them"),
        (_turned, r"its frames have 2 orientations, such as \(1\.0, 0\.0, 0\.0, 0\.0, 0\.0, -1\.0\)"),
        (_no_place, r"a\.dcm frame 2: ImagePositionPatient is missing"),
        (_same_place, r"1 duplicate slice positions(.|\n)*a\.dcm frame (1|4)"),
        (_film, r"multi-frame DICOM \(CT, 6 frames\) with 0 functional groups; its frames have no place"),
        (_colour, r"colour DICOM \(RGB\)"),
    ],
)
def test_what_is_not_one_volume_is_refused_by_name(tmp_path: Path, tweak: Callable[[Any], None], message: str) -> None:
    path = volumes.enhanced(tmp_path / "a.dcm", volumes.ramp(SHAPE), tweak=tweak)
    with pytest.raises(InputError, match=message):
        open_scene(path)


def test_truncated_file_is_named_before_reading(tmp_path: Path) -> None:
    path = volumes.enhanced(tmp_path / "a.dcm", np.zeros((6, 64, 64), np.int16))
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(InputError, match="truncated: 20000 bytes, its pixels alone take 49152"):
        open_scene(path)
