"""Many files in, masks out: names, shares, resume, bad files, and that processes write what one would."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samgraft.adapters.backbones import load_backbone
from samgraft.adapters.bundle import save_bundle
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import LoraConfig
from samgraft.domains.opening import open_scene
from samgraft.errors import ConfigError, InputError
from samgraft.recipes import cli
from samgraft.recipes.commands.predict import chosen_rank
from samgraft.recipes.predicting import MARKER, deal, find_inputs, mask_suffix, predict
from samgraft.recipes.ranks import Share
from tests.data.checkpoints import toy_sam, write_hf_folder
from tests.data.volumes import dicom_series, ramp
from tests.recipes._sets import write_pictures, write_rasters, write_volumes
from tests.recipes.test_api import META


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``images`` (volume, raster, pictures, a damaged file), ``sam`` and ``a.graft``."""
    root = tmp_path_factory.mktemp("predict")
    volumes, rasters = write_volumes(root / "v", cases=1), write_rasters(root / "r", cases=1)
    write_pictures(root / "p", cases=2)
    (root / "images").mkdir()
    for path in (volumes / "imagesTr", rasters / "images", root / "p" / "images"):
        for file in path.iterdir():
            file.rename(root / "images" / file.name)
    (root / "images" / "broken.png").write_bytes(b"no picture")
    (root / "images" / "notes.txt").write_text("not an image")
    backbone = load_backbone(write_hf_folder(root / "sam", toy_sam()))
    for seed, name in enumerate(("a", "b")):
        grafted = attach(backbone, [LoraConfig(rank=2)], decoder=ClassTokensConfig(num_classes=2))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in grafted.trainable_parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        save_bundle(root / f"{name}.graft", grafted, meta=META)
        grafted.detach()
    return root


@pytest.fixture(scope="module")
def alone(things: Path) -> Path:
    """Masks that one process wrote."""
    outcomes = predict(
        find_inputs([things / "images"]), things / "alone", adapter=things / "a.graft", backbone=things / "sam"
    )
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    assert [outcome.source.name for outcome in failed] == ["broken.png"] and "InputError: " in failed[0].error
    assert sorted(o.mask.name for o in outcomes if o.mask is not None) == [
        "P0-000.png",
        "P0-001.png",
        "case_00_0000.nii.gz",
        "tile-0.tif",
    ]
    return things / "alone"


def words(things: Path, output: Path, *more: str) -> list[str]:
    """Command line."""
    given = ["predict", things / "images", "-a", things / "a.graft", "--backbone", things / "sam", "-o", output]
    return [*map(str, given), *more]


def test_masks_lie_on_the_grid_of_their_input(things: Path, alone: Path) -> None:
    for source in find_inputs([things / "images"]):
        if source.name == "broken.png":
            continue
        scene = open_scene(source)
        name = source.name.removesuffix("".join(source.suffixes)) + mask_suffix(scene)
        mask = open_scene(alone / name)
        assert mask.grid.shape == scene.grid.shape and np.array_equal(mask.grid.affine, scene.grid.affine), name
        assert mask.grid.world == scene.grid.world
    assert len(np.unique(np.asarray(Image.open(alone / "P0-000.png")))) > 1


def test_two_processes_write_what_one_does_and_go_on_later(
    things: Path, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert cli.main(words(things, output, "--devices", "2", "--device", "cpu")) == 1
    captured = capsys.readouterr()
    assert "5 of 5 inputs, 2 processes" in captured.out and "4 written, 0 skipped, 1 failed" in captured.out
    assert "broken.png: InputError" in captured.err and captured.err.count("\n") == 1
    names = {path.name for path in alone.iterdir()}
    assert {path.name for path in output.iterdir()} == names and MARKER in names
    for name in names - {MARKER}:
        assert np.array_equal(open_scene(output / name).read(), open_scene(alone / name).read()), name

    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    (output / "P0-001.png").unlink()
    assert cli.main(words(things, output)) == 1
    assert "1 written, 3 skipped, 1 failed" in capsys.readouterr().out
    changed = {path.name for path in output.iterdir() if path.stat().st_mtime_ns != before[path.name]}
    assert changed == {"P0-001.png"}


def test_parts_of_an_array_job_make_the_whole(things: Path, alone: Path, tmp_path: Path) -> None:
    inputs = find_inputs([things / "images"])
    parts = [
        predict(
            inputs,
            tmp_path,
            adapter=things / "a.graft",
            backbone=things / "sam",
            share=Share(rank=rank, world=3),
        )
        for rank in range(3)
    ]
    assert sorted(o.source for part in parts for o in part) == sorted(inputs)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in alone.iterdir()}


def test_masks_of_another_adapter_are_kept_apart(things: Path, tmp_path: Path) -> None:
    inputs = [things / "images" / "P0-000.png", things / "images" / "P0-001.png"]
    options = {"backbone": things / "sam"}
    predict(inputs, tmp_path, adapter=things / "a.graft", **options)  # type: ignore[arg-type]
    first = (tmp_path / "P0-000.png").read_bytes()
    with pytest.raises(ConfigError, match="holds masks of another adapter"):
        predict(inputs, tmp_path, adapter=things / "b.graft", **options)  # type: ignore[arg-type]
    predict(inputs[:1], tmp_path, adapter=things / "b.graft", overwrite=True, **options)  # type: ignore[arg-type]
    assert (tmp_path / "P0-000.png").read_bytes() != first
    # the takeover was cut short: what the other adapter left does not count as finished
    states = [o.state for o in predict(inputs, tmp_path, adapter=things / "b.graft", **options)]  # type: ignore[arg-type]
    assert sorted(states) == ["skipped", "written"]


def test_largest_go_first_and_in_turn(tmp_path: Path) -> None:
    for name, size in (("a", 10), ("b", 500), ("c", 200), ("d", 200), ("e", 90)):
        (tmp_path / f"{name}.png").write_bytes(bytes(size))
    inputs = find_inputs([tmp_path])
    dealt = [
        [path.stem for path in deal(inputs[::step], Share(rank=rank, world=2))] for step in (1, -1) for rank in (0, 1)
    ]
    assert dealt == [["b", "d", "a"], ["c", "e"]] * 2


def test_inputs_are_checked(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    for name in ("one/x.png", "x.nii.gz", "y.png"):
        (tmp_path / name).write_bytes(b"1")
    with pytest.raises(InputError, match="holds no image"):
        find_inputs([tmp_path / "empty"])
    with pytest.raises(InputError, match="no such file or folder"):
        find_inputs([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="would both be written as 'x'"):
        find_inputs([tmp_path / "one", tmp_path / "x.nii.gz"])
    assert find_inputs([tmp_path / "y.png"]) == (tmp_path / "y.png",)


def test_output_must_not_be_read_again(things: Path) -> None:
    with pytest.raises(ConfigError, match="lies in the output folder"):
        predict(find_inputs([things / "images"]), things / "images", adapter=things / "a.graft")


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ((None, None), {}, (0, 1)),
        ((1, 3), {"RANK": "0", "WORLD_SIZE": "2"}, (1, 3)),
        ((None, None), {"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, (1, 2)),
        ((None, None), {"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, (3, 4)),
        ((None, None), {"SLURM_NTASKS": "4"}, (0, 1)),
    ],
)
def test_rank_comes_from_options_or_the_scheduler(
    given: tuple[int | None, int | None], environment: dict[str, str], expected: tuple[int, int]
) -> None:
    assert chosen_rank(*given, environment) == expected


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--rank", "1"), "give both"),
        (("--rank", "2", "--world", "2"), "--rank 2 of --world 2"),
        (("--devices", "0"), "--devices is 0"),
    ],
)
def test_wrong_calls_are_named(
    things: Path, tmp_path: Path, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(things, tmp_path, *more)) == 2
    assert message in capsys.readouterr().err


def test_marker_is_json(alone: Path) -> None:
    facts = json.loads((alone / MARKER).read_text())
    assert set(facts) == {"adapter", "backbone", "since"} and facts["since"] == 0.0


def test_adapter_in_memory_needs_no_marker(things: Path, tmp_path: Path) -> None:
    import samgraft

    network = samgraft.load_adapter(things / "a.graft", things / "sam")
    outcomes = predict([things / "images" / "P0-000.png"], tmp_path, adapter=network)
    assert [o.state for o in outcomes] == ["written"] and not (tmp_path / MARKER).exists()


def test_a_dicom_series_gets_a_segmentation_object_of_itself(
    things: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("highdicom")
    (tmp_path / "in").mkdir()
    series = dicom_series(tmp_path / "in" / "patient_7", ramp((3, 48, 40)))
    given = ["predict", tmp_path / "in", "-a", things / "a.graft", "--backbone", things / "sam", "-o"]
    assert cli.main([*map(str, given), str(tmp_path / "out")]) == 0
    (written,) = (path for path in (tmp_path / "out").iterdir() if path.name != MARKER)
    assert written.name == "patient_7.dcm"
    mask, scene = open_scene(written), open_scene(series)
    assert np.array_equal(mask.grid.affine, scene.grid.affine)
    assert cli.main([*map(str, given), str(tmp_path / "plain"), "--suffix", ".nii.gz"]) == 0
    plain = open_scene(tmp_path / "plain" / "patient_7.nii.gz")
    assert np.array_equal(mask.read_labels(), plain.read_labels()) and mask.read_labels().any()
    assert cli.main([*map(str, given), str(tmp_path / "no"), "--suffix", ".png"]) == 2
    assert "suffix '.png' is not written for volumes; expected one of .nii" in capsys.readouterr().err
