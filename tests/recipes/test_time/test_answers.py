"""Entropy, weights and the guard, by hand."""

import math

import pytest
import torch

from samgraft.adapters.decoders.distances import DistancesConfig
from samgraft.errors import ConfigError
from samgraft.recipes.representations import HeadObjects, represent
from samgraft.recipes.test_time.answers import (
    Answers,
    balanced_weights,
    class_logits,
    entropy_map,
    figures,
    judge,
    require_maps,
)


def test_entropy_is_one_where_nothing_is_known_and_zero_where_all_is() -> None:
    probabilities = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 1e-12], [1.0, 1e-12, 1e-12]])
    found = entropy_map(probabilities.log().T[None, :, None])  # (1, 3, 1, 3): one pixel per row above
    assert found.flatten().tolist() == pytest.approx([1.0, math.log(2) / math.log(3), 0.0], abs=1e-6)


def test_kinds_of_pixels_weigh_the_same() -> None:
    called = torch.tensor([[0, 0, 0, 2], [0, 0, 0, 1]])
    weights = balanced_weights(called)
    assert weights[called == 0].tolist() == pytest.approx([1 / 12] * 6)
    assert weights[called > 0].tolist() == pytest.approx([0.25, 0.25])
    assert balanced_weights(torch.zeros(2, 2)).tolist() == [[0.25, 0.25], [0.25, 0.25]]


def test_figures() -> None:
    sure, half = [20.0, -20.0], [0.1, 0.0]
    logits = torch.tensor([sure, sure, sure, half]).T[None, :, None]  # (1, 2, 1, 4)
    called = torch.tensor([[[0, 0, 0, 1]]])
    uncertain = -sum(p * math.log(p) for p in (1 / (1 + math.exp(-0.1)), 1 / (1 + math.exp(0.1)))) / math.log(2)
    plain, balanced = (figures(logits, called, balanced=flag) for flag in (False, True))
    assert plain.entropy == plain.objective == pytest.approx(uncertain / 4, abs=1e-6)
    assert balanced.entropy == plain.entropy and balanced.objective == pytest.approx(uncertain / 2, abs=1e-6)
    assert plain.shares == (1.0, 0.0) and plain.foreground == 0


def answers(entropy: float, *shares: float) -> Answers:
    return Answers(entropy=entropy, objective=entropy, shares=shares)


@pytest.mark.parametrize(
    ("before", "after", "kept", "reason"),
    [
        (answers(0.3, 0.9, 0.1), answers(0.2, 0.88, 0.12), True, "fell from 0.3000 to 0.2000"),
        (answers(0.3, 0.9, 0.1), answers(0.3, 0.9, 0.1), False, "did not fall"),
        (answers(0.3, 0.9, 0.1), answers(0.2, 0.96, 0.04), False, "class 1 collapsed from 10.00% to 4.00%"),
        (answers(0.3, 0.9, 0.1), answers(0.2, 0.79, 0.21), False, "foreground grew from 10.00% to 21.00%"),
        (answers(0.3, 0.5, 0.5), answers(0.2, 0.2, 0.8), False, "background collapsed"),
        (answers(0.3, 0.9, 0.05, 0.05), answers(0.2, 0.9, 0.09, 0.01), False, "class 2 collapsed"),
        (answers(0.3, 0.9, 0.1, 0.00001), answers(0.2, 0.9, 0.1, 0.0), True, "fell"),
        (answers(0.3, 1.0, 0.0), answers(0.2, 1.0, 0.0), False, "finds nothing here"),
        (answers(0.3, 0.9, 0.1), answers(math.nan, 1.0, 0.0), False, "did not fall"),
    ],
)
def test_guard(before: Answers, after: Answers, kept: bool, reason: str) -> None:
    verdict = judge(before, after, change=2.0)
    assert verdict.kept == kept and reason in verdict.reason


def test_heads_without_maps_are_refused_and_distances_judged_by_their_foreground() -> None:
    with pytest.raises(ConfigError, match="HeadObjects gives objects"):
        require_maps(HeadObjects())
    maps = require_maps(represent("instance", DistancesConfig(), classes=1))
    logits = torch.tensor([[2.0, 7.0, -3.0]])[:, :, None, None]
    assert class_logits(maps, logits).flatten().tolist() == [0.0, 2.0]
