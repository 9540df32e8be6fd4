"""Trials of alignments: one that undoes a gamma, one that spoils, one that cannot be fitted; and the advice."""

from dataclasses import replace

import numpy as np
import pytest

from samgraft.domains.shift.statistics import ImageStatistics
from samgraft.errors import InputError
from samgraft.recipes.shift.advice import advise
from samgraft.recipes.shift.measure import Measured, ShiftOptions, measure_shift
from samgraft.recipes.shift.report import shift_text
from samgraft.recipes.shift.trials import Aligner, Apply, Trial
from tests.adapters.toy import toy_backbone
from tests.recipes.shift._pictures import write_set


def undo(target: ImageStatistics, source: ImageStatistics) -> Apply:
    """Takes the gamma of 2 back."""
    assert target.mean[0] < source.mean[0]
    return np.sqrt


def spoil(target: ImageStatistics, source: ImageStatistics) -> Apply:
    return lambda image: 1 - image


def refuse(target: ImageStatistics, source: ImageStatistics) -> Apply:
    raise InputError("not stained")


ALIGNERS: dict[str, Aligner] = {"spoil": spoil, "histogram": undo, "macenko": refuse}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    root = tmp_path_factory.mktemp("trials")
    write_set(root / "plain", count=16)
    write_set(root / "dark", count=16, seed=2, gamma=2.0)
    options = ShiftOptions(views=16, permutations=49)
    return measure_shift(root / "plain", root / "dark", backbone=toy_backbone(), aligners=ALIGNERS, options=options)


def test_what_undoes_the_shift_comes_first(found: Measured) -> None:
    assert [t.name for t in found.trials] == ["histogram", "spoil"]
    best, worst = found.trials
    assert found.features is not None and best.auc is not None and worst.auc == 1.0
    assert best.standardised < 2 * found.features.standardised_chance < 0.5 * found.features.standardised
    assert best.auc < 0.85 and worst.standardised > found.features.standardised
    assert any("macenko was not tried: not stained" in note for note in found.notes)
    assert "after histogram" in shift_text(found)


@pytest.mark.parametrize(("left", "worth"), [(0.1, "try"), (0.95, "perhaps"), (1.3, "no")])
def test_a_trial_decides_about_an_alignment(found: Measured, left: float, worth: str) -> None:
    assert found.features is not None
    trial = Trial(name="histogram", standardised=left * found.features.standardised, auc=None)
    given = {one.lever: one for one in advise(replace(found, trials=(trial,)))}
    assert given["histogram"].worth == worth and "tried: " in given["histogram"].why


def test_trials_are_made_on_the_memory_of_an_adapter_too(found: Measured) -> None:
    from samgraft.recipes.shift.features import Encoder
    from samgraft.recipes.shift.trials import try_alignments

    memory = replace(found.source, features=None, files=0, groups=())
    trials, _ = try_alignments(
        found.target.examples, memory, found.target, Encoder(toy_backbone()), {"histogram": undo}
    )
    assert len(trials) == 1 and trials[0].auc is None and trials[0].standardised < 1
