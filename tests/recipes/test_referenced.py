"""Labelled files in, a segmentation on the target's grid out; the backbone's answer is known."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from samgraft.errors import ConfigError, InputError, SamgraftError, ShapeError
from samgraft.recipes import cli
from samgraft.recipes.api import Example, Examples, UserPrompts, segment
from samgraft.recipes.engine.referenced import METHODS, load_references, segment_like
from tests.recipes._oracle import Oracle, squares

SHAPE = (48, 80)
SEEN, ASKED = (50, 6, 69, 21), (8, 26, 27, 41)
OPTIONS = {"tap": "neck", "position": 0.0, "appearance": 4.0}
"""The features have one channel, so cosines are 1 or -1; looks tell the rim of an object from its middle."""


def write(folder: Path, name: str, box: tuple[int, int, int, int], *, label: int = 255) -> tuple[Path, Path]:
    """A picture with one bright box, and its mask."""
    image, mask = folder / f"{name}.png", folder / f"{name}_mask.png"
    pixels = squares(SHAPE, [box])
    Image.fromarray(pixels).save(image)
    Image.fromarray(np.where(pixels > 100, label, 0).astype(np.uint8)).save(mask)
    return image, mask


def truth(box: tuple[int, int, int, int]) -> np.ndarray:
    return squares(SHAPE, [box]) > 100


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("method", [name for name in METHODS if name != "persam"])
def test_what_the_reference_shows_is_found_elsewhere(tmp_path: Path, method: str) -> None:
    image, mask = write(tmp_path, "seen", SEEN)
    target, _ = write(tmp_path, "asked", ASKED)
    examples = Examples(files=(Example(image=image, mask=mask),), method=method, options=OPTIONS)
    result = segment(target, backbone=Oracle(), references=examples, progress=False)
    assert result.grid.shape == SHAPE and result.kind == "semantic" and result.classes == {1: "object"}
    assert overlap(result.labels == 1, truth(ASKED)) > 0.75
    assert not result.from_ground_truth and result.meta["method"] == method


def test_labels_are_those_of_the_masks(tmp_path: Path) -> None:
    """Two kinds, 3 and 7, in two files; on the target only the bright one of value 7 is what looks like it."""
    first = write(tmp_path, "first", SEEN, label=7)
    dark = np.zeros(SHAPE, np.uint8)
    dark[30:44, 4:20] = 3
    Image.fromarray(squares(SHAPE, [SEEN])).save(tmp_path / "second.png")
    Image.fromarray(dark).save(tmp_path / "second_mask.png")
    files = [Example(image=a, mask=b) for a, b in (first, (tmp_path / "second.png", tmp_path / "second_mask.png"))]
    references, values = load_references(files, size=64)
    assert values == (3, 7) and references.masks.shape == (2, 2, 64, 64)
    assert references.valid is not None
    assert not references.valid[0, :12].any() and references.valid[0, 13:50].all()  # 16 rows of 80 above and below
    rows, cols = (references.masks[1, 0] > 0.5).nonzero(as_tuple=True)
    assert (int(rows.min()), int(rows.max())) == pytest.approx(((30 + 16) * 0.8, (44 + 16) * 0.8 - 1), abs=1)
    assert (int(cols.min()), int(cols.max())) == pytest.approx((4 * 0.8, 20 * 0.8 - 1), abs=1)
    target, _ = write(tmp_path, "asked", ASKED)
    result = segment_like(
        target, Examples(files=(files[0],), method="in_context", options=OPTIONS), backbone=Oracle(), size=64
    )
    assert set(np.unique(result.labels)) == {0, 1} and result.classes == {1: "object"}
    both = Examples(files=tuple(files), method="in_context", options={**OPTIONS, "neighbours": 1})
    named = segment_like(target, both, backbone=Oracle(), size=64)
    assert named.classes == {3: "class 3", 7: "class 7"} and set(np.unique(named.labels)) <= {0, 3, 7}


def test_one_slice_of_a_volume(tmp_path: Path) -> None:
    """Arrays (i, j, k) = (80, 48, 5): the reference's largest slice is 1, the target's slice 3 is asked for."""
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    seen, label, asked = (np.zeros((80, 48, 5), np.float32) for _ in range(3))
    seen[..., 1], asked[..., 3] = squares(SHAPE, [SEEN]).T, squares(SHAPE, [ASKED]).T
    label[..., 1] = truth(SEEN).T
    for name, array in (("seen", seen), ("asked", asked)):
        nib.save(nib.Nifti1Image(array, affine), tmp_path / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(label.astype(np.uint8), affine), tmp_path / "label.nii.gz")
    example = Example(image=tmp_path / "seen.nii.gz", mask=tmp_path / "label.nii.gz")
    options = {"method": "persam_f", "options": OPTIONS}
    result = segment(
        tmp_path / "asked.nii.gz", backbone=Oracle(), references=Examples(files=(example,), slice=3, **options)
    )
    assert result.labels.shape == (5, 48, 80) and result.meta["slice"] == "D=3"
    assert overlap(result.labels[3] > 0, truth(ASKED)) > 0.9 and not result.labels[[0, 1, 2, 4]].any()
    with pytest.raises(ShapeError, match=r"slice 5 of asked.nii.gz is not there; axis D has 0..4"):
        segment_like(tmp_path / "asked.nii.gz", Examples(files=(example,), slice=5, **options), backbone=Oracle())


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    image, mask = write(tmp_path, "seen", SEEN)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "small.png")
    Image.fromarray(np.zeros(SHAPE, np.uint8)).save(tmp_path / "empty.png")
    with pytest.raises(InputError, match=r"small.png is \(9, 9\); its image .* is \(48, 80\)"):
        load_references([Example(image=image, mask=tmp_path / "small.png")], size=64)
    with pytest.raises(InputError, match="has a value above 0; nothing is shown"):
        load_references([Example(image=image, mask=tmp_path / "empty.png")], size=64)
    with pytest.raises(ConfigError, match="no file; give at least one image"):
        Examples(files=())
    with pytest.raises(ConfigError, match="method is 'persamf'; did you mean 'persam_f'"):
        Examples(files=(Example(image=image, mask=mask),), method="persamf")
    with pytest.raises(SamgraftError, match="references and prompts both say"):
        examples = Examples(files=(Example(image=image, mask=mask),))
        segment(image, backbone=Oracle(), references=examples, prompts=UserPrompts(boxes=((0, 0, 5, 5),)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reference", "a.png"], "1 --reference and 0 --reference-mask"),
        (["--box", "0", "0", "5", "5", "--method", "persam"], "--method persam needs labelled images"),
        (["--reference", "no.png", "--reference-mask", "no.png"], "InputError"),
    ],
)
def test_command_line_refuses(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target, _ = write(tmp_path, "asked", ASKED)
    assert cli.main(["segment", str(target), *words, "-o", str(tmp_path / "out.png")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """graft-tiny, with the picture as its own reference: neighbours' labels give its mask back."""
    image, mask = write(tmp_path, "seen", SEEN)
    output = tmp_path / "out.png"
    words = ["--reference", str(image), "--reference-mask", str(mask), "--method", "in_context", "-o", str(output)]
    assert cli.main(["segment", str(image), *words]) == 0
    assert "wrote" in capsys.readouterr().out
    assert overlap(np.asarray(Image.open(output)) > 0, truth(SEEN)) > 0.8
