"""An adapter for another modality: same tensors, another scale of values, and MR is no longer refused."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from samgraft.adapters.bundle import BundleMeta, read_header, read_meta, save_bundle
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import LoraConfig
from samgraft.domains.medical.intensity import ct_window
from samgraft.domains.opening import open_scene
from samgraft.errors import CheckpointError, ConfigError, InputError
from samgraft.recipes import cli
from samgraft.recipes.engine.recorded import recorded
from samgraft.recipes.engine.run import load_adapter
from samgraft.recipes.rescaling import rescale_adapter
from tests.adapters.toy import toy_backbone

META = BundleMeta(
    classes={1: "tumour"},
    modality="CT",
    intensity=ct_window("soft").to_dict(),
    extra={"input": {"size": 64}},
)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return save_bundle(tmp_path / "ct.graft", attach(toy_backbone(), [LoraConfig()]), meta=META)


def volume(path: Path) -> Path:
    values = np.linspace(0, 900, 5 * 6 * 7).reshape(7, 6, 5).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.0, 3.0, 1.0])), path)  # type: ignore[attr-defined]
    return path


def test_the_scale_is_another_one_and_the_tensors_are_not(adapter: Path, tmp_path: Path) -> None:
    before = adapter.read_bytes()
    written = rescale_adapter(adapter, tmp_path / "mr.graft", modality="MR")
    assert adapter.read_bytes() == before
    assert read_header(written)["tensors_sha256"] == read_header(adapter)["tensors_sha256"]
    meta = read_meta(written)
    assert (meta.modality, meta.intensity and meta.intensity["kind"]) == ("MR", "percentile")
    assert meta.extra["input"] == {"size": 64}
    assert meta.extra["rescaled_from"] == {"modality": "CT", "intensity": META.intensity}


def test_mr_is_refused_before_and_seen_by_its_own_percentiles_after(adapter: Path, tmp_path: Path) -> None:
    scene = open_scene(volume(tmp_path / "mr.nii.gz"))
    grafted = load_adapter(adapter, toy_backbone())
    with pytest.raises(InputError, match="trained on CT"):
        recorded(grafted, read_meta(adapter)).look(scene)
    written = rescale_adapter(adapter, tmp_path / "mr.graft", modality="MR")
    look = recorded(grafted, read_meta(written)).look(scene)
    low, high = np.percentile(np.linspace(0, 900, 210)[1:], (0.5, 99.5))  # zeros are taken for air
    assert (look.lower[0], look.upper[0]) == (pytest.approx(low, rel=1e-5), pytest.approx(high, rel=1e-5))


def test_a_window_of_ones_own(adapter: Path, tmp_path: Path) -> None:
    words = ["rescale", str(adapter), "--modality", "MR", "--intensity", "10", "250", "-o", str(tmp_path / "w.graft")]
    assert cli.main(words) == 0
    scale = read_meta(tmp_path / "w.graft").intensity
    assert scale is not None
    assert (scale["kind"], scale["lower"], scale["upper"]) == ("range", 10.0, 250.0)


def test_what_is_refused_leaves_nothing_behind(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the adapter itself"):
        rescale_adapter(adapter, adapter, modality="MR")
    with pytest.raises(ConfigError, match="modality is empty"):
        rescale_adapter(adapter, tmp_path / "x.graft", modality=" ")
    with pytest.raises(ConfigError, match="lower < upper"):
        rescale_adapter(adapter, tmp_path / "x.graft", modality="MR", intensity=(5.0, 5.0))
    with pytest.raises(CheckpointError):
        rescale_adapter(tmp_path / "absent.graft", tmp_path / "x.graft", modality="MR")
    assert [path.name for path in tmp_path.iterdir()] == ["ct.graft"]
