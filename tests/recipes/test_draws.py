"""Draws of windows: stated rates, every window once, the same after a kill and in several processes."""

from collections import Counter

import numpy as np
import pytest

from samgraft.errors import ConfigError
from samgraft.recipes.data.draws import ANYTHING, NOTHING, WindowSampler, group_rates
from samgraft.recipes.ranks import Share

NAMES = ("roof", "pool")


def windows(count: int = 40) -> np.ndarray:
    start = 8 * np.arange(count)
    return np.stack([np.zeros_like(start), np.full_like(start, 16), start, start + 16], axis=1)


def presence(count: int = 40) -> np.ndarray:
    """Windows 0 to 9 show a roof, 9 and 10 a pool."""
    found = np.zeros((count, 2), dtype=bool)
    found[:10, 0] = found[9:11, 1] = True
    return found


def sampler(rates: dict[int, float], length: int = 200, **options: object) -> WindowSampler:
    return WindowSampler(windows(), presence(), rates, **{"length": length, "seed": 5, "shape": (16, 336)} | options)  # type: ignore[arg-type]


def test_rates_are_kept_exactly() -> None:
    rates = group_rates(presence(), NAMES, foreground=0.7, rates={"pool": 0.25})
    assert rates == pytest.approx({NOTHING: 0.3, ANYTHING: 0.45, 1: 0.25})
    drawn = list(sampler(rates))
    assert Counter(d.group for d in drawn) == {NOTHING: 60, ANYTHING: 90, 1: 50}
    assert {d.number for d in drawn if d.group == 1} == {9, 10}
    assert {d.number for d in drawn if d.group == ANYTHING} == set(range(11))
    assert {d.number for d in drawn if d.group == NOTHING} == set(range(11, 40))
    counts = Counter(d.number for d in drawn if d.group == NOTHING)
    assert set(counts.values()) == {2, 3}  # 60 draws of 29 windows: twice each, two of them three times
    assert list(counts.values()).count(3) == 2


@pytest.mark.parametrize(
    ("rates", "foreground", "message"),
    [
        ({"boat": 0.1}, 0.5, "'boat'; the classes are roof, pool"),
        ({"pool": 0.6}, 0.5, "adds up to 0.6, data.foreground is 0.5; raise it to 0.6"),
    ],
)
def test_impossible_rates_are_refused(rates: dict[str, float], foreground: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        group_rates(presence(), NAMES, foreground=foreground, rates=rates)


def test_rare_class_without_a_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="'pool' in 0.1 of all draws; no window that trains shows one"):
        group_rates(presence()[:9], NAMES, foreground=0.5, rates={"pool": 0.1})


def test_without_empty_windows_all_draws_show_something() -> None:
    assert group_rates(presence()[:9], NAMES, foreground=0.5, rates={}) == {ANYTHING: 1.0}
    assert group_rates(presence()[20:], NAMES, foreground=0.5, rates={}) == {NOTHING: 1.0}


def test_an_epoch_is_its_number_alone() -> None:
    one, other = sampler({ANYTHING: 1.0}, jitter=(0, 5)), sampler({ANYTHING: 1.0}, jitter=(0, 5))
    list(one)  # an earlier epoch that the other, resumed one has not seen
    for each in (one, other):
        each.set_epoch(3)
    assert list(one) == list(other)
    other.set_epoch(4)
    assert list(one) != list(other)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_every_batch(world: int) -> None:
    rates = {NOTHING: 0.5, ANYTHING: 0.5}
    whole = list(sampler(rates, batch=8, jitter=(0, 3)))
    parts = [list(sampler(rates, batch=8, jitter=(0, 3), part=Share(rank=r, world=world))) for r in range(world)]
    own = 8 // world
    for start in range(0, 200, 8):
        place = start // world
        assert whole[start : start + 8] == [d for part in parts for d in part[place : place + own]]
    with pytest.raises(ConfigError, match="cannot be dealt to 3 processes"):
        sampler(rates, batch=8, part=Share(rank=0, world=3))


def test_moved_windows_stay_on_the_raster_and_where_they_fit() -> None:
    asked = []

    def left(moved: np.ndarray, group: int) -> bool:
        asked.append(group)
        return bool(moved[0, 2] < 100)

    drawn = list(sampler({ANYTHING: 0.5, NOTHING: 0.5}, jitter=(4, 4), fits=left))
    for one in drawn:
        top, bottom, low, high = one.window
        assert (top, bottom) == (0, 16) and high - low == 16 and 0 <= low and high <= 336
        assert abs(low - 8 * one.number) <= 4
        if 8 * one.number > 104:
            assert low == 8 * one.number
    assert any(one.window[2] != 8 * one.number for one in drawn) and set(asked) == {ANYTHING, NOTHING}
