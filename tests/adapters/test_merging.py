"""Merging by value: averages, exact sums of low-rank changes, the best approximation of a rank, and refusals."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import (
    BottleneckConfig,
    DecoderLoraConfig,
    GraftConfig,
    LayerNormConfig,
    LoraConfig,
    NeckAffineConfig,
    SsfConfig,
)
from samgraft.adapters.merging import Factors, combine, merge_states
from samgraft.errors import CheckpointError, ConfigError
from tests.adapters.toy import toy_backbone

FIRST = Factors(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0], [0.0], [2.0]]))
SECOND = Factors(torch.tensor([[2.0, -1.0]]), torch.tensor([[0.0], [1.0], [1.0]]))
SUM = torch.tensor([[0.5, 1.5], [0.5, -0.25], [1.5, 2.75]])
"""Half of the first change and a quarter of the second, by hand."""


def made(config: GraftConfig, seed: int) -> Grafted:
    """A graft on the toy backbone, its tensors moved."""
    torch.manual_seed(seed)
    grafted = attach(toy_backbone(), {"own": config})
    with torch.no_grad():
        for parameter in grafted.trainable_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return grafted


def weights_after(configs: Any, state: Any) -> dict[str, Tensor]:
    """The backbone's weights with a graft folded in."""
    grafted = attach(toy_backbone(), configs)
    grafted.load_graft_state(state)
    grafted.merge()
    return {name: value.detach().clone().double() for name, value in grafted.backbone.named_parameters()}


def merged_weights(config: GraftConfig, weights: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """What a merge of two adapters gives, and the sum of their changes worked out on the full matrices."""
    both = [made(config, seed) for seed in (0, 1)]
    states = [{k: v.detach().clone() for k, v in one.graft_state().items()} for one in both]
    frozen = {name: value.double() for name, value in toy_backbone().named_parameters()}
    each = [weights_after(one.configs, state) for one, state in zip(both, states, strict=True)]
    expected = {
        name: value + sum(w * (one[name] - value) for w, one in zip(weights, each, strict=True))
        for name, value in frozen.items()
    }
    still = attach(toy_backbone(), {"own": config}).graft_state()
    merged = merge_states([one.configs for one in both], states, weights, identity=still, **options)
    return merged, expected


def test_stacked_ranks_are_the_sum() -> None:
    found, lost, _ = combine([FIRST, SECOND], [0.5, 0.25])
    assert torch.equal(found.up @ found.down, SUM) and found.down.shape == (2, 2) and lost == 0


def test_the_cut_is_the_best_of_its_rank() -> None:
    u, s, v = np.linalg.svd(SUM.numpy().astype(np.float64))
    one, lost, whole = combine([FIRST, SECOND], [0.5, 0.25], rank=1)
    np.testing.assert_allclose((one.up @ one.down).numpy(), s[0] * np.outer(u[:, 0], v[0]), atol=1e-6)
    assert (lost, whole) == (pytest.approx(s[1] ** 2), pytest.approx(float((SUM**2).sum())))
    three, lost, _ = combine([FIRST, SECOND], [0.5, 0.25], rank=3)
    torch.testing.assert_close(three.up @ three.down, SUM)
    assert lost == 0 and not three.down[2].any() and three.up.shape == (3, 3)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(rank=2, alpha=5.0, targets=("q", "v", "lin2")),
        LoraConfig(rank=3, rslora=True, alpha=2.0, targets=("qkv",), blocks="last:2"),
        DecoderLoraConfig(rank=2, targets=("q_proj", "lin1", "upscale"), alpha=3.0),
        LayerNormConfig(),
        SsfConfig(),
        NeckAffineConfig(),
    ],
    ids=lambda config: config.method,
)
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.9, -0.3)], ids=str)
def test_exact_is_the_sum_of_the_changes(config: GraftConfig, weights: tuple[float, float]) -> None:
    merged, expected = merged_weights(config, weights, how="exact")
    found = weights_after(merged.configs, merged.state)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=1e-4, msg=name)
    if isinstance(config, LoraConfig | DecoderLoraConfig):
        own = merged.configs["own"]
        assert (own.rank, own.alpha, own.rslora) == (2 * config.rank, None, False)


def test_svd_to_the_sum_of_ranks_is_exact_and_below_it_says_what_is_lost() -> None:
    config = LoraConfig(rank=2, targets=("v",), blocks=(1,))
    whole, expected = merged_weights(config, (0.5, 0.5), how="svd", rank=4)
    found = weights_after(whole.configs, whole.state)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=1e-4, msg=name)
    assert whole.discarded["own"] < 1e-6
    cut, _ = merged_weights(config, (0.5, 0.5), how="svd")
    assert cut.configs["own"] == config  # the rank of the adapters
    frozen = toy_backbone().state_dict()
    name = next(name for name in expected if not torch.equal(expected[name], frozen[name].double()))
    change = expected[name] - frozen[name].double()
    s = torch.linalg.svdvals(change)
    assert cut.discarded["own"] == pytest.approx(float((s[2:].square().sum() / s.square().sum()).sqrt()), rel=1e-3)
    kept = weights_after(cut.configs, cut.state)[name] - frozen[name].double()
    u, values, v = torch.linalg.svd(change)
    torch.testing.assert_close(kept, u[:, :2] * values[:2] @ v[:2], atol=2e-5, rtol=1e-3)


def test_the_average_of_factors_is_not_the_average_of_changes() -> None:
    """(B1 + B2)(A1 + A2) / 4: the cross terms are there, and nobody trained them."""
    config = LoraConfig(rank=2, targets=("v",), blocks=(1,))
    merged, expected = merged_weights(config, (0.5, 0.5))
    both = [made(config, seed).graft_state() for seed in (0, 1)]
    (a, b) = (next(key for key in merged.state if f"lora_{letter}" in key) for letter in "AB")
    torch.testing.assert_close(merged.state[a], (both[0][a] + both[1][a]) / 2)
    update = (both[0][b] + both[1][b]) @ (both[0][a] + both[1][a]) / 4
    torch.testing.assert_close(merged.state[b] @ merged.state[a], update)
    exact = (both[0][b] @ both[0][a] + both[1][b] @ both[1][a]) / 2
    assert not torch.allclose(update, exact, atol=1e-3)
    found = weights_after(merged.configs, merged.state)
    assert max(float((found[name] - value).abs().max()) for name, value in expected.items()) > 1e-3


def test_heads_are_averaged_by_shares_and_scales_of_changes_are_not() -> None:
    states = [{"decoder.bias": torch.tensor([1.0, 4.0])}, {"decoder.bias": torch.tensor([3.0, 0.0])}]
    merged = merge_states([{}, {}], states, [0.9, 0.3], how="exact")
    assert merged.state["decoder.bias"].tolist() == [1.5, 3.0]  # 3/4 and 1/4
    assert merge_states([{}, {}], states, [0.25, 0.75]).state["decoder.bias"].tolist() == [2.5, 1.0]


def test_ranks_may_differ_where_changes_are_added() -> None:
    few, many = made(LoraConfig(rank=1), 0), made(LoraConfig(rank=3), 1)
    configs, states = [few.configs, many.configs], [few.graft_state(), many.graft_state()]
    assert merge_states(configs, states, [0.5, 0.5], how="exact").configs["own"].rank == 4
    assert merge_states(configs, states, [0.5, 0.5], how="svd").configs["own"].rank == 3
    with pytest.raises(ConfigError, match="graft 'own' has rank 3 in adapter 2, 1 in the first"):
        merge_states(configs, states, [0.5, 0.5])


@pytest.mark.parametrize(
    ("configs", "weights", "options", "message"),
    [
        ([LoraConfig(), LoraConfig(targets=("q",))], [0.5, 0.5], {}, r"has targets \['q'\] in adapter 2"),
        ([LoraConfig(), SsfConfig()], [0.5, 0.5], {}, "has method 'ssf' in adapter 2, 'lora' in the first"),
        ([LoraConfig(), LoraConfig()], [0.5, 0.6], {}, "sum to 1.1; an average needs 1"),
        ([LoraConfig(), LoraConfig()], [0.5, -0.5], {"how": "exact"}, "sum to 0; heads are averaged"),
        ([LoraConfig(), LoraConfig()], [1.0], {}, "2 adapters and 1 weights"),
        ([LoraConfig(), LoraConfig()], [0.5, 0.5], {"rank": 2}, "rank is 2 and how 'average'"),
        ([LoraConfig(), LoraConfig()], [0.5, 0.5], {"how": "sum"}, "how is 'sum'; expected one of average, exact, svd"),
        ([BottleneckConfig(), BottleneckConfig()], [0.5, 0.5], {"how": "exact"}, r"graft 'own' \(bottleneck\) changes"),
        ([SsfConfig(), SsfConfig()], [0.5, 0.5], {"how": "exact"}, "give identity="),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_named(configs: Any, weights: Any, options: Any, message: str) -> None:
    both = [made(config, seed) for seed, config in enumerate(configs)]
    with pytest.raises(ConfigError, match=message):
        merge_states([one.configs for one in both], [one.graft_state() for one in both], weights, **options)


def test_other_tensors_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"adapter 2 differs from the first in tensors \['decoder.a'\]"):
        merge_states([{}, {}], [{"decoder.a": torch.zeros(2)}, {"decoder.a": torch.zeros(3)}], [0.5, 0.5])
