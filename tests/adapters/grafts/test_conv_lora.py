"""Conv-LoRA: counts, its formula written out, windows undone; the published gate, which the contract cannot hold."""

import copy
import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones.sites import SiteContext
from samgraft.adapters.backbones.windowing import partition, unpartition, window_layout
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import ConvLoraConfig, LoraConfig
from samgraft.adapters.grafts.conv_lora import ConvLowRank, NoisyTopOne, load, variation
from samgraft.errors import ConfigError
from tests import contract
from tests.adapters.sam_shapes import SIZES, meta_backbone
from tests.adapters.toy import toy_backbone, toy_image

PUBLISHED = ConvLoraConfig(gate="published", scales=(1, 2, 3))


def count(size: Literal["b", "l", "h"], config: ConvLoraConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in attach(meta_backbone(size), config).trainable_parameters())


@pytest.mark.parametrize(("size", "published"), [("b", 9_936), ("l", 13_008), ("h", 16_080)])
def test_counts(size: Literal["b", "l", "h"], published: int) -> None:
    """adapters.md 0.3; the soft gate has no noise, slices have an A of their own."""
    d, blocks = SIZES[size][:2]
    r, e = 3, 8
    assert published == 4 * r * d + e * (9 * r * r + r) + 2 * r * e
    assert count(size, ConvLoraConfig(gate="published")) == published * blocks
    if size != "b":
        return
    assert count(size, ConvLoraConfig()) == (4 * r * d + 3 * (9 * r * r + r) + r * 3) * blocks
    slices = ConvLoraConfig(targets=("q", "v"), rank=2, scales=(1,), blocks="last:4")
    assert count(size, slices) == 2 * (2 * 2 * d + 9 * 4 + 2) * 4


def make_part(config: ConvLoraConfig, *, seed: int = 0) -> ConvLowRank:
    """Width 5 to 4 in float64, all tensors random."""
    torch.manual_seed(seed)
    part = ConvLowRank(5, 4, config).double().eval()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return part


def make_context(grid: tuple[int, int], window: int = 0) -> SiteContext:
    windows = window_layout(grid, window) if window else None
    return SiteContext(grid_size=grid, image=torch.zeros(0), windows=windows)


def convolved(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU of a zero-padded 3 x 3 convolution of (r, h, w), number by number."""
    out = torch.zeros_like(z)
    for channel in range(len(z)):
        for y in range(z.shape[1]):
            for x in range(z.shape[2]):
                total = bias[channel].clone()
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        if 0 <= y + dy < z.shape[1] and 0 <= x + dx < z.shape[2]:
                            total += (weight[channel, :, dy + 1, dx + 1] * z[:, y + dy, x + dx]).sum()
                out[channel, y, x] = total * 0.5 * (1 + torch.erf(total / math.sqrt(2)))
    return out


@torch.no_grad()
def test_the_formula() -> None:
    part, x = make_part(ConvLoraConfig(rank=2, alpha=6.0, scales=(1, 2))), torch.randn(2, 3, 4, 5).double()
    part.mixture.gate.mul_(5)
    state = part.state_dict()
    expected = torch.zeros(2, 3, 4, 4).double()
    for image in range(2):
        z = torch.einsum("hwd,rd->rhw", x[image], state["a.weight"])
        grades = [float((z.mean(dim=(1, 2)) * state["mixture.gate"][:, e]).sum()) for e in range(2)]
        shares = [math.exp(grade) / sum(math.exp(other) for other in grades) for grade in grades]
        assert abs(shares[0] - 0.5) > 0.05, "the gate must matter"
        large = functional.interpolate(z[None], scale_factor=2, mode="bicubic")[0]
        weights = [[state[f"mixture.experts.{e}.{name}"] for name in ("weight", "bias")] for e in range(2)]
        small = functional.interpolate(convolved(large, *weights[1])[None], size=(3, 4), mode="bicubic")[0]
        z = z + shares[0] * convolved(z, *weights[0]) + shares[1] * small
        expected[image] = 6.0 / 2 * torch.einsum("rhw,or->hwo", z, state["b.weight"])
    torch.testing.assert_close(part(x, make_context((3, 4))), expected)


@torch.no_grad()
def test_windows_are_undone_and_padding_gets_nothing() -> None:
    grid = (7, 5)
    part, x = make_part(ConvLoraConfig(rank=2)), torch.randn(2, *grid, 5).double()
    context = make_context(grid, 3)
    assert context.windows is not None and context.windows.padded == (9, 6)
    cut = part(partition(x, context.windows), context)
    assert cut.shape == (12, 3, 3, 4)
    torch.testing.assert_close(unpartition(cut, context.windows, grid), part(x, make_context(grid)))
    padded = torch.ones(2, *grid, 1).double()
    assert (cut[partition(padded, context.windows)[..., 0] == 0] == 0).all()


@torch.no_grad()
def test_the_published_gate_stays_in_its_window() -> None:
    grid = (6, 6)
    part, x = make_part(ConvLoraConfig(rank=2, gate="published")), torch.randn(1, *grid, 5).double()
    context = make_context(grid, 3)
    assert context.windows is not None
    before = part(partition(x, context.windows), context)
    x[0, 2, 2] += 1.0  # the corner of the first window, beside all others
    after = part(partition(x, context.windows), context)
    assert not torch.allclose(before[0], after[0]) and torch.equal(before[1:], after[1:])
    alone = part(partition(x, context.windows)[3:], context)
    torch.testing.assert_close(alone, after[3:])


@torch.no_grad()
def test_the_largest_gate_is_chosen_and_has_the_factor_one() -> None:
    mixture = make_part(ConvLoraConfig(rank=2, gate="published", scales=(1, 2, 3))).mixture
    assert isinstance(mixture, NoisyTopOne)
    z = torch.randn(6, 2, 3, 3).double()
    grades = z.mean(dim=(2, 3)) @ mixture.gate
    chosen = [int(row.argmax()) for row in grades]
    assert len(set(chosen)) > 1
    expected = torch.cat([mixture.experts[e](z[i : i + 1]) for i, e in enumerate(chosen)])
    torch.testing.assert_close(mixture(z), expected)
    assert mixture.imbalance is None


def test_balance_by_hand() -> None:
    assert float(variation(torch.tensor([1.0, 3.0]))) == pytest.approx(2 / 4)
    clean, noisy, spread = torch.ones(1, 3), torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[1.0, 2.0, 1.0]])
    found = load(clean, noisy, spread)  # the best others: 1, 2, 2
    expected = [0.5, 0.5 * (1 + math.erf(-0.5 / math.sqrt(2))), 0.5 * (1 + math.erf(-1 / math.sqrt(2)))]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_the_noise_has_the_published_size() -> None:
    torch.manual_seed(0)
    mixture = NoisyTopOne(1, (1, 2))
    with torch.no_grad():
        mixture.gate.copy_(torch.tensor([[0.5, 0.0]]))
    chosen = mixture.train().choose(torch.ones(20_000, 1))
    spread = math.log(2) + 0.01  # of the difference of two: times the square root of 2
    share = 0.5 * (1 + math.erf(0.5 / (spread * math.sqrt(2)) / math.sqrt(2)))
    assert float((chosen == 0).float().mean()) == pytest.approx(share, abs=0.01)


def attach_published(config: ConvLoraConfig = PUBLISHED) -> tuple[Grafted, list[NoisyTopOne]]:
    """In training mode, moved a little."""
    grafted = attach(toy_backbone(), config).train()
    contract.perturb(grafted)
    return grafted, [module for module in grafted.grafts.modules() if isinstance(module, NoisyTopOne)]


def test_the_task_teaches_chosen_experts_and_the_balance_teaches_the_gate() -> None:
    torch.manual_seed(0)
    grafted, gates = attach_published(ConvLoraConfig(gate="published", blocks="last:1"))
    contract.everything(grafted, toy_image()).square().mean().backward(retain_graph=True)  # global: two maps
    taught = [any(p.grad is not None for p in expert.parameters()) for expert in gates[0].experts]
    assert 1 <= sum(taught) <= 2
    for expert, learns in zip(gates[0].experts, taught, strict=True):
        assert all((p.grad is not None and bool((p.grad != 0).any())) == learns for p in expert.parameters())
    assert gates[0].gate.grad is None and gates[0].noise.grad is None
    penalty = grafted.penalty()
    assert penalty is not None and gates[0].imbalance is not None
    assert penalty.item() == pytest.approx(0.01 * gates[0].imbalance.item())
    penalty.backward()
    assert gates[0].gate.grad is not None and (gates[0].gate.grad != 0).any()
    assert gates[0].noise.grad is not None and (gates[0].noise.grad != 0).any()


def test_only_training_is_noisy_and_balanced() -> None:
    torch.manual_seed(0)
    grafted, gates = attach_published()
    image = toy_image()
    assert not torch.equal(contract.logits(grafted, image), contract.logits(grafted, image))
    penalty = grafted.penalty()
    assert penalty is not None and len(gates) == 3
    total = sum(gate.imbalance.item() for gate in gates if gate.imbalance is not None)
    assert penalty.item() == pytest.approx(0.01 * total)
    twin = copy.deepcopy(grafted)
    assert twin.penalty() is None
    grafted.eval()
    assert torch.equal(contract.logits(grafted, image), contract.logits(grafted, image))
    assert grafted.penalty() is None
    assert attach(toy_backbone(), ConvLoraConfig()).train().penalty() is None


def test_balance_passes_checkpointed_blocks() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        grafted, gates = attach_published()
        grafted.backbone.checkpointing = checkpointing
        task = contract.everything(grafted, toy_image()).square().mean()
        penalty = grafted.penalty()
        assert penalty is not None
        (task + penalty).backward()
        gradients.append([cast_grad(gate) for gate in gates])
    for plain, again in zip(*gradients, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(again, plain)


def cast_grad(gate: NoisyTopOne) -> Tensor:
    assert gate.gate.grad is not None
    return gate.gate.grad


@pytest.mark.parametrize(
    "check",
    [
        contract.test_detach_restores,
        contract.test_prompts_of_two_images_do_not_mix,
        contract.test_config_survives_json,
    ],
)
def test_the_published_gate_and_the_contract(check: Any) -> None:
    check(PUBLISHED)


def test_the_published_gate_and_the_rest_of_the_contract(tmp_path: Path) -> None:
    contract.test_identity_at_step_zero(PUBLISHED, (96, 64))
    contract.test_save_load(PUBLISHED, tmp_path)
    for dtype in contract.MERGE_TOLERANCE:
        contract.test_merge_equals_unmerged_or_is_refused(PUBLISHED, dtype)
    grafted, _ = attach_published()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contract.everything(grafted, toy_image()).float().mean()
        penalty = grafted.penalty()
    assert penalty is not None and penalty.dtype == torch.float32
    (loss + penalty).backward()
    assert all(torch.isfinite(p.grad).all() for p in grafted.trainable_parameters() if p.grad is not None)
    assert grafted.grafts["conv_lora"].compile_refusal == "which expert runs depends on the data"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": ("qkv", "v")}, r"name either 'qkv' or slices"),
        ({"gate": "hard"}, "gate is 'hard'"),
        ({"scales": ()}, r"scales are \[\]; expected 1 or more different whole numbers"),
        ({"scales": (2, 2)}, "expected 1 or more different"),
        ({"scales": (0, 2)}, "whole numbers from 1"),
        ({"scales": (1.5,)}, "whole numbers from 1"),
        ({"gate": "published", "scales": (2,)}, "expected 2 or more"),
        ({"balance": -1.0}, "balance is -1.0"),
        ({"alpha": 0.0}, "alpha is 0.0"),
    ],
)
def test_bad_options(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConvLoraConfig(**arguments)  # type: ignore[arg-type]


def test_without_experts_it_is_lora() -> None:
    """Experts that give nothing leave alpha / r B A."""
    image, lora, conv = toy_image(), LoraConfig(targets=("qkv",), rank=3, alpha=32.0), ConvLoraConfig()
    plain, grafted = attach(toy_backbone(), lora), attach(toy_backbone(), conv)
    contract.perturb(plain)
    state, own = plain.graft_state(), grafted.graft_state()
    with torch.no_grad():
        for block in range(3):
            parts = f"grafts.conv_lora.blocks.{block}.qkv.targets.qkv"
            for name in "AB":
                own[f"{parts}.{name.lower()}.weight"].copy_(
                    state[f"grafts.lora.linears.parts.{block}_qkv.lora_{name}.graft.weight"]
                )
            for expert in range(3):
                own[f"{parts}.mixture.experts.{expert}.weight"].zero_()
    torch.testing.assert_close(contract.logits(grafted, image), contract.logits(plain, image), atol=1e-4, rtol=1e-4)
