"""Optimisers: groups, bytes of state, that they learn, and what cannot run here is said before anything is read."""

import pytest
import torch

from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import LayerNormConfig, LoraConfig
from samgraft.errors import ConfigError
from samgraft.recipes.config import OptimizerName
from samgraft.recipes.optimiser import make_optimizer, require_optimizer, state_bytes
from tests.adapters.toy import toy_backbone, toy_image


def stepped(name: OptimizerName, steps: int = 1) -> tuple[torch.optim.Optimizer, list[float]]:
    torch.manual_seed(0)
    grafted = attach(toy_backbone(), LoraConfig(rank=2), decoder=ClassTokensConfig(num_classes=1)).train()
    optimizer = make_optimizer(name, grafted.trainable_parameters(), lr=5e-3, weight_decay=0.01)
    image = toy_image()
    target = (image.mean(1) > 0.5).long()[:, ::2, ::2]
    losses = []
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(grafted.predict(image).logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return optimizer, losses


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_it_learns_and_decays_matrices_only(name: OptimizerName) -> None:
    optimizer, losses = stepped(name, 8)
    assert losses[-1] < 0.8 * losses[0]
    groups = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert set(groups) == {0.01, 0.0}
    assert all(p.ndim > 1 for p in groups[0.01]) and all(p.ndim <= 1 for p in groups[0.0])


def test_bytes_of_state() -> None:
    adamw, adafactor = stepped("adamw")[0], stepped("adafactor")[0]
    values = sum(p.numel() for group in adamw.param_groups for p in group["params"])
    tensors = sum(len(group["params"]) for group in adamw.param_groups)
    assert state_bytes(adamw) == 8 * values + 4 * tensors
    assert state_bytes(adafactor) < 0.4 * state_bytes(adamw)
    wide = torch.nn.Parameter(torch.randn(256, 512))
    for name, expected in (("adamw", 8 * 256 * 512), ("adafactor", 4 * (256 + 512))):
        optimizer = make_optimizer(name, [wide], lr=1e-3, weight_decay=0.0)  # type: ignore[arg-type]
        wide.grad = torch.ones_like(wide)
        optimizer.step()
        assert state_bytes(optimizer) == pytest.approx(expected, abs=16)


def test_adafactor_moves_what_starts_at_zero_like_anything_else() -> None:
    """Relative steps would move LoRA's B by a thousandth of the rate."""
    zero = torch.nn.Parameter(torch.zeros(8, 8))
    optimizer = make_optimizer("adafactor", [zero], lr=1e-2, weight_decay=0.0)
    zero.grad = torch.ones(8, 8)
    optimizer.step()
    torch.testing.assert_close(zero.detach(), torch.full((8, 8), -1e-2), rtol=1e-3, atol=0)


def test_parts_have_their_own_rate_and_only_matrices_decay() -> None:
    grafted = attach(
        toy_backbone(), [LoraConfig(rank=2), LayerNormConfig(lr_factor=0.25)], decoder=ClassTokensConfig(num_classes=1)
    )
    factors = grafted.rate_factors()
    assert set(factors) == set(grafted.grafts["layer_norm"].parameters())
    optimizer = make_optimizer(
        "adamw", grafted.trainable_parameters(), lr=1e-2, weight_decay=0.1, factors=factors
    )  # fmt: skip
    found = {p: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert set(found) == set(grafted.trainable_parameters())
    for parameter, (lr, decay) in found.items():
        assert lr == (0.0025 if parameter in factors else 0.01)
        assert decay == (0.1 if parameter.ndim > 1 else 0.0)
    with pytest.raises(ConfigError, match="layer_norm: lr_factor is 0; expected a number above 0"):
        LayerNormConfig(lr_factor=0)


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit"])
def test_8_bit_needs_its_library_and_a_gpu(name: OptimizerName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"task.optimizer is '{name}', which needs bitsandbytes; pip install"):
        require_optimizer(name, "cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    with pytest.raises(ConfigError, match="runs on CUDA devices; this run is on 'cpu'"):
        make_optimizer(name, [torch.nn.Parameter(torch.zeros(2, 2))], lr=1e-3, weight_decay=0.0)
    require_optimizer(name, "cuda")
