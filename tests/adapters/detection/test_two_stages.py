"""Proposal network and box head: parameters, losses and what they keep, by hand."""

import math

import pytest
import torch

from samgraft.adapters.detection.anchors import AnchorGrid
from samgraft.adapters.detection.box_head import BoxHead, BoxOptions, DrawnRegions
from samgraft.adapters.detection.rpn import RegionProposals, RpnOptions, RpnOutput

ANCHORS = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [40, 2, 50, 12], [-5, -5, 5, 5]])


def proposer(**options: float) -> RegionProposals:
    return RegionProposals(4, AnchorGrid((4.0,), (2.0,), (1.0,)), RpnOptions(**options))  # type: ignore[arg-type]


def said(logits: list[float], counts: tuple[int, ...]) -> RpnOutput:
    """One image, anchors that do not move."""
    return RpnOutput(torch.tensor([logits]), torch.zeros(1, len(logits), 4), ANCHORS[: len(logits)], counts)


def test_parameters_are_those_of_the_published_layers() -> None:
    anchors = AnchorGrid((4.0, 8.0), (4.0, 8.0), (0.5, 1.0, 2.0))
    with torch.device("meta"):
        rpn = RegionProposals(256, anchors, RpnOptions())
        head = BoxHead(256, 1, 1024, BoxOptions())
    assert sum(p.numel() for p in rpn.parameters()) == 597_790
    assert sum(p.numel() for p in head.parameters()) == 12544 * 1024 + 1024 + 1024 * 1024 + 1024 + 1025 * (2 + 4)


def test_every_anchor_gets_the_numbers_of_its_own_cell() -> None:
    rpn = proposer()
    for layer in (rpn.body, rpn.objectness):
        torch.nn.init.zeros_(layer.weight)
    rpn.body.weight.data[:, :, 1, 1] = torch.eye(4)
    rpn.objectness.weight.data[0, 0] = 1.0
    level = torch.zeros(1, 4, 3, 5)
    level[0, 0, 1, 4] = 7.0  # row 1, column 4: centre (18, 6)
    output = rpn([level], (12, 20))
    best = output.logits[0].argmax()
    assert output.anchors[best].tolist() == [12, 0, 24, 12]  # the only level reaches the shorter side, 12
    assert output.logits[0, best].item() == 7.0


@pytest.mark.parametrize(
    ("options", "counts", "expected"),
    [
        ({}, (4,), [[0, 0, 10, 9], [40, 2, 48, 12], [0, 0, 5, 5]]),  # 0.9 of the best: suppressed; cut to 30 x 48
        ({}, (1, 3), [[0, 0, 10, 9], [0, 0, 10, 10], [40, 2, 48, 12], [0, 0, 5, 5]]),  # levels do not suppress others
        ({"post_nms": 1}, (4,), [[0, 0, 10, 9]]),
        ({"pre_nms": 1}, (1, 3), [[0, 0, 10, 9], [0, 0, 10, 10]]),
        ({"min_side": 6.0}, (4,), [[0, 0, 10, 9], [40, 2, 48, 12]]),
    ],
)
def test_proposals(options: dict[str, float], counts: tuple[int, ...], expected: list[list[float]]) -> None:
    found = proposer(**options).proposals(said([2.0, 3.0, 1.0, 0.0], counts), (30, 48))
    assert found[0].tolist() == expected


def test_losses_of_proposals_by_hand() -> None:
    truth = torch.tensor([[0.0, 0, 10, 10]])  # anchor 0 fits, anchor 1 overlaps by 0.9, the others by less than 0.3
    output = said([0.0, math.log(3), 0.0, 0.0], (4,))
    known = torch.ones(1, 30, 48, dtype=torch.bool)
    losses = proposer().losses(output, [truth], known)
    quarter = -math.log(0.75)  # of the second anchor, which answers as well; the others say 0.5
    assert losses["rpn_class"].item() == pytest.approx((3 * math.log(2) + quarter) / 4, abs=1e-6)
    shift, ratio = 0.5 / 9, math.log(10 / 9)  # of anchor 1: below and above beta = 1 / 9 the loss is square
    expected = (shift**2 + ratio**2) / 2 * 9
    assert losses["rpn_box"].item() == pytest.approx(expected / 4, abs=1e-6)
    known[:, :, 30:] = False  # anchor 2 is no negative any more
    losses = proposer().losses(output, [truth], known)
    assert losses["rpn_class"].item() == pytest.approx((2 * math.log(2) + quarter) / 3, abs=1e-6)


def test_images_without_objects_or_without_known_pixels_have_a_loss() -> None:
    output = said([0.0, 0.0, 0.0], (3,))
    output.logits.requires_grad_(True)
    output.deltas.requires_grad_(True)
    for known, expected in ((True, math.log(2)), (False, 0.0)):
        losses = proposer().losses(output, [torch.zeros(0, 4)], torch.full((1, 30, 48), known))
        assert losses["rpn_class"].item() == pytest.approx(expected)
        assert losses["rpn_box"].item() == 0
        sum(losses.values()).backward()  # type: ignore[union-attr]


def test_drawn_proposals_hold_the_true_boxes_and_rows_count_on() -> None:
    head = BoxHead(4, 2, 8, BoxOptions(samples=8, positive_share=0.5))
    truth = [torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 5]]), torch.zeros(0, 4), torch.tensor([[5.0, 5, 9, 9]])]
    proposals = [torch.tensor([[0.0, 0, 10, 6], [0, 0, 10, 4]]), torch.tensor([[1.0, 1, 4, 4]]), torch.zeros(0, 4)]
    drawn = head.draw(proposals, truth, torch.ones(3, 30, 40, dtype=torch.bool))
    assert drawn.image_index.tolist() == [0, 0, 0, 0, 1, 2]
    assert drawn.matched.tolist() == [0, 1, 0, -1, -1, 2]  # IoU 0.6 answers for object 0, 0.4 for nothing
    assert drawn.edges[2].tolist() == [0, 0, 10, 6] and drawn.edges[5].tolist() == [5, 5, 9, 9]


def test_losses_of_the_box_head_by_hand() -> None:
    head = BoxHead(4, 2, 8, BoxOptions())
    drawn = DrawnRegions(torch.tensor([[0.0, 0, 10, 10], [3, 3, 5, 5]]), torch.tensor([0, 0]), torch.tensor([1, -1]))
    truth, classes = torch.tensor([[9.0, 9, 11, 11], [0, 1, 10, 11]]), torch.tensor([0, 1])
    logits = torch.tensor([[0.0, math.log(2), 0.0], [0.0, 0.0, math.log(6)]])  # 0.5 for class 1; 0.75 for background
    deltas = torch.zeros(2, 2, 4)
    deltas[:, 0] = 99  # of the other class: must not count
    losses = head.losses(logits, deltas, drawn, truth, classes)
    assert losses["class"].item() == pytest.approx(-(math.log(0.5) + math.log(0.75)) / 2, abs=1e-6)
    assert losses["box"].item() == pytest.approx(0.5 / 2)  # one tenth of a side, over 0.1: delta 1, of two proposals


def test_detections_by_hand() -> None:
    head = BoxHead(4, 2, 8, BoxOptions(score=0.2, nms=0.5, most=2))
    proposals = [torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [30, 4, 44, 12]]), torch.tensor([[2.0, 2, 6, 9]])]
    chances = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.1, 0.4], [0.1, 0.7, 0.2], [0.1, 0.1, 0.8]])
    deltas = torch.zeros(4, 2, 4)
    deltas[2, 1, 0] = 5.0  # half a side (std 0.1) to the right: 37 to 51, cut at 40
    found = head.detections(chances.log(), deltas, proposals, (20, 40))
    assert found.edges.tolist() == [[37, 4, 40, 12], [0, 0, 10, 10]]  # of 4 above 0.2, two are left by `most`
    assert found.scores.tolist() == pytest.approx([0.7, 0.6])
    assert found.classes.tolist() == [1, 0]
    assert found.image_index.tolist() == [0, 0], "nothing in the second image"
