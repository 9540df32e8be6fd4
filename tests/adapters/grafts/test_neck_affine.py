"""A scale and a shift per channel of the neck: how many, what they do, where they refuse."""

from typing import Literal

import pytest
import torch

from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import NeckAffineConfig
from samgraft.errors import ConfigError
from tests.adapters.sam_shapes import SIZES, meta_backbone
from tests.adapters.toy import toy_backbone, toy_image


@pytest.mark.parametrize("size", sorted(SIZES))
def test_two_numbers_per_channel_of_the_neck(size: Literal["b", "l", "h"]) -> None:
    with torch.device("meta"):
        grafted = attach(meta_backbone(size), NeckAffineConfig())
    assert sum(parameter.numel() for parameter in grafted.trainable_parameters()) == 2 * 256


@torch.no_grad()
def test_channels_are_scaled_and_shifted_each_by_its_own() -> None:
    backbone, image = toy_backbone(), toy_image(64, 96)
    before = backbone.encode(image).neck
    grafted = attach(backbone, NeckAffineConfig())
    scale, shift = torch.linspace(-1, 1, 32), torch.linspace(3, -2, 32)
    state = {"grafts.neck_affine.affine.scale": scale, "grafts.neck_affine.affine.shift": shift}
    grafted.load_graft_state(state)
    expected = torch.stack([(1 + scale[c]) * before[:, c] + shift[c] for c in range(32)], dim=1)
    torch.testing.assert_close(grafted.encode(image).neck, expected)
    assert torch.allclose(grafted.encode(image).neck[:, 0], torch.tensor(3.0))  # a scale of -1 leaves the shift
    assert grafted.frozen_blocks() == 3 and not grafted.frozen_encoder()


def test_it_has_no_blocks_to_choose() -> None:
    with pytest.raises(ConfigError, match="blocks is 'last:1', but it lies behind all of them"):
        attach(toy_backbone(), NeckAffineConfig(blocks="last:1"))
