"""How an adapter answers on the inputs of a scene: its class probabilities, how certain they are, what they cover.

And the guard: whether a change of the adapter may be kept, told from these alone. No label is involved.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.graft import Grafted
from samgraft.errors import ConfigError
from samgraft.recipes.data.slabs import flat_slabs
from samgraft.recipes.losses import as_multiclass, at_least_float
from samgraft.recipes.representations import DistanceMaps, Maps, Representation

LEAST_SHARE = 1e-4
"""A class that covers less than this before is not missed afterwards."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Figures of one adapter on one scene."""

    entropy: float
    """Mean over pixels, in nats, divided by that of a uniform answer: 0 certain, 1 undecided."""
    objective: float
    """What was minimised: the same, or balanced between background and foreground."""
    shares: tuple[float, ...]
    """Share of pixels whose largest probability is that of each class, background first."""

    @property
    def foreground(self) -> float:
        """Share that is not background."""
        return 1 - self.shares[0]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a change is kept."""

    kept: bool
    reason: str
    """In words."""
    before: Answers
    after: Answers


def require_maps(representation: Representation) -> Maps:
    """The representation, if it gives probabilities per pixel.

    Raises:
        ConfigError: it finds objects in windows.
    """
    if not isinstance(representation, Maps):
        raise ConfigError(
            f"test-time methods judge an adapter by its class probabilities, and {type(representation).__name__} gives "
            "objects; use an adapter with class maps (head class_tokens, ...), or leave --test-time out"
        )
    return representation


def class_logits(representation: Maps, logits: Tensor) -> Tensor:
    """(B, K, s, s) whose softmax are class probabilities, of logits of a representation (B, K', s, s)."""
    wide = at_least_float(logits)
    return as_multiclass(wide[:, :1] if isinstance(representation, DistanceMaps) else wide)


def entropy_map(logits: Tensor) -> Tensor:
    """Entropy of softmax over channels, (B, s, s) of (B, K, s, s), divided by log K: 0 to 1."""
    logs = logits.log_softmax(dim=1)
    return -(logs.exp() * logs).sum(dim=1) / torch.tensor(float(logits.shape[1])).log().to(logits)


def balanced_weights(called: Tensor) -> Tensor:
    """Weight of every pixel: those called background (0) have half of all weight, the others the other half.

    Args:
        called: Classes, of any shape; where only one kind is there it has all the weight.

    Returns:
        float32, same shape, sum 1.
    """
    front = called > 0
    weights = torch.zeros(called.shape, device=called.device)
    kinds = [kind for kind in (front, ~front) if bool(kind.any())]
    for kind in kinds:
        weights[kind] = 1 / (len(kinds) * float(kind.sum()))
    return weights


def answer(representation: Maps, grafted: Grafted, features: Features, image: Tensor) -> Tensor:
    """Class logits (B, K, s, s) of the adapter for encoded images (B, 3, S, S)."""
    return class_logits(representation, representation.logits(grafted.predict(image, features=features)))


def encode(grafted: Grafted, inputs: Tensor) -> tuple[Features, Tensor]:
    """Features of network inputs (n, 3, S, S) or slabs (n, 3, D, S, S), and the images as the encoder took them."""
    device = next(grafted.backbone.parameters()).device
    flat, _, slices = flat_slabs(inputs, None)
    there = flat.to(device)
    return (grafted.encode(there) if slices == 1 else grafted.encode(there, depth=slices)), there


def figures(logits: Tensor, called: Tensor, *, balanced: bool) -> Answers:
    """What is told of class logits.

    Args:
        logits: (n, K, s, s).
        called: (n, s, s) classes by which pixels are weighed: those of the adapter before any change.
        balanced: Weigh kinds of pixels the same.
    """
    uncertain, own = entropy_map(logits), logits.argmax(dim=1)
    mean = float(uncertain.mean())
    shares = torch.bincount(own.flatten(), minlength=logits.shape[1]).double() / own.numel()
    objective = float((uncertain * balanced_weights(called)).sum()) if balanced else mean
    return Answers(entropy=mean, objective=objective, shares=tuple(shares.tolist()))


def judge(before: Answers, after: Answers, *, change: float) -> Verdict:
    """Keep a change only if the adapter has become more certain, and finds about as much as before.

    Args:
        before: Without the change.
        after: With it.
        change: See ``SceneMethod.change``.
    """

    def verdict(reason: str, *, kept: bool = False) -> Verdict:
        return Verdict(kept=kept, reason=reason, before=before, after=after)

    if before.foreground < LEAST_SHARE:
        return verdict("the adapter finds nothing here, so there is nothing to make more certain")
    if not after.objective < before.objective:
        return verdict(f"the entropy did not fall ({before.objective:.4f}, then {after.objective:.4f})")
    for number, (old, new) in enumerate(zip(before.shares, after.shares, strict=True)):
        if old >= LEAST_SHARE and new < old / change:
            name = "background" if number == 0 else f"class {number}"
            return verdict(f"{name} collapsed from {old:.2%} to {new:.2%} of the pixels")
    if after.foreground > before.foreground * change:
        return verdict(f"the foreground grew from {before.foreground:.2%} to {after.foreground:.2%} of the pixels")
    return verdict(f"the entropy fell from {before.objective:.4f} to {after.objective:.4f}", kept=True)
