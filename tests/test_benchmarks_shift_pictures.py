"""Which adapter a column of the shift pictures shows, and which slice of a volume."""

from pathlib import Path

import numpy as np
import pytest

import samgraft
from samgraft.adapters.bundle import BundleMeta, read_header, save_bundle
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import attach
from tests.adapters.toy import toy_backbone
from tests.benchmarks._data import cut_axis
from tests.benchmarks._shift_pairs import PAIRS
from tests.benchmarks._shift_rows import run_folder, source_folder
from tests.benchmarks.shift_pictures import adapter_of, flat, picture_of, plane_of
from tests.recipes._sets import write_volumes


def adapter(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    grafted = attach(toy_backbone(), decoder=ClassTokensConfig(num_classes=1, width=seed))
    return save_bundle(path, grafted, meta=BundleMeta(classes={1: "a"}))


def test_a_run_is_shown_with_its_own_adapter_or_with_the_source(tmp_path: Path) -> None:
    pair = PAIRS["sarcoma_ct_to_mr"]
    old, source = (adapter(source_folder(tmp_path, pair, 0) / h / "as_MR.graft", n) for n, h in ((8, "a"), (16, "b")))
    adapter(source.with_name("adapter.graft"), 16)  # the same tensors, and not told what the target is
    result = {"seed": 0, "method": "source only", "source_adapter": read_header(source)["tensors_sha256"][:12]}
    assert adapter_of(tmp_path, pair, result) == source != old
    own = adapter(run_folder(tmp_path, pair.name, 0, "no labels") / "adapter.graft", 8)
    fitted = adapter(run_folder(tmp_path, pair.name, 0, "weak boxes") / "fit" / "adapter.graft", 8)
    assert adapter_of(tmp_path, pair, {**result, "method": "no labels"}) == own
    assert adapter_of(tmp_path, pair, {**result, "method": "weak boxes"}) == fitted
    with pytest.raises(SystemExit, match="no adapter of 'source only'"):
        adapter_of(tmp_path, pair, {**result, "source_adapter": "0" * 12})


def test_the_slice_with_most_labels_is_shown(tmp_path: Path) -> None:
    root = write_volumes(tmp_path / "v")
    scene = samgraft.open(next((root / "imagesTr").glob("*.nii.gz")))
    axis, labels = cut_axis(np.asarray(scene.grid.spacing)), np.zeros(scene.grid.shape, dtype=np.int32)
    stack = np.moveaxis(labels, axis, 0)
    stack[3, 4:9, 5:8], stack[2, 0, 0] = 1, 1
    plane = plane_of(scene, labels)
    assert plane == (axis, 3) and flat(labels, plane).sum() == 15
    picture = picture_of(scene, plane)
    assert picture.shape == flat(labels, plane).shape and 0 <= picture.min() <= picture.max() <= 1
