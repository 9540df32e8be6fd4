"""The arithmetic of an adaptation, by hand."""

import math

import pytest
import torch

from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import LoraConfig
from samgraft.errors import ConfigError, ShapeError
from samgraft.recipes.adaptation.answers import Answer
from samgraft.recipes.adaptation.loop import Clock, pack, rate, unpack
from samgraft.recipes.adaptation.networks import Networks, moving_parameters
from samgraft.recipes.adaptation.pseudo import class_thresholds, pseudo_labels
from samgraft.recipes.adaptation.regions import snap_borders, snap_classes, snap_objects
from samgraft.recipes.adaptation.terms import ClassShares, Regions, contrast, entropy, pooled
from samgraft.recipes.data.shares import class_shares
from samgraft.recipes.losses import IGNORE
from tests.adapters.toy import toy_backbone, toy_image

E = math.e


def networks(moving="all"):
    grafted = attach(toy_backbone(), LoraConfig(rank=2), decoder=ClassTokensConfig(num_classes=2))
    return Networks(grafted, moving_parameters(grafted, moving))


def fill(voices, value):
    voices.set_student({name: torch.full_like(one, value) for name, one in voices.source.items()})


def test_teacher_is_the_moving_average_of_the_student_and_never_its_twin():
    voices = networks()
    name = next(iter(voices.parameters))
    voices.teacher[name].fill_(1.0)
    fill(voices, 2.0)
    voices.follow(0.75)
    assert torch.equal(voices.teacher[name], torch.full_like(voices.teacher[name], 1.25))
    fill(voices, 4.0)
    voices.follow(0.75)
    assert torch.equal(voices.teacher[name], torch.full_like(voices.teacher[name], 0.75 * 1.25 + 0.25 * 4.0))
    assert torch.equal(voices.parameters[name].detach(), torch.full_like(voices.teacher[name], 4.0))


def test_each_voice_speaks_with_its_own_tensors_and_without_gradient():
    voices, image = networks(), toy_image(batch=1)
    source = voices.grafted.predict(image).logits.detach()
    fill(voices, 0.05)
    student = voices.grafted.predict(image).logits
    assert student.requires_grad and not torch.equal(student, source)
    with voices.speaking(voices.source) as grafted:
        said = grafted.predict(image).logits
        assert torch.equal(said, source) and not said.requires_grad
    with voices.speaking(voices.teacher) as grafted:
        assert torch.equal(grafted.predict(image).logits, source)
    assert torch.equal(voices.grafted.predict(image).logits, student)
    with voices.bare() as backbone:
        assert not backbone.occupied
    assert torch.equal(voices.grafted.predict(image).logits, student)


@pytest.mark.parametrize(("moving", "prefix"), [("grafts", "grafts.lora"), ("head", "decoder")])
def test_only_the_chosen_parts_move(moving, prefix):
    voices = networks(moving)
    assert {name.split(".")[0] for name in voices.parameters} == {prefix.split(".")[0]}
    asking = {id(p) for p in voices.grafted.parameters() if p.requires_grad}
    assert asking == {id(p) for p in voices.parameters.values()}


def test_nothing_to_move_is_refused():
    grafted = attach(toy_backbone(), [], decoder=ClassTokensConfig(num_classes=1))
    with pytest.raises(ConfigError, match="moving is 'grafts'"):
        moving_parameters(grafted, "grafts")


def answer(labels, confidence, **options):
    return Answer(labels=torch.tensor(labels), confidence=torch.tensor(confidence), **options)


def test_each_class_gives_its_own_most_certain_share():
    said = answer([[[0, 0, 0, 0], [1, 1, 0, 1]]], [[[0.99, 0.95, 0.9, 0.75], [0.8, 0.625, 0.5, 0.7]]])
    known = torch.ones(1, 2, 4, dtype=torch.bool)
    known[0, 1, 3] = False  # a pixel of class 1 that lies outside of the picture
    found = class_thresholds([(said, known)], 3, portion=0.5, least=0.5)
    assert found.tolist() == pytest.approx([0.9, 0.8, 0.9], abs=1.01e-3)  # class 2 was not seen: the strictest
    taken = pseudo_labels(said, found, known)
    assert taken.tolist() == [[[0, 0, 0, IGNORE], [1, IGNORE, IGNORE, IGNORE]]]
    assert class_thresholds([(said, known)], 3, portion=0.5, least=0.85)[1] == pytest.approx(0.85)
    everything = class_thresholds([(said, known)], 3, portion=1.0, least=0.0)
    assert everything.tolist() == pytest.approx([0.5, 0.625, 0.625], abs=1.01e-3)


def test_objects_are_taken_whole_by_their_score():
    said = answer([[[1, 1, 2], [0, 0, 2]]], [[[0.75, 0.75, 0.5], [1.0, 1.0, 0.5]]], separate=True)
    known = torch.ones(1, 2, 3, dtype=torch.bool)
    found = class_thresholds([(said, known)], 2, portion=0.5, least=0.0)
    assert found.tolist() == pytest.approx([1.0, 0.75], abs=1e-3)
    assert pseudo_labels(said, found, known).tolist() == [[[1, 1, IGNORE], [0, 0, IGNORE]]]
    with pytest.raises(ShapeError, match=r"known is \(1, 2, 2\)"):
        pseudo_labels(said, found, known[..., :2])


def test_a_region_takes_the_class_that_most_of_it_has():
    regions = torch.tensor([[[1, 1, 1, 0], [2, 2, 1, 0]]])
    said = torch.tensor([[[2, 2, 2, 1], [0, 1, 0, 1]]])  # region 1: 3 of 4 say 2; region 2: a draw
    pseudo = torch.tensor([[[2, IGNORE, IGNORE, IGNORE], [IGNORE, 1, 0, 1]]])
    kept = snap_classes(pseudo, said, regions, agreement=0.7)
    assert kept.tolist() == [[[2, 2, 2, IGNORE], [IGNORE, 1, 2, 1]]]
    assert torch.equal(snap_classes(pseudo, said, regions, agreement=0.8), pseudo)


def test_a_region_of_foreground_becomes_an_object_with_a_rim():
    regions = torch.zeros(1, 5, 6, dtype=torch.int64)
    regions[0, 1:4, 1:4] = 3
    regions[0, 0, 5] = 4
    said = torch.zeros(1, 5, 6, dtype=torch.int64)
    said[0, 1:4, 1:4] = 2
    said[0, 2, 2] = 1
    pseudo = torch.full((1, 5, 6), IGNORE)
    found = snap_borders(pseudo, said, regions, agreement=0.9, border=1)
    wanted = torch.full((5, 6), IGNORE)
    wanted[1:4, 1:4] = 2
    wanted[2, 2] = 1
    wanted[0, 5] = 0
    assert torch.equal(found[0], wanted)


def test_an_object_takes_the_outline_of_the_region_that_it_nearly_is():
    pseudo = torch.tensor([[[5, 5, 5, 0, 7], [5, 0, 0, IGNORE, 7]]])
    regions = torch.tensor([[[1, 1, 0, 0, 2], [1, 1, 0, 0, 0]]])  # IoU with 5: 3 of 5; with 7: 1 of 2
    found = snap_objects(pseudo, regions, agreement=0.6)
    assert found.tolist() == [[[5, 5, IGNORE, 0, 7], [5, 5, 0, IGNORE, 7]]]
    assert torch.equal(snap_objects(pseudo, regions, agreement=0.61), pseudo)


def test_labels_keep_company_through_a_warp():
    pseudo = torch.tensor([[[0, 3], [IGNORE, 12]]])
    anchor = torch.tensor([[[IGNORE, 2], [0, 5]]])
    known = torch.tensor([[[True, True], [False, True]]])
    code, base = pack(pseudo, anchor, known)
    assert all(torch.equal(a, b) for a, b in zip(unpack(code, base), (pseudo, anchor, known), strict=True))
    code[0, 1, 1] = IGNORE  # came from outside
    first, second, seen = unpack(code, base)
    assert (int(first[0, 1, 1]), int(second[0, 1, 1]), bool(seen[0, 1, 1])) == (IGNORE, IGNORE, False)


def region(values, *directions):
    return Regions(values=torch.tensor(values), directions=torch.tensor(directions))


def test_contrast_by_hand():
    one = region([0, 1], [1.0, 0.0], [0.0, 1.0])
    # cosines: 1 on the diagonal, 0 beside it: -log(2 e^2 / (2 e^2 + 2)) at temperature one half
    assert contrast([one], [one], temperature=0.5).item() == pytest.approx(math.log(1 + E**-2))
    swapped = region([0, 1], [0.0, 1.0], [1.0, 0.0])
    assert contrast([swapped], [one], temperature=0.5).item() == pytest.approx(math.log(1 + E**2))
    # the second image has one region in common, so it has no pair to be told from
    lone = region([0, 4], [1.0, 0.0], [0.0, 1.0])
    assert contrast([one, one], [one, lone], temperature=0.5).item() == pytest.approx(math.log(1 + E**-2))
    assert contrast([one], [lone], temperature=0.5).item() == 0.0


def test_regions_are_pooled_by_the_area_that_they_have_in_a_cell():
    neck = torch.tensor([[[[3.0, 0.0]], [[4.0, 2.0]]]])  # cells (3, 4) and (0, 2): directions (.6, .8) and (0, 1)
    labels = torch.tensor([[[7, 7, 7, IGNORE], [7, 7, 9, 9]]])  # 7: all of the first cell, a quarter of the second
    (found,) = pooled(neck, labels)
    assert found.values.tolist() == [7, 9]
    mean = torch.tensor([0.6, 0.8 + 0.25])
    assert found.directions[0].tolist() == pytest.approx((mean / mean.norm()).tolist())
    assert found.directions[1].tolist() == pytest.approx([0.0, 1.0])


def test_entropy_is_a_share_of_the_largest():
    logits = torch.zeros(1, 3, 1, 2)
    logits[0, 1, 0, 1] = 50.0
    known = torch.ones(1, 1, 2, dtype=torch.bool)
    assert entropy(logits, known).item() == pytest.approx(0.5)  # one pixel knows nothing, one is certain
    known[0, 0, 0] = False
    assert entropy(logits, known).item() == pytest.approx(0.0, abs=1e-6)


def test_shares_of_classes_weigh_images_and_remember():
    shares = ClassShares(torch.tensor([0.75, 0.25]), memory=0.5)
    logits = torch.zeros(2, 2, 1, 1)
    logits[0, 0], logits[1, 1] = 40.0, 40.0  # one image of background, one of foreground
    known = torch.ones(2, 1, 1, dtype=torch.bool)
    exact = shares(logits, known, torch.tensor([3.0, 1.0]))
    assert exact.item() == pytest.approx(0.0, abs=1e-6)
    even = shares(logits, known, torch.tensor([1.0, 1.0]))  # half and half, beside three quarters before
    assert shares.running.tolist() == pytest.approx([0.625, 0.375])
    assert even.item() == pytest.approx(0.75 * math.log(0.75 / 0.625) + 0.25 * math.log(0.25 / 0.375))


def test_shares_of_training_labels():
    maps = [torch.tensor([[0, 0, 1], [-1, 2, 2]]), torch.tensor([[0, 0, 0]])]
    assert class_shares(maps, 3) == pytest.approx([5 / 8, 1 / 8, 2 / 8])
    assert class_shares(maps, 2) == pytest.approx([5 / 8, 3 / 8])
    assert class_shares([torch.tensor([[-1, -1, 1]])], 2) is None  # scribbles say nothing about shares


def test_progress_is_by_steps_or_by_time_whichever_is_further():
    spent = [0.0]
    clock = Clock(steps=10, seconds=20.0, spent=lambda: spent[0], reserve=2.0)
    assert clock.progress(5) == 0.5
    spent[0] = 13.0
    assert clock.progress(5) == pytest.approx(0.75)
    spent[0] = 18.0
    assert clock.progress(5) == 1.0
    assert rate(0.025) == pytest.approx(0.501) and rate(0.05) == pytest.approx(1.0) and rate(1.0) == pytest.approx(0.01)
