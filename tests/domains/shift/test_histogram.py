"""Histogram matching on histograms whose maps are known."""

import numpy as np
import pytest

from samgraft.domains.shift.histogram import fit_histogram, match_levels
from tests.domains.shift._images import grainy, stats_of


def histogram(**shares: float) -> np.ndarray:
    """Shares by level, such as _10=0.5."""
    found = np.zeros(256)
    for level, share in shares.items():
        found[int(level.strip("_"))] = share
    return found


def test_levels_go_where_their_ranks_are() -> None:
    table = match_levels(histogram(_10=0.25, _20=0.5, _40=0.25), histogram(_100=0.25, _150=0.5, _200=0.25))
    assert table[[10, 20, 40]].tolist() == [100, 150, 200]
    assert table[[15, 30]].tolist() == [125, 175]  # levels that the target does not hold: halfway
    assert table[[5, 41, 50]].tolist() == [95, 201, 210] and table[255] == 255  # beyond its ends: slope 1
    assert (np.diff(table) >= 0).all()


def test_ranks_between_levels_are_interpolated() -> None:
    # ranks of the target: 0.25 and 0.75; of the source: 1/6, 1/2, 5/6
    table = match_levels(histogram(_50=0.5, _60=0.5), histogram(_0=1 / 3, _90=1 / 3, _120=1 / 3))
    assert table[50] == pytest.approx(90 * 0.25)  # a quarter of the way from 1/6 to 1/2
    assert table[60] == pytest.approx(90 + 30 * 0.75)


def test_zeros_on_both_sides_are_nothing() -> None:
    air = match_levels(histogram(_0=0.9, _100=0.1), histogram(_0=0.2, _50=0.8))
    assert air[0] == 0 and air[100] == 50  # however much air there is
    dark = match_levels(histogram(_0=0.6, _100=0.4), histogram(_40=0.6, _80=0.4))
    assert dark[0] == 40 and dark[100] == 80  # the source has no zeros: those of the target are values


def test_one_level_and_empty() -> None:
    assert match_levels(histogram(_7=1.0), histogram(_50=0.5, _70=0.5))[7] == 60
    assert match_levels(histogram(_0=1.0), histogram(_0=1.0)).tolist() == list(range(256))


@pytest.mark.parametrize("gamma", [0.5, 1.8])
def test_a_gamma_is_undone(gamma: float) -> None:
    image = grainy((200, 210), low=0.1)
    shifted = (np.round(image**gamma * 255) / 255).astype(np.float32)
    fitted = fit_histogram(stats_of(shifted), stats_of(image))
    away, back = np.abs(shifted - image), np.abs(fitted.apply(shifted) - image)
    assert away.mean() > 0.08
    assert back.mean() < 1.5 / 255 and np.quantile(back, 0.999) < 6 / 255


def test_missing_pixels_do_not_count() -> None:
    image, other = grainy(), grainy(seed=4, low=0.3)
    holes = np.concatenate([image, np.full((3, 40, 30), np.nan, np.float32)], axis=2)
    assert np.array_equal(
        fit_histogram(stats_of(holes), stats_of(other)).change, fit_histogram(stats_of(image), stats_of(other)).change
    )


def test_values_between_levels_are_interpolated() -> None:
    fitted = fit_histogram(stats_of(np.full((3, 4, 4), 100 / 255)), stats_of(np.full((3, 4, 4), 130 / 255)))
    values = np.array([100.0, 100.25, 101.0, 240.0], dtype=np.float32) / 255
    found = fitted.apply(np.tile(values, (3, 1, 1)))
    np.testing.assert_allclose(found[0, 0] * 255, [130, 130.25, 131, 255], atol=1e-3)
    assert fitted.describe() == "gray levels 64 to 94, 128 to 158, 192 to 222 (of 255, middle channel)"
