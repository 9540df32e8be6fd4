"""What all alignments share: identity, missing pixels, one value per pixel in any window; and the rule of auto."""

import json
from dataclasses import replace

import numpy as np
import pytest

from samgraft.domains.shift.alignment import ALIGNMENTS, NEAR, as_gray, choose_alignment, facts_of, fit_alignment
from samgraft.errors import InputError, NoMatchError
from tests.domains.shift._images import HE, OTHER, amounts_map, grainy, stained, stats_of

POINTWISE = ("histogram", "macenko", "moments", "reinhard")
SLIDE = stained(HE, amounts_map())
SLIDES = {"a": stats_of(SLIDE), "b": stats_of(stained(OTHER, 0.7 * amounts_map(seed=5)))}


def test_all_are_registered_and_a_typo_is_answered() -> None:
    assert ALIGNMENTS.names() == ("fourier", "histogram", "macenko", "moments", "reinhard")
    with pytest.raises(NoMatchError, match="did you mean 'reinhard'"):
        fit_alignment("reinhart", SLIDES["a"], SLIDES["b"])


@pytest.mark.parametrize("name", ALIGNMENTS.names())
def test_equal_statistics_change_no_bit(name: str) -> None:
    fitted = fit_alignment(name, SLIDES["a"], SLIDES["a"])
    image = np.random.default_rng(0).random((3, 17, 23), dtype=np.float32)
    assert np.array_equal(fitted.apply(image), image)


@pytest.mark.parametrize("name", ALIGNMENTS.names())
def test_results_stay_in_range_and_missing_pixels_missing(name: str) -> None:
    fitted = fit_alignment(name, SLIDES["a"], SLIDES["b"])
    image = np.random.default_rng(1).random((3, 19, 21), dtype=np.float32)
    image[:, 3:6, 4:8] = np.nan
    found = fitted.apply(image)
    assert found.dtype == np.float32 and found.shape == image.shape
    assert np.array_equal(np.isnan(found), np.isnan(image))
    known = found[:, ~np.isnan(image[0])]
    assert known.min() >= 0 and known.max() <= 1 and np.abs(known - image[:, ~np.isnan(image[0])]).max() > 0.02


@pytest.mark.parametrize("name", POINTWISE)
def test_a_pixel_has_one_value_in_every_window(name: str) -> None:
    fitted = fit_alignment(name, SLIDES["a"], SLIDES["b"])
    assert fitted.pointwise
    rng = np.random.default_rng(2)
    image = rng.random((3, 61, 83), dtype=np.float32)
    whole = fitted.apply(image)
    for _ in range(60):
        top, left = rng.integers(0, 60), rng.integers(0, 82)
        rows, cols = slice(top, rng.integers(top + 1, 62)), slice(left, rng.integers(left + 1, 84))
        assert np.array_equal(fitted.apply(image[:, rows, cols]), whole[:, rows, cols])
    gray = np.broadcast_to(image[:1], image.shape)  # as a look gives one channel: without a copy
    assert np.array_equal(fitted.apply(gray)[:, 7:8], fitted.apply(np.ascontiguousarray(gray[:, 7:8])))


@pytest.mark.parametrize("name", ALIGNMENTS.names())
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_constant_images_and_single_pixels(name: str, value: float) -> None:
    flat = np.full((3, 6, 5), value, np.float32)
    target = replace(stats_of(flat), stain=SLIDES["a"].stain)
    fitted = fit_alignment(name, target, SLIDES["b"])
    for image in (flat, flat[:, :1, :1]):
        found = fitted.apply(image)
        assert np.isfinite(found).all() and np.ptp(found, axis=(1, 2)).max() < 1e-6


def test_gray_statistics_leave_gray_images_gray() -> None:
    image = np.repeat(np.random.default_rng(3).random((1, 9, 8), dtype=np.float32), 3, axis=0)
    for name in ("fourier", "histogram", "moments", "reinhard"):
        fitted = fit_alignment(name, as_gray(SLIDES["a"]), as_gray(SLIDES["b"]))
        found = fitted.apply(image)
        assert np.abs(found - found[:1]).max() < 5e-5 and np.abs(found - image).max() > 0.01
    with pytest.raises(InputError, match="the image does not look like it"):
        fit_alignment("macenko", as_gray(SLIDES["a"]), SLIDES["b"])


def test_facts_are_json_and_tell_alignments_apart() -> None:
    one, same, other = (
        facts_of(fit_alignment("moments", SLIDES[a], SLIDES[b])) for a, b in (("a", "b"), ("a", "b"), ("b", "a"))
    )
    assert json.loads(json.dumps(one)) == one == same
    assert one["name"] == "moments" and one["sha256"] != other["sha256"] and "gains" in one["what"]


def test_auto_names_the_rule_that_it_followed() -> None:
    colour, brighter = stats_of(grainy()), stats_of(np.sqrt(grainy()))
    gray = stats_of(np.repeat(grainy()[:1], 3, axis=0))
    dark = stats_of(np.repeat(grainy()[:1], 3, axis=0) ** 2)
    assert choose_alignment(colour, stats_of(grainy(seed=9)))[0] == "none"
    assert choose_alignment(brighter, colour)[0] == "reinhard"
    assert choose_alignment(gray, dark)[0] == "histogram" == choose_alignment(gray, brighter)[0]
    assert choose_alignment(SLIDES["a"], SLIDES["b"]) == ("macenko", "both are stained tissue")
    name, why = choose_alignment(dark, SLIDES["a"])
    assert name == "none" and "only the training images are stained tissue" in why


def test_near_is_five_gray_levels() -> None:
    image = grainy(low=0.2, high=0.8)
    for levels, expected in ((4, "none"), (7, "reinhard")):
        assert choose_alignment(stats_of(image + levels / 255), stats_of(image))[0] == expected
    assert NEAR == 0.02
