"""Several adapters of the same parts made one, by arithmetic on their tensors.

    average   theta = sum w_i theta_i                                 tensor by tensor; the weights sum to 1
    exact     change = sum w_i change_i                               of the frozen weights, not of the tensors
    svd       the same, each low-rank change cut to a rank r          the nearest of rank r (Eckart and Young)

The average of low-rank factors is not the average of what they do: (B1 + B2)(A1 + A2) / 4 has cross terms that no
adapter was trained for. "exact" stacks the factors instead, [w1 s1 B1, w2 s2 B2] [A1; A2], so the rank is the sum of
ranks; "svd" cuts that sum back. Grafts that are tensors of the backbone or factors on them (norms, biases, scales)
change it linearly: theta_0 + sum w_i (theta_i - theta_0) is exact, with theta_0 the graft that changes nothing. Where
weights do not sum to 1 this is task arithmetic. Grafts with something between their layers have no such form and are
refused by name.

A head (decoder, prompter) has no frozen counterpart: it is averaged with the weights divided by their sum.

Source:
    Averages of fine-tuned weights: model soups, arXiv:2203.05482. Sums of differences to the common start: task
    arithmetic, arXiv:2212.04089, section 2. Stacked ranks of LoRA: "cat" and "svd" of peft's ``add_weighted_adapter``.
Deviations:
    peft multiplies factors by the root of the weight, which excludes negative ones; here the weight goes to B. The
    decomposition is made of the small factors (two QR), never of the full matrix.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from samgraft.adapters.grafts import (
    BiasConfig,
    DecoderLoraConfig,
    FullConfig,
    FullDecoderConfig,
    GraftConfig,
    Ia3Config,
    LayerNormConfig,
    LoraConfig,
    NeckAffineConfig,
    SsfConfig,
)
from samgraft.adapters.grafts.lora import lora_options
from samgraft.errors import CheckpointError, ConfigError

How = Literal["average", "exact", "svd"]
HOWS: tuple[How, ...] = ("average", "exact", "svd")
LINEAR = (BiasConfig, FullConfig, FullDecoderConfig, Ia3Config, LayerNormConfig, NeckAffineConfig, SsfConfig)
"""Grafts whose change of the frozen weights is linear in their tensors."""
TRAINING_ONLY = ("dropout", "init", "lr_factor")
"""Options that say nothing about what a trained tensor means."""
OF_RANK = ("rank", "alpha", "rslora")
"""Options of low-rank grafts that may differ where changes are added, and not tensors."""
State = Mapping[str, Tensor]
_A, _B = ".lora_A.", ".lora_B."


@dataclass(frozen=True, kw_only=True, eq=False)
class Merged:
    """One adapter made of several."""

    configs: Mapping[str, GraftConfig]
    """Of the grafts; the rank may be another one."""
    state: State
    """Tensors by the names of ``Grafted.graft_state``."""
    discarded: Mapping[str, float]
    """"svd": graft -> share of the change (Frobenius norm) that did not fit into the rank, over all its layers."""


@dataclass(frozen=True, eq=False)
class Factors:
    """A low-rank change up @ down of a matrix (out, in)."""

    down: Tensor
    """(r, in)."""
    up: Tensor
    """(out, r)."""


def require_alike(configs: Sequence[Mapping[str, GraftConfig]], *, how: How) -> None:
    """Refuse grafts that do not go together.

    Args:
        configs: Per adapter, name -> configuration.
        how: Of the merge.

    Raises:
        ConfigError: other grafts, or the same with other options, by name.
    """
    first = configs[0]
    for number, other in enumerate(configs[1:], start=2):
        if list(other) != list(first):
            raise ConfigError(
                f"adapter {number} has grafts {list(other)}, the first one {list(first)}; only adapters with the same "
                "grafts can be merged; use a router for others"
            )
        for name, config in first.items():
            free: tuple[str, ...] = TRAINING_ONLY
            if how != "average" and isinstance(config, LoraConfig | DecoderLoraConfig):
                free = (*free, *OF_RANK)
            mine, theirs = config.to_dict(), other[name].to_dict()
            wrong = [key for key in {**mine, **theirs} if key not in free and mine.get(key) != theirs.get(key)]
            if wrong:
                key = wrong[0]
                raise ConfigError(
                    f"graft {name!r} has {key} {theirs.get(key)!r} in adapter {number}, {mine.get(key)!r} in the "
                    "first; only adapters with the same options can be merged"
                )


def merge_states(
    configs: Sequence[Mapping[str, GraftConfig]],
    states: Sequence[State],
    weights: Sequence[float],
    *,
    how: How = "average",
    rank: int | None = None,
    identity: State | None = None,
) -> Merged:
    """Merge the tensors of adapters.

    Args:
        configs: Per adapter, name -> configuration of its grafts.
        states: Per adapter, what ``Grafted.graft_state`` gave.
        weights: One for each.
        how: See the module.
        rank: "svd": r; None takes the largest of the adapters'.
        identity: Tensors with which the grafts change nothing; needed for grafts of :data:`LINEAR` unless "average".

    Raises:
        ConfigError: adapters that do not go together, weights that do not fit, or a graft that has no exact form.
        CheckpointError: other tensors, or other shapes.
    """
    _check_weights(weights, len(states), how, rank)
    require_alike(configs, how=how)
    if how == "average":
        return Merged(configs=configs[0], state=_averaged(states, weights), discarded={})
    found: dict[str, Tensor] = {}
    merged: dict[str, GraftConfig] = {}
    discarded: dict[str, float] = {}
    for name, config in configs[0].items():
        prefix = f"grafts.{name}."
        own = [{key: v for key, v in state.items() if key.startswith(prefix)} for state in states]
        if isinstance(config, LoraConfig | DecoderLoraConfig):
            scales = [_scale(one[name]) for one in configs]
            chosen = None if how == "exact" else rank or max(_rank(one[name]) for one in configs)
            counted = [i for i, weight in enumerate(weights) if weight]  # the others would only add to the rank
            state, kept, lost = _low_rank([own[i] for i in counted], [weights[i] * scales[i] for i in counted], chosen)
            found |= state
            merged[name] = replace(config, rank=kept, alpha=None, rslora=False)
            discarded |= {} if how == "exact" else {name: lost}
        elif isinstance(config, LINEAR):
            found |= _linear(name, own, weights, identity)
            merged[name] = config
        else:
            raise ConfigError(
                f"graft {name!r} ({config.method}) changes the network in a way that is not linear in its tensors, so "
                "no tensors give the sum of several; use how='average' (--how average), or a router"
            )
    heads = [{k: v for k, v in state.items() if not k.startswith("grafts.")} for state in states]
    found |= _averaged(heads, [weight / sum(weights) for weight in weights])
    return Merged(configs=merged, state=found, discarded=discarded)


def combine(
    factors: Sequence[Factors], weights: Sequence[float], rank: int | None = None
) -> tuple[Factors, float, float]:
    """Sum w_i up_i @ down_i as factors again, computed in float64.

    Args:
        factors: Changes of the same matrix.
        weights: One for each.
        rank: Of the result; None stacks, which is exact. Where it is more than there is, zeros fill up.

    Returns:
        Factors in the type of the first; squared Frobenius norm of what was cut off, and of the whole sum.
    """
    like = factors[0].up
    up = torch.cat([w * one.up.double() for one, w in zip(factors, weights, strict=True)], dim=1)
    down = torch.cat([one.down.double() for one in factors])
    if rank is None:
        return Factors(down.to(like.dtype), up.to(like.dtype)), 0.0, 0.0
    left, up_core = torch.linalg.qr(up)
    right, down_core = torch.linalg.qr(down.T)
    u, s, v = torch.linalg.svd(up_core @ down_core.T, full_matrices=False)
    root, count = s.sqrt(), min(rank, len(s))
    cut = Factors(down.new_zeros(rank, down.shape[1]), up.new_zeros(up.shape[0], rank))
    cut.up[:, :count] = (left @ u * root)[:, :count]
    cut.down[:count] = (root[:, None] * (v @ right.T))[:count]
    squares = s.square()
    lost, whole = float(squares[count:].sum()), float(squares.sum())
    return Factors(cut.down.to(like.dtype), cut.up.to(like.dtype)), lost, whole


def _low_rank(
    states: Sequence[State], weights: Sequence[float], rank: int | None
) -> tuple[dict[str, Tensor], int, float]:
    """Tensors of all layers of a graft, their rank, and the share that was cut off."""
    _require_names(states)
    found: dict[str, Tensor] = {}
    lost = whole = 0.0
    kept = 0
    for key in (key for key in states[0] if _A in key):
        other = key.replace(_A, _B)
        factors = [_factors(state[key], state[other]) for state in states]
        one, cut, total = combine(factors, weights, rank)
        lost, whole, kept = lost + cut, whole + total, len(one.down)
        found[key], found[other] = _tensors(one, states[0][key], states[0][other])
    return found, kept, (lost / whole) ** 0.5 if whole else 0.0


def _factors(a: Tensor, b: Tensor) -> Factors:
    """Of a linear layer, A (r, in) and B (out, r); or of a transposed convolution, (r, C, 1, 1) and (r, C', k, k)."""
    return Factors(a, b) if a.ndim == 2 else Factors(a[:, :, 0, 0], b.flatten(1).T)


def _tensors(factors: Factors, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of :func:`_factors`, in the form of ``a`` and ``b``."""
    if a.ndim == 2:
        return factors.down.contiguous(), factors.up.contiguous()
    return factors.down[:, :, None, None].contiguous(), factors.up.T.unflatten(1, b.shape[1:]).contiguous()


def _linear(name: str, states: Sequence[State], weights: Sequence[float], identity: State | None) -> dict[str, Tensor]:
    """theta_0 + sum w_i (theta_i - theta_0)."""
    if identity is None:
        raise ConfigError(f"graft {name!r} is merged by differences to what changes nothing; give identity=")
    _require_names(states)
    found = {}
    for key in states[0]:
        start = identity[key].double()
        moved = sum((w * (one[key].double() - start) for w, one in zip(weights, states, strict=True)), start)
        found[key] = moved.to(states[0][key].dtype)
    return found


def _averaged(states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """Sum w_i theta_i of every tensor, in float64; whole numbers have to be the same."""
    _require_names(states)
    found = {}
    for key, first in states[0].items():
        if not first.is_floating_point():
            if any(not torch.equal(first, state[key]) for state in states):
                raise CheckpointError(f"tensor {key!r} holds whole numbers that differ; they cannot be averaged")
            found[key] = first.clone()
            continue
        total = torch.zeros_like(first, dtype=torch.float64)
        for weight, state in zip(weights, states, strict=True):
            total += weight * state[key].double()
        found[key] = total.to(first.dtype)
    return found


def _require_names(states: Sequence[State]) -> None:
    """The same tensors everywhere, of the same shapes but for the ranks of low-rank ones."""
    first = states[0]
    for number, state in enumerate(states[1:], start=2):
        odd = sorted(set(state) ^ set(first))
        odd += [] if odd else [k for k, v in state.items() if v.shape != first[k].shape and _A not in k and _B not in k]
        if odd:
            raise CheckpointError(
                f"adapter {number} differs from the first in tensors {odd[:3]}; only adapters of the same parts can be "
                "merged"
            )


def _check_weights(weights: Sequence[float], count: int, how: How, rank: int | None) -> None:
    if how not in HOWS:
        raise ConfigError(f"how is {how!r}; expected one of {', '.join(HOWS)}")
    if count < 2 or len(weights) != count:
        raise ConfigError(f"{count} adapters and {len(weights)} weights; expected two or more, and one weight for each")
    total = sum(weights)
    if how == "average" and abs(total - 1) > 1e-6:
        raise ConfigError(
            f"weights {list(weights)} sum to {total:g}; an average needs 1; for task arithmetic take how='exact' or "
            "'svd' (--how)"
        )
    if not total > 0:
        raise ConfigError(f"weights {list(weights)} sum to {total:g}; heads are averaged by them, so give more than 0")
    if rank is not None and (how != "svd" or rank < 1):
        raise ConfigError(f"rank is {rank} and how {how!r}; a rank of 1 or more goes with how='svd'")


def _scale(config: GraftConfig) -> float:
    if not isinstance(config, LoraConfig | DecoderLoraConfig):
        raise ConfigError(f"{config.method} has no rank")
    options = lora_options(config.rank, config.alpha, config.dropout, config.rslora)
    return options.alpha / (options.rank**0.5 if options.rslora else options.rank)


def _rank(config: GraftConfig) -> int:
    return config.rank if isinstance(config, LoraConfig | DecoderLoraConfig) else 0
