"""Features whose neck is changed as the graft at the neck would change it, without running the encoder again."""

from dataclasses import replace

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.grafts.neck_affine import ChannelAffine


def with_neck(features: Features, affine: ChannelAffine | None) -> Features:
    """The same features, their neck scaled and shifted by ``affine``.

    Args:
        features: Encoded while ``affine`` was zero, or not installed.
        affine: None changes nothing.
    """
    return features if affine is None else replace(features, neck=features.neck + affine(features.neck))
