"""Looks of a tile, and how one is preferred, by hand."""

import pytest
import torch

from samgraft.recipes.adaptation.criteria import worth
from samgraft.recipes.adaptation.looks import LOOKS


def image(*values):
    """Two pictures of one row: these values, and the same at half their brightness; gray."""
    row = torch.tensor(values).view(1, 1, 1, -1).expand(1, 3, 1, -1)
    return torch.cat([row, row / 2])


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("plain", [0.2, 0.6]),
        ("negative", [0.8, 0.4]),
        ("brighter", [0.2**0.6, 0.6**0.6]),
        ("darker", [0.2**1.7, 0.6**1.7]),
    ],
)
def test_values_of_a_look(name, wanted):
    assert LOOKS[name](image(0.2, 0.6))[0, 1, 0].tolist() == pytest.approx(wanted)


@pytest.mark.parametrize(("name", "ends"), [("stretched", [0.0, 1.0]), ("negative stretched", [1.0, 0.0])])
def test_each_picture_is_stretched_on_its_own(name, ends):
    found = LOOKS[name](image(*[0.2 + 0.004 * i for i in range(101)]))  # quantiles at 0.204 and 0.596
    for picture in found:
        row = picture[0, 0]
        assert row[[1, 99]].tolist() == pytest.approx(ends, abs=1e-4)
        assert row[50].item() == pytest.approx(0.5, abs=1e-4)


def test_gray_mixes_channels_and_slabs_keep_their_shape():
    slab = torch.zeros(1, 3, 2, 1, 2)
    slab[0, 0, 0, 0, 1] = 0.9
    for name, look in LOOKS.items():
        found = look(slab)
        assert found.shape == slab.shape and 0.0 <= float(found.min()) <= float(found.max()) <= 1.0, name
    gray = LOOKS["gray stretched"](slab)
    assert torch.equal(gray[:, 0], gray[:, 1]) and float(gray[0, 2, 0, 0, 1]) == 1.0


def test_shares_cost_a_tenth_for_every_doubling_beyond_the_first():
    figures = {"agreement": 0.8, "box_iou": 0.6}
    assert worth(figures, 1.0) == worth(figures, 2.0) == pytest.approx(0.86)
    assert worth(figures, 4.0) == pytest.approx(0.76) and worth(figures, 8.0) == pytest.approx(0.66)
    assert worth(figures | {"box_off": 0.1}, 4.0) == pytest.approx(0.8 - 0.1 - 0.1)
