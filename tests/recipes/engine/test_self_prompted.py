"""An adapter's own masks as prompts: which boxes they become, what the decoder makes of them, what is left alone."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import samgraft
from samgraft.adapters.bundle import BundleMeta, save_bundle
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import LoraConfig
from samgraft.domains.scene import Scene
from samgraft.domains.segmentation import Segmentation
from samgraft.errors import ConfigError
from samgraft.recipes import cli
from samgraft.recipes.engine.flipped import FlippedResult
from samgraft.recipes.engine.propagated import VolumeOptions
from samgraft.recipes.engine.self_prompted import SLICES, carried, prompts_of_classes
from samgraft.volumetric.propagation import PropagationConfig, StopRule
from tests.adapters.toy import toy_backbone
from tests.recipes._oracle import Oracle
from tests.volumetric._phantoms import tilted_cylinder

SHAPE = (20, 32, 64)
WIDE = PropagationConfig(box_margin=1.5, stop=StopRule(length=None))


def write(path: Path, truth: NDArray[np.bool_]) -> Path:
    data = np.where(truth, 220, 20).astype(np.uint8)
    nib.save(nib.Nifti1Image(data.transpose(2, 1, 0), np.diag([1.0, 1.0, 3.0, 1.0])), path)
    return path


class Answering:
    """What ``carried`` needs of a Grafted: the oracle without the graft, and whether the graft is in it."""

    answers_prompts, attached, decoder = False, True, "class maps"

    def __init__(self) -> None:
        self.backbone, self.states = Oracle(), ["in"]

    def detach(self) -> Oracle:
        self.states.append("out")
        return self.backbone

    def install(self) -> None:
        self.states.append("in")


def found(scene: Scene, labels: NDArray[np.integer], classes: dict[int, str]) -> FlippedResult:
    made = Segmentation(labels=labels.astype(np.uint8), grid=scene.grid, kind="semantic", classes=classes)
    return FlippedResult(segmentation=made, signals={}, uncertainty=np.zeros(0, np.float32), axis=0)


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_largest_piece_becomes_loose_boxes_on_a_few_of_its_slices(axis: int) -> None:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    for index in range(2, 15):  # slices 2 to 14; three of them at equal shares are 5, 8 and 11
        labels[index, 4 + index : 9 + index, 10 : 20 + index] = 7
    labels[18, 0:9, 40:60] = 7  # another piece, with fewer voxels
    asked = prompts_of_classes(np.moveaxis(labels, 0, axis), {3: "absent", 7: "lesion"}, axis=axis, slices=3)
    assert asked is not None and asked.axis == axis and len(asked) == 1 and not asked.from_ground_truth
    (one,) = asked.objects
    assert one.class_name == "lesion" and [said.slice for said in one.slices] == [5, 8, 11]
    assert [said.box for said in one.slices] == [(10, 4 + k, 19 + k, 8 + k) for k in (5, 8, 11)]
    assert not any(said.tight for said in one.slices)


def test_a_piece_of_one_slice_is_shown_once_and_nothing_is_nothing() -> None:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    assert prompts_of_classes(labels, {1: "a"}, axis=0) is None
    labels[4, 3, 5] = 1
    asked = prompts_of_classes(labels, {1: "a"}, axis=0)
    assert asked is not None and [(said.slice, said.box) for said in asked.objects[0].slices] == [(4, (5, 3, 5, 3))]


def test_half_an_object_and_a_stray_piece_become_the_object(tmp_path: Path) -> None:
    truth = tilted_cylinder(shape=SHAPE)
    scene, half = samgraft.open(write(tmp_path / "a.nii.gz", truth)), np.zeros(SHAPE, dtype=np.uint8)
    half[6:13] = truth[6:13]
    half[0, 25:30, 50:60] = 1
    network = Answering()
    result = carried(scene, found(scene, half * 5, {5: "rod"}), network, VolumeOptions(shown=3, propagation=WIDE))  # type: ignore[arg-type]
    assert dice(half > 0, truth) < 0.75 < 0.95 < dice(result.labels == 5, truth)
    assert set(np.unique(result.labels)) == {0, 5} and not result.labels[0].any()
    assert result.kind == "semantic" and result.classes == {5: "rod"} and result.grid == scene.grid
    assert result.meta["carried from"] == "3 slices" and "not carried" not in result.meta
    assert network.states == ["in", "out", "in"] and not result.from_ground_truth


def test_what_the_decoder_does_not_find_again_stays(tmp_path: Path) -> None:
    truth = tilted_cylinder(shape=SHAPE)
    scene, labels = samgraft.open(write(tmp_path / "a.nii.gz", truth)), np.zeros(SHAPE, dtype=np.uint8)
    labels[8][truth[8]] = 2
    labels[3:6, 25:30, 40:50] = 9  # the picture is dark there
    known = found(scene, labels, {2: "rod", 9: "ghost"})
    result = carried(scene, known, Answering(), VolumeOptions(shown=1, propagation=WIDE))  # type: ignore[arg-type]
    assert dice(result.labels == 2, truth) > 0.95 and np.array_equal(result.labels == 9, labels == 9)
    assert result.meta["not carried"] == "ghost"


def test_nothing_is_asked_where_nothing_was_found_or_wanted(tmp_path: Path) -> None:
    scene = samgraft.open(write(tmp_path / "a.nii.gz", tilted_cylinder(shape=SHAPE)))
    empty = found(scene, np.zeros(SHAPE, dtype=np.uint8), {1: "rod"})
    some = found(scene, np.ones(SHAPE, dtype=np.uint8), {1: "rod"})
    network = Answering()
    assert carried(scene, empty, network, VolumeOptions(shown=3)) is empty.segmentation  # type: ignore[arg-type]
    assert carried(scene, some, network, VolumeOptions()) is some.segmentation  # type: ignore[arg-type]
    assert network.states == ["in"]
    with pytest.raises(ConfigError, match="shown is -1"):
        VolumeOptions(shown=-1)


def test_the_graft_comes_back_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr("samgraft.recipes.engine.self_prompted.segment_volume", fail)
    scene, network = samgraft.open(write(tmp_path / "a.nii.gz", tilted_cylinder(shape=SHAPE))), Answering()
    with pytest.raises(RuntimeError, match="in the middle"):
        carried(scene, found(scene, np.ones(SHAPE, np.uint8), {1: "rod"}), network, VolumeOptions(shown=3))  # type: ignore[arg-type]
    assert network.states == ["in", "out", "in"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    grafted = attach(toy_backbone(), [LoraConfig(rank=2)], decoder=ClassTokensConfig(num_classes=1))
    meta = BundleMeta(classes={1: "tumour"}, extra={"input": {"size": 64}})
    return save_bundle(tmp_path_factory.mktemp("adapter") / "a.graft", grafted, meta=meta)


def test_from_python_the_adapter_is_as_it_was(tmp_path: Path, adapter: Path) -> None:
    path = write(tmp_path / "a.nii.gz", tilted_cylinder(shape=SHAPE))
    grafted = samgraft.load_adapter(adapter, toy_backbone())
    assert isinstance(grafted, Grafted)
    before = samgraft.segment(path, adapter=grafted, progress=False)
    drawn = samgraft.segment(path, adapter=grafted, volume=VolumeOptions(shown=SLICES), progress=False)
    assert drawn.meta["carried from"] == "3 slices" and not np.array_equal(drawn.labels, before.labels)
    assert np.array_equal(samgraft.segment(path, adapter=grafted, progress=False).labels, before.labels)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grafted = attach(samgraft.load_backbone("graft-tiny"), decoder=ClassTokensConfig(num_classes=1))
    meta = BundleMeta(classes={1: "tumour"}, extra={"input": {"size": 64}})
    file = save_bundle(tmp_path / "t.graft", grafted, meta=meta)
    grafted.detach()
    path, out = write(tmp_path / "a.nii.gz", tilted_cylinder(shape=SHAPE)), tmp_path / "m.nii.gz"
    assert cli.main(["segment", str(path), "--adapter", str(file), "--propagate", "-o", str(out)]) == 0
    wanted = samgraft.segment(path, adapter=file, volume=VolumeOptions(shown=SLICES), progress=False).labels
    assert np.array_equal(np.asarray(nib.load(out).dataobj).T, wanted)
    capsys.readouterr()
