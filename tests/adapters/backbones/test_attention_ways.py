"""All ways of attention give the same function, forward and backward, and the choice follows the device."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones import attention, attention_ways
from samgraft.adapters.backbones.attention import WAYS, attend, relative_table
from samgraft.adapters.backbones.attention_ways import choose, use_attention
from samgraft.errors import NoMatchError
from tests.adapters.toy import toy_backbone, toy_image

GRID = (4, 6)


def inputs(dtype: torch.dtype, extra: int = 0) -> list[Tensor]:
    """Query, key, value with ``extra`` keys that have no position, and both tables."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, GRID[0] * GRID[1] + more, 8) for more in (0, extra, extra)] + [(2 * s - 1, 8) for s in GRID]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def formula(query: Tensor, key: Tensor, value: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Written out token by token pair."""
    y, x = torch.arange(GRID[0]).repeat_interleave(GRID[1]), torch.arange(GRID[1]).repeat(GRID[0])
    vertical = down[y[:, None] - y[None, :] + GRID[0] - 1]  # (S, S, d)
    horizontal = across[x[:, None] - x[None, :] + GRID[1] - 1]
    logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    bias = torch.einsum("bnid,ijd->bnij", query, vertical + horizontal)
    logits = logits + functional.pad(bias, (0, key.shape[2] - bias.shape[3]))
    return logits.softmax(-1) @ value


def attended(way: str, tensors: list[Tensor]) -> Tensor:
    tables = (relative_table(tensors[3], GRID[0]), relative_table(tensors[4], GRID[1]))
    with use_attention(way):
        return attend(tensors[0], tensors[1], tensors[2], tables)


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_the_formula(way: str, extra: int) -> None:
    tensors = inputs(torch.float64, extra)
    torch.testing.assert_close(attended(way, tensors), formula(*tensors), rtol=0, atol=1e-12)


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("way", ["parts", "augmented"])
def test_gradients_are_those_of_the_formula(way: str, extra: int) -> None:
    tensors = [t.requires_grad_(True) for t in inputs(torch.float64, extra)]
    weight = torch.linspace(-1, 1, tensors[0].numel(), dtype=torch.float64).view(tensors[0].shape)
    wanted = torch.autograd.grad((formula(*tensors) * weight).sum(), tensors)
    found = torch.autograd.grad((attended(way, tensors) * weight).sum(), tensors)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
@pytest.mark.parametrize("way", ["parts", "augmented"])
def test_short_numbers_stay_near(way: str, dtype: torch.dtype, bound: float) -> None:
    tensors = inputs(dtype)
    exact = formula(*[t.double() for t in tensors])
    found = attended(way, tensors)
    assert found.dtype == dtype
    assert (found.double() - exact).abs().max() < bound * exact.abs().max()


def test_the_cpu_takes_its_measured_way() -> None:
    query, rows = torch.randn(1, 2, 24, 8), torch.randn(1, 2, 24, 4)
    assert choose(query, rows, torch.randn(1, 2, 24, 6), WAYS) == "parts"


def test_other_devices_are_timed_once_per_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []

    def fake(query: Tensor, *_: object) -> str:
        timed.append(tuple(query.shape))
        return "flex"

    monkeypatch.setattr(attention_ways, "_time", fake)
    monkeypatch.setattr(attention_ways, "_quickest", {})
    for length in (24, 24, 35):
        shapes = [(1, 2, length, width) for width in (8, 4, 6)]
        tensors: list[Any] = [  # what is read of a tensor; no such device is here
            SimpleNamespace(device=torch.device("xpu"), dtype=torch.float32, shape=shape, is_cuda=False)
            for shape in shapes
        ]
        assert choose(*tensors, attention.WAYS) == "flex"
    assert timed == [(1, 2, 24, 8), (1, 2, 35, 8)]


def test_a_way_that_fails_on_the_device_is_left_out() -> None:
    def broken(*_: Tensor) -> Tensor:
        raise RuntimeError("no kernel")

    tensors = inputs(torch.float32)
    rows, cols = torch.randn(2, 3, 24, 4), torch.randn(2, 3, 24, 6)
    assert attention_ways._time(tensors[0], rows, cols, {"flex": broken, "augmented": WAYS["augmented"]}) == "augmented"
    assert attention_ways._time(tensors[0], rows, cols, {"flex": broken}) == "augmented"


def test_an_unknown_way_is_named() -> None:
    with pytest.raises(NoMatchError, match="'flash' is not known; expected 'parts'"), use_attention("flash"):
        pass


def test_compiled_blocks_give_the_same() -> None:
    backbone, image = toy_backbone(), toy_image()
    plain = backbone.encode(image).neck
    torch._dynamo.utils.counters.clear()
    neck = backbone.compile_blocks(backend="aot_eager").encode(image).neck
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 50
    torch.testing.assert_close(neck, plain, rtol=0, atol=1e-4 * float(plain.abs().max()))
