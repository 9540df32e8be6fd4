"""Entropy minimisation at test time: a few numbers of the network are moved until its answers on one scene are certain.

    minimise over theta   sum over pixels w_i H(p_i) / log K        H: entropy of the K class probabilities of a pixel

by ``steps`` of Adam, each on all inputs that were spread over the scene (full batch, so there is no order of pixels).
theta is a scale and a shift per channel of the encoder's output, the affine numbers of the encoder's norms, or what the
adapter itself has of scales and biases. Nothing frozen moves: the norms' numbers are copies that stand in for the
frozen ones while the scene is segmented.

Source:
    TENT, arXiv:2006.10726, section 3 (entropy of the predictions, affine parameters of normalisation layers only,
    Adam); episodic use with a reset after every image as in its experiments on segmentation (section 4.3) and in MEMO,
    arXiv:2110.09506.
Deviations:
    TENT also normalises by the statistics of the test batch. The norms here are LayerNorms: they take mean and variance
    of each token when it is computed and keep nothing from training, so there are no statistics to replace, and only
    their affine numbers are moved. Pixels are weighed so that those the adapter calls background before the first step
    count as much together as the others (``balanced``): in a scan nine pixels of ten are background, and a mean over
    all would be lowest where everything is. A guard (``answers.judge``) throws the result away where that happens.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.graft import Grafted
from samgraft.adapters.grafts import GraftConfig, LayerNormConfig, NeckAffineConfig
from samgraft.adapters.grafts.neck_affine import NeckAffineGraft
from samgraft.errors import ConfigError
from samgraft.recipes.representations import Maps
from samgraft.recipes.test_time.answers import Verdict, answer, balanced_weights, encode, entropy_map, figures, judge
from samgraft.recipes.test_time.batches import batches
from samgraft.recipes.test_time.methods import EntropyConfig
from samgraft.recipes.test_time.neck import with_neck

EXTRA = "scene"
"""Name of the graft that is added for a scene."""


def added(config: EntropyConfig) -> Mapping[str, GraftConfig]:
    """Grafts that hold what is moved, where it is not the adapter's own."""
    made: dict[str, GraftConfig] = {"neck": NeckAffineConfig(), "norms": LayerNormConfig()}
    return {EXTRA: made[config.moved]} if config.moved in made else {}


def moved(grafted: Grafted, config: EntropyConfig) -> list[nn.Parameter]:
    """The parameters that may change.

    Raises:
        ConfigError: the adapter has none of that kind.
    """
    if config.moved != "adapter":
        return list(grafted.grafts[EXTRA].parameters())
    found = [parameter for parameter in grafted.trainable_parameters() if parameter.ndim == 1]
    if not found:
        raise ConfigError(
            f"none of the adapter's parts ({', '.join(grafted.configs) or 'no grafts'}) has a norm, a scale or a bias "
            "that could be moved; choose moved='neck' or 'norms'"
        )
    return found


def lower_entropy(grafted: Grafted, representation: Maps, inputs: Tensor, config: EntropyConfig) -> Verdict:
    """Move what may be moved, in place, and say whether the result should be kept.

    Args:
        grafted: The adapter in evaluation mode, with the grafts of :func:`added`.
        representation: What its channels mean.
        inputs: (n, 3, S, S) in [0, 1], or slabs (n, 3, D, S, S).
        config: Steps, rate, what moves.

    Raises:
        ConfigError: nothing can be moved, or the encoder is quantised where it would have to be differentiated.
    """
    if grafted.backbone.quantized and config.moved != "neck":
        raise ConfigError(
            f"the encoder is quantised to {grafted.backbone.quantized}, and moved={config.moved!r} needs its gradient; "
            "choose moved='neck'"
        )
    chosen, trained = moved(grafted, config), grafted.trainable_parameters()
    wanted = {id(parameter) for parameter in chosen}
    asked = {parameter: parameter.requires_grad for parameter in trained}
    for parameter in trained:
        parameter.requires_grad_(id(parameter) in wanted)
    try:
        return _Scene(grafted, representation, inputs, config).descend(chosen)
    finally:
        for parameter, flag in asked.items():
            parameter.requires_grad_(flag)


class _Scene:
    """The inputs in batches, encoded once where only what follows the encoder moves."""

    def __init__(self, grafted: Grafted, representation: Maps, inputs: Tensor, config: EntropyConfig) -> None:
        self.grafted, self.representation, self.config = grafted, representation, config
        self.parts = batches(grafted, inputs)
        self.kept: list[tuple[Features, Tensor]] = []
        if config.moved == "neck":
            with torch.no_grad():
                self.kept = [encode(grafted, part) for part in self.parts]

    def logits(self) -> Iterator[Tensor]:
        """Class logits of every batch, with gradients where they are on."""
        if not self.kept:
            for part in self.parts:
                yield answer(self.representation, self.grafted, *encode(self.grafted, part))
            return
        graft = self.grafted.grafts[EXTRA]
        for features, image in self.kept:
            affine = graft.affine if isinstance(graft, NeckAffineGraft) else None
            yield answer(self.representation, self.grafted, with_neck(features, affine), image)

    def descend(self, chosen: list[nn.Parameter]) -> Verdict:
        balanced = self.config.balanced
        with torch.no_grad():
            first = torch.cat(list(self.logits()))
        called = first.argmax(dim=1)
        before = figures(first, called, balanced=balanced)
        weights = balanced_weights(called) if balanced else torch.full_like(first[:, 0], 1 / called.numel())
        optimizer = torch.optim.Adam(chosen, lr=self.config.lr)
        for _ in range(self.config.steps):
            optimizer.zero_grad(set_to_none=True)
            start = 0
            with torch.enable_grad():
                for logits in self.logits():
                    own = weights[start : start + len(logits)]
                    (entropy_map(logits) * own).sum().backward()
                    start += len(logits)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            last = torch.cat(list(self.logits()))
        return judge(before, figures(last, called, balanced=balanced), change=self.config.change)
