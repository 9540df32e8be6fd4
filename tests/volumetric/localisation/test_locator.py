"""The locator with a network whose codes are exact, and the real one on phantoms that train in seconds."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from samgraft.errors import CheckpointError, ConfigError, OutputError, ShapeError
from samgraft.volumetric.localisation import (
    Locator,
    LocatorConfig,
    PositionConfig,
    PositionNet,
    PositionTraining,
    Support,
    load_locator,
    read_locator_header,
    save_locator,
    train_positions,
)
from samgraft.volumetric.localisation.landmarks import landmarks_of
from samgraft.volumetric.localisation.network import STRIDES, cell_centres, contrast_cells, sample

SPACING = 1.5


def body(offset=(0, 0, 0), shape=(32, 40, 36)):
    """(D, H, W) of three bright blocks, no two alike in place and brightness, moved by ``offset``; and an organ."""
    image, organ = torch.zeros(shape), np.zeros(shape, dtype=bool)
    d, h, w = offset
    image[4 + d : 20 + d, 6 + h : 24 + h, 5 + w : 21 + w] = 0.4
    image[6 + d : 12 + d, 8 + h : 15 + h, 7 + w : 17 + w] = 0.9
    image[14 + d : 18 + d, 16 + h : 22 + h, 9 + w : 13 + w] = 0.7
    organ[6 + d : 12 + d, 8 + h : 15 + h, 7 + w : 17 + w] = True
    return image, organ


class Exact(torch.nn.Module):
    """Codes that are the true way from the middle of all brightness; features that know the place too."""

    def __init__(self):
        super().__init__()
        self.config = PositionConfig(spacing=SPACING)

    def forward(self, volume):
        image = volume[0, 0]
        places = cell_centres(tuple(image.shape), 1, SPACING)
        middle = (places * image[..., None]).sum((0, 1, 2)) / image.sum()
        kept = [tuple(-(-n // stride) for n in image.shape) for stride in STRIDES]
        ways = [cell_centres(shape, stride, SPACING) - middle for shape, stride in zip(kept, STRIDES, strict=True)]
        waves = [torch.cat([torch.cos(way / 9), torch.sin(way / 9)], dim=-1) for way in ways]
        features = [torch.nn.functional.normalize(wave, dim=-1).permute(3, 0, 1, 2)[None] for wave in waves]
        return ways[1].permute(3, 0, 1, 2)[None], features


def supports(offsets):
    found = []
    for offset in offsets:
        image, organ = body(offset)
        found.append(Support(image=image, walls={1: landmarks_of(organ, (SPACING,) * 3)}))
    return found


def test_landmarks_are_the_middles_of_outer_layers():
    mask = np.zeros((6, 9, 12), dtype=bool)
    mask[2, 3:6, 4:9] = True
    mask[3:5, 4, 5] = True
    found = landmarks_of(mask, (5.0, 1.0, 0.5))
    assert found[0].tolist() == [10.0, 4.0, 3.0], "layer D = 2: rows 3..5, columns 4..8"
    assert found[1].tolist() == [20.0, 4.0, 2.5]
    assert found[2].tolist() == [10.0, 3.0, 3.0] and found[5].tolist() == [10.0, 4.0, 4.0]
    with pytest.raises(ShapeError, match="an empty mask has no landmarks"):
        landmarks_of(np.zeros_like(mask), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("refine", [0.0, 4.0])
@pytest.mark.parametrize("offset", [(0, 0, 0), (7, 3, 11), (10, 15, 2)])
def test_box_moves_with_the_anatomy(refine, offset):
    locator = Locator.of(
        Exact(), supports([(1, 2, 3), (5, 9, 4), (3, 4, 8)]), {1: "organ"}, LocatorConfig(start="votes", refine=refine)
    )
    image, organ = body(offset)
    found = locator.locate(image)[1]
    places = np.argwhere(organ)
    assert found.low == pytest.approx(places.min(axis=0) * SPACING, abs=0.02 if not refine else 0.3)
    assert found.high == pytest.approx(places.max(axis=0) * SPACING, abs=0.02 if not refine else 0.3)
    assert found.spread < 0.02


def test_sides_are_drawn_towards_those_of_annotated_volumes():
    some = supports([(1, 2, 3), (5, 9, 4), (3, 4, 8)])
    some = [Support(image=s.image, walls={1: s.walls[1] + np.eye(6, 3) * 0}) for s in some]
    locator = Locator.of(Exact(), some, {1: "organ"}, LocatorConfig(start="votes", refine=0, size_prior=1.0))
    locator.sides[1] = locator.sides[1] + 6.0
    image, organ = body((2, 2, 2))
    found = locator.locate(image)[1]
    places = np.argwhere(organ)
    assert found.low == pytest.approx(places.min(axis=0) * SPACING - 3.0, abs=0.02)
    assert found.high == pytest.approx(places.max(axis=0) * SPACING + 3.0, abs=0.02)


def test_box_ends_inside_the_volume():
    locator = Locator.of(Exact(), supports([(0, 0, 0)] * 3), {1: "organ"}, LocatorConfig(start="votes", refine=0))
    locator.codes[1] = locator.codes[1] + 1000.0
    image, _ = body()
    found = locator.locate(image)[1]
    assert found.high.tolist() == [31 * SPACING, 39 * SPACING, 35 * SPACING]


def test_what_locates_annotated_volumes_better_is_taken():
    shown = supports([(1, 2, 3), (5, 9, 4), (3, 4, 8)])
    exact = Locator.of(Exact(), shown, {1: "organ"}, LocatorConfig(refine=0))
    assert exact.errors[1]["votes"] < 0.02 and exact.errors[1]["templates"] < 1e-4
    poor = Locator.of(PositionNet(PositionConfig(spacing=SPACING, width=4)).eval(), shown, {1: "organ"})
    assert poor.errors[1]["votes"] > 2 * SPACING, "random weights know nothing"
    assert poor.start_of(1) == "templates"
    image, organ = body((10, 15, 2))
    found, places = poor.locate(image)[1], np.argwhere(organ)
    assert found.low == pytest.approx(places.min(axis=0) * SPACING, abs=1e-3)
    assert found.high == pytest.approx(places.max(axis=0) * SPACING, abs=1e-3)
    poor.errors[1]["templates"] = 99.0
    assert poor.start_of(1) == "votes"
    assert poor.by("templates").start_of(1) == "templates"


def test_annotated_volume_is_located_by_the_others_only():
    shown = supports([(1, 2, 3), (5, 9, 4), (3, 4, 8)])
    away = Support(image=shown[2].image, walls={1: shown[2].walls[1] + 12.0, 2: shown[2].walls[1]})
    config = LocatorConfig(start="templates", size_prior=0.0)
    locator = Locator.of(Exact(), [*shown[:2], away], {1: "organ", 2: "seen once"}, config)
    # the median of two is their mean: 0 and 12 mm for the first two; 0 for the third, whose own label says 12
    assert locator.errors == {1: {"templates": pytest.approx((6 + 6 + 12) / 3, abs=0.1)}}
    assert locator.start_of(2) == "templates"


def test_class_that_nobody_shows_is_named():
    with pytest.raises(ConfigError, match="no annotated volume shows liver"):
        Locator.of(Exact(), supports([(0, 0, 0)]), {1: "organ", 2: "liver"})


# --- the network


def test_a_place_has_the_same_code_in_a_crop_and_in_the_whole():
    network = PositionNet(PositionConfig(width=4)).eval()
    volume = torch.rand(1, 1, 120, 120, 120, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, features = network(volume)
        part, crops = network(volume[..., 8:112, 8:112, 8:112])
    inner = slice(12, 14)  # 48 voxels from every edge of the crop: more than half the receptive field
    moved = slice(inner.start + 2, inner.stop + 2)
    assert torch.allclose(part[0, :, inner, inner, inner], whole[0, :, moved, moved, moved], atol=1e-4)
    fine, there = slice(24, 28), slice(28, 32)
    assert torch.allclose(crops[0][0, :, fine, fine, fine], features[0][0, :, there, there, there], atol=1e-5)


def test_shapes_and_lengths_for_any_side():
    network = PositionNet(PositionConfig(width=4))
    codes, features = network(torch.rand(2, 1, 9, 17, 24))
    assert codes.shape == (2, 3, 3, 5, 6)
    assert [tuple(f.shape) for f in features] == [(2, 4, 5, 9, 12), (2, 8, 3, 5, 6), (2, 16, 2, 3, 3)]
    assert all(torch.allclose(f.norm(dim=1), torch.ones(()), atol=1e-4) for f in features)
    with pytest.raises(ShapeError, match="sides of at least 8"):
        network(torch.rand(1, 1, 7, 16, 16))


def test_sampling_is_linear_in_mm():
    centres = cell_centres((3, 4, 5), 4, 2.0)
    assert centres[0, 1, 2].tolist() == [3.0, 11.0, 19.0], "cell i of 4 voxels has its middle at voxel 4 i + 1.5"
    ramp = centres.permute(3, 0, 1, 2)
    places = torch.tensor([[5.0, 9.5, 30.0], [3.0, 3.0, 3.0]])
    assert torch.allclose(sample(ramp, places, 4, 2.0), places, atol=1e-4)


def test_flat_cells_are_no_places():
    volume = torch.zeros(16, 16, 24)
    volume[8:, :, 12:] = 0.5
    cells = contrast_cells(volume, 4, 0.1)
    assert cells.shape == (4, 4, 6)
    assert cells[1:3, 0, 3].all() and not cells[0].any() and not cells[:, :, 0].any() and not cells[3, :, 5].any()


def test_training_learns_ways_between_places():
    volumes = [body((d, 2 * d, 9 - d))[0] for d in range(8)]
    config = PositionConfig(spacing=SPACING, width=6, reach=20.0)
    told = []
    training = PositionTraining(steps=60, crop=24, batch=1, places=48, turn=5.0, lr=4e-3)
    network, figures = train_positions(volumes, config, training, report=lambda *args: told.append(args))
    short, before = train_positions(volumes, config, PositionTraining(steps=1, crop=24, batch=1, places=48))
    assert figures["way_mm"] < 0.8 * before["way_mm"], "running mean over 60 steps against the first step"
    assert told == [], "reports come every 100 steps"
    again, _ = train_positions(volumes, config, PositionTraining(steps=1, crop=24, batch=1, places=48))
    assert all(torch.equal(a, b) for a, b in zip(short.parameters(), again.parameters(), strict=True))
    assert not any(p.requires_grad for p in network.parameters()) and not network.training
    with pytest.raises(ConfigError, match="no volume to train on"):
        train_positions([], config, training)


# --- the file


def real_locator():
    network = PositionNet(PositionConfig(spacing=SPACING, width=4)).eval()
    return Locator.of(network, supports([(0, 0, 0), (3, 3, 3), (5, 1, 2)]), {1: "organ"})


def test_file_gives_the_same_boxes_and_says_what_it_holds(tmp_path):
    locator = real_locator()
    path = save_locator(tmp_path / "a.locate", locator, meta={"cases": ["a", "b"]})
    loaded, meta = load_locator(path)
    image, _ = body((4, 4, 4))
    one, other = locator.locate(image)[1], loaded.locate(image)[1]
    assert one.low.tobytes() == other.low.tobytes() and one.landmarks.tobytes() == other.landmarks.tobytes()
    assert meta == {"cases": ["a", "b"]}
    header = read_locator_header(path)
    assert header["classes"] == {"1": "organ"} and len(header["templates"]["1"]) == 3
    assert loaded.errors == locator.errors and loaded.start_of(1) == locator.start_of(1)
    votes, same = locator.by("votes").locate(image)[1], loaded.by("votes").locate(image)[1]
    assert votes.low.tobytes() == same.low.tobytes() and votes.low.tobytes() != one.low.tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["a.locate"]


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = save_locator(tmp_path / "a.locate", real_locator())
    state = safetensors.torch.load_file(path)
    header = read_locator_header(path)

    def rewrite(name, tensors, **changed):
        text = json.dumps({**header, **changed})
        other = tmp_path / name
        other.write_bytes(safetensors.torch.save(tensors, metadata={"samgraft-locator": text}))
        return other

    spoiled = {**state, "codes.1": state["codes.1"] + 1}
    with pytest.raises(CheckpointError, match="do not have the hash"):
        load_locator(rewrite("b.locate", spoiled))
    from samgraft.adapters.bundle import tensors_hash

    lacking = {k: v for k, v in state.items() if k != "sides.1"}
    with pytest.raises(CheckpointError, match=r"missing \['sides.1'\]"):
        load_locator(rewrite("c.locate", lacking, tensors_sha256=tensors_hash(lacking)))
    with pytest.raises(CheckpointError, match="format 9"):
        load_locator(rewrite("d.locate", state, format=9))
    with pytest.raises(CheckpointError, match=r"reads format 2; make it again with samgraft locate fit"):
        load_locator(rewrite("d.locate", state, format=1))
    other = tmp_path / "e.locate"
    other.write_bytes(safetensors.torch.save(state))
    with pytest.raises(CheckpointError, match="no samgraft locator; expected metadata"):
        load_locator(other)
    with pytest.raises(CheckpointError, match="there is no locator file"):
        load_locator(tmp_path / "nowhere.locate")
    with pytest.raises(OutputError):
        save_locator(tmp_path / "missing" / "a.locate", real_locator())
    broken = real_locator()
    broken.codes[1] = broken.codes[1] * float("nan")
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        save_locator(tmp_path / "f.locate", broken)
