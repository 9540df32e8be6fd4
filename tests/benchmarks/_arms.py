"""The three arms of the first-slice benchmark: graft on a frozen backbone, the same network fully trained, UNet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from monai.networks.nets import UNet
from torch import Tensor, nn
from torch.nn import functional
from transformers import SamConfig, SamModel

from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.decoders import ClassTokensConfig
from samgraft.adapters.graft import Grafted, attach
from samgraft.adapters.grafts import BottleneckConfig
from samgraft.adapters.grafts.base import GraftConfig
from tests.benchmarks._backbone import open_backbone, unfreeze
from tests.benchmarks._sets import Forward, SetSpec
from tests.benchmarks._train import Optimiser

ArmName = Literal["graft", "full", "unet"]
ARMS: tuple[ArmName, ...] = ("graft", "full", "unet")
GRAFTS: tuple[GraftConfig, ...] = (BottleneckConfig(ratio=0.125, blocks="last:2"),)
"""What is grafted into the encoder, on every set."""
DROPOUT = 0.3
"""Of the class-token decoder; compared on held-out training slices of cardiac_mr with 5 images (docs/benchmarks.md)."""
FULL = Optimiser(lr=1e-3, batch=0)
GRAFT = Optimiser(lr=2e-3, batch=0)
UNET = Optimiser(lr=2e-3, batch=0)
"""UNet and graft: compared on held-out training cases of nerve_us (docs/benchmarks.md); batch 0 means the set's own."""


@dataclass(kw_only=True, eq=False)
class Arm:
    """A network ready for training."""

    module: nn.Module
    forward: Forward
    trained: list[nn.Parameter]
    options: Optimiser
    total: int
    """Parameters of the whole network."""
    three: bool = False
    """Whether the network takes volumes."""
    grafted: Grafted | None = None


def build(name: ArmName, spec: SetSpec, backbone: str, seed: int) -> Arm:
    """Create an arm; weights that are new are drawn from ``seed``."""
    torch.manual_seed(seed)
    if name == "unet":
        return unet(spec)
    grafted = attach(open_backbone(backbone), GRAFTS, decoder=decoder_config(spec))
    return graft_arm(grafted, full=name == "full", batch=spec.batch)


def decoder_config(spec: SetSpec) -> ClassTokensConfig:
    """The class-token decoder of a set: foreground classes only, background is explicit."""
    return ClassTokensConfig(num_classes=spec.classes - 1, dropout=DROPOUT, full_resolution=spec.full_resolution)


def graft_arm(grafted: Grafted, *, full: bool, batch: int) -> Arm:
    """Train what is attached, or with ``full`` the backbone as well (but for the fixed Fourier matrix of positions)."""
    attached = grafted.trainable_parameters()
    total = count(attached) + backbone_parameters(grafted)
    trained = unfreeze(grafted) if full else attached

    def forward(image: Tensor) -> Tensor:
        logits = grafted.predict(image).logits
        return functional.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)

    base = FULL if full else GRAFT
    options = Optimiser(lr=base.lr, batch=batch)
    return Arm(module=grafted, forward=forward, trained=trained, options=options, total=total, grafted=grafted)


def unet(spec: SetSpec) -> Arm:
    """MONAI residual UNet from scratch; in three dimensions where the set is volumetric."""
    three = spec.volumetric
    channels = (16, 32, 64, 128) if three else (16, 32, 64, 128, 256)
    network = UNet(
        spatial_dims=3 if three else 2,
        in_channels=1 if three else 3,
        out_channels=spec.classes,
        channels=channels,
        strides=(2,) * (len(channels) - 1),
        num_res_units=2,
        norm=("INSTANCE", {"affine": True}),
    )
    trained = list(network.parameters())
    options = Optimiser(lr=UNET.lr, batch=2 if three else spec.batch)
    forward = cast(Forward, network)
    return Arm(module=network, forward=forward, trained=trained, options=options, total=count(trained), three=three)


def count(parameters: Sequence[nn.Parameter]) -> int:
    """Number of scalars, shared tensors once."""
    return sum(p.numel() for p in {id(p): p for p in parameters}.values())


def backbone_parameters(grafted: Grafted) -> int:
    """Scalars of the backbone alone."""
    own = {id(p) for p in grafted.trainable_parameters()}
    return count([p for p in grafted.backbone.parameters() if id(p) not in own])


def on_sam_base(spec: SetSpec) -> dict[str, float | int]:
    """The same recipe on SAM-B, counted on the meta device: trainable parameters and their share of the backbone."""
    with torch.device("meta"):
        backbone = HFSamBackbone(SamModel(SamConfig()))
        grafted = attach(backbone, GRAFTS, decoder=decoder_config(spec))
    trained, frozen = count(grafted.trainable_parameters()), backbone_parameters(grafted)
    return {"trainable": trained, "backbone": frozen, "share": trained / frozen}
