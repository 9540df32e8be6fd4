"""Real pairs: what is known of them is measured, and halves of one set are not taken for two domains."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samgraft.recipes.shift.advice import advise, beyond_chance, inverted
from samgraft.recipes.shift.measure import Measured, ShiftOptions, measure_shift
from samgraft.recipes.shift.report import shift_text, write_shift

pytestmark = pytest.mark.slow
OPTIONS = ShiftOptions(views=28, permutations=199)


def listed(path: Path, files: list[Path]) -> Path:
    """A text file that names ``files``."""
    path.write_text("\n".join(map(str, files)))
    return path


@pytest.fixture(scope="module")
def lists(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Lists of fluorescence and stained nuclei and of halves of sets by patient."""
    root = tmp_path_factory.mktemp("lists")
    kinds: dict[str, list[Path]] = {"fluorescence": [], "stained": []}
    for path in sorted((shared_data / "medical/nuclei/images").iterdir()):
        with Image.open(path) as picture:
            small = np.asarray(picture.convert("RGB").reduce(4), dtype=np.float64)
        if np.ptp(small, axis=-1).mean() > 3:
            kinds["stained"].append(path)
        elif small.mean() < 100:
            kinds["fluorescence"].append(path)
    kinds["mr"] = sorted((shared_data / "medical/sarcoma_mr/imagesTr").glob("*.nii.gz"))
    halves = {f"{name}_{i}": files[i::2] for name, files in kinds.items() for i in (0, 1)}
    return {name: listed(root / f"{name}.txt", files) for name, files in (kinds | halves).items()}


def shown(found: Measured, folder: Path) -> Measured:
    """Text and picture, to be looked at."""
    write_shift(found, folder / "shift.png")
    (folder / "shift.txt").write_text(shift_text(found))
    return found


def test_fluorescence_and_stained_nuclei(lists: dict[str, Path], tmp_path: Path) -> None:
    found = shown(measure_shift(lists["fluorescence"], lists["stained"], options=OPTIONS), tmp_path)
    assert found.source.statistics.gray and not found.target.statistics.gray
    assert found.source.statistics.stain is None and found.target.statistics.stain is not None
    assert inverted(found)
    assert found.features is not None and found.features.probe is not None
    assert found.features.probe.auc > 0.95 and found.features.mmd_p == pytest.approx(0.005)
    assert {a.lever: a.worth for a in advise(found)}["weak labels"] == "try"


def test_ct_and_mr_of_the_same_patients(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "medical"
    found = shown(measure_shift(root / "sarcoma_ct", root / "sarcoma_mr", options=OPTIONS), tmp_path)
    assert set(found.source.groups) == set(found.target.groups) and len(set(found.source.groups)) == 14
    assert found.features is not None and found.features.probe is not None
    assert found.features.unit == "groups" and found.features.probe.auc > 0.75
    assert found.features.mmd_p == pytest.approx(0.005)
    given = {a.lever: a.worth for a in advise(found)}
    assert given["weak labels"] == "try" and given["resample"] == "try"


@pytest.mark.parametrize("name", ["fluorescence", "mr"])
def test_halves_of_a_set_are_no_two_domains(lists: dict[str, Path], name: str) -> None:
    found = measure_shift(lists[f"{name}_0"], lists[f"{name}_1"], options=OPTIONS)
    assert found.features is not None and beyond_chance(found.features) < 1.0
    assert advise(found)[0].lever == "nothing"
    assert not inverted(found) and max(found.comparison.wasserstein) < 0.1


def test_aerial_images_of_two_cities(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "geo"
    found = shown(
        measure_shift(root / "buildings_banepa/train", root / "buildings_rio_8band/3band", options=OPTIONS), tmp_path
    )
    assert found.file_ratio is not None and min(found.file_ratio) > 2
    assert {a.lever: a.worth for a in advise(found)}["resample"] == "try"
    assert any("no nodata value" in note for note in found.target.notes)
