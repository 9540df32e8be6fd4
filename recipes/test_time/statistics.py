"""Normalisation statistics at test time: channel means and variances of a scene are brought to those of training.

    y_c = (x_c - m_c) / sqrt(v_c) * sqrt(V_c) + M_c       m_c = (N M_c + n m'_c) / (N + n), v_c likewise

for every channel c of the encoder's output, with M, V of the training images (the adapter's header), m', v' of n inputs
spread over the scene, and N inputs' worth of trust in training (``prior``). Measured once for a scene and then fixed: a
scale and a shift per channel, so that a pixel has one value whatever window shows it.

Where networks have batch norms, the statistics that they keep from training are replaced by those of the target. The
encoders here have LayerNorms, which keep none: they take mean and variance of each token when it is computed, over
channels. What can differ from training is how a channel is distributed over tokens, and that is what is aligned, at
the one place where every head reads: the neck.

Source:
    Statistics of the test set with a prior from training: Schneider et al., arXiv:2006.16971, section 3, equation 1.
Deviations:
    One affine map at the neck in place of the statistics of every batch norm; ``limit`` bounds its scale. Taps, which
    some heads read beside the neck, stay as they are.
"""

import torch
from torch import Tensor

from samgraft.adapters.graft import Grafted
from samgraft.adapters.grafts.neck_affine import ChannelAffine, NeckAffineGraft
from samgraft.errors import CheckpointError, ConfigError
from samgraft.recipes.features import FeatureMoments, TokenSums
from samgraft.recipes.representations import Maps
from samgraft.recipes.test_time.answers import Verdict, answer, encode, figures, judge
from samgraft.recipes.test_time.batches import batches
from samgraft.recipes.test_time.entropy import EXTRA
from samgraft.recipes.test_time.methods import StatisticsConfig
from samgraft.recipes.test_time.neck import with_neck


def alignment(
    mean: Tensor, variance: Tensor, count: int, source: FeatureMoments, config: StatisticsConfig
) -> tuple[Tensor, Tensor]:
    """Scale minus one and shift (C,), float64, that bring a scene's channels to those of training.

    Args:
        mean: (C,) of the scene's tokens.
        variance: (C,) of the same.
        count: Inputs they were measured on.
        source: The header's.
        config: Prior and limit.

    Raises:
        CheckpointError: the header is about another number of channels.
    """
    wanted_mean, wanted = (torch.tensor(v, dtype=torch.float64) for v in (source.token_mean, source.token_variance))
    if wanted_mean.shape != mean.shape:
        raise CheckpointError(
            f"the adapter's header has features of {len(wanted_mean)} channels; the encoder gives {len(mean)}; write "
            "them again with samgraft route --learn"
        )
    trust = config.prior / (config.prior + count)
    mean = trust * wanted_mean + (1 - trust) * mean.double()
    variance = trust * wanted + (1 - trust) * variance.double()
    scale = (wanted / variance.clamp_min(1e-12)).sqrt().clamp(1 / config.limit, config.limit)
    return scale - 1, wanted_mean - scale * mean


@torch.no_grad()
def align_statistics(
    grafted: Grafted, representation: Maps, inputs: Tensor, source: FeatureMoments, config: StatisticsConfig
) -> Verdict:
    """Set the graft at the neck, in place, and say whether the result should be kept.

    Args:
        grafted: The adapter in evaluation mode, with a ``neck_affine`` graft called ``EXTRA`` that is still zero.
        representation: What its channels mean.
        inputs: (n, 3, S, S) in [0, 1], or slabs (n, 3, D, S, S).
        source: Moments of training.
        config: How.
    """
    graft = grafted.grafts[EXTRA]
    if not isinstance(graft, NeckAffineGraft):
        raise ConfigError(f"graft {EXTRA!r} is a {type(graft).__name__}; expected neck_affine")
    encoded = [encode(grafted, part) for part in batches(grafted, inputs)]
    sums = TokenSums()
    for features, _ in encoded:
        sums.add(features.neck)
    scale, shift = alignment(sums.mean(), sums.variance(), sums.images, source, config)
    graft.affine.scale.copy_(scale)
    graft.affine.shift.copy_(shift)

    def logits(affine: ChannelAffine | None) -> Tensor:
        found = [answer(representation, grafted, with_neck(one, affine), image) for one, image in encoded]
        return torch.cat(found)

    first = logits(None)
    called = first.argmax(dim=1)
    before, after = (figures(one, called, balanced=True) for one in (first, logits(graft.affine)))
    return judge(before, after, change=config.change)
