"""Distance decoder: foreground, distance to the centre and to the boundary of objects, so that touching ones part.

Taps of the frozen encoder and its neck are joined and brought back to fine resolution along a convolutional path that
meets the image itself; a 1 x 1 convolution gives three logit maps. ``samgraft.adapters.decoders.distance_maps`` says
what they mean, makes them from true objects and reads objects from them.

With ``from_points`` the maps only say where to ask: every seed gives a point (and, if wanted, the box of what grew from
it) for the frozen mask decoder, whose masks are the objects.

    taps + neck -> token map -> detail path(image) -> 3 maps [-> seeds -> points -> frozen mask decoder -> mask NMS]

Source:
    Segment Anything for Microscopy (micro-sam), bioRxiv 2023.08.21.554208: a UNETR decoder on the frozen encoder with
    these three channels; the repository computational-cell-analytics/micro-sam for prompts made of the same maps.
Deviations:
    The path is that of the class-token decoder (image detail at every level), not UNETR's. Boxes are clipped along x by
    the width and along y by the height; the released box pass clips x by the height. A mask is compared with others by
    the overlap of masks and ranked by predicted IoU times the agreement of the watershed's object.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.config import check_choice
from samgraft.adapters.decoders.base import DecoderConfig, DecoderPatch, SemanticOutput
from samgraft.adapters.decoders.class_tokens import resolve_taps
from samgraft.adapters.decoders.detail import DetailPath, TokenFusion, finest_stride
from samgraft.adapters.decoders.distance_maps import CHANNELS
from samgraft.errors import ConfigError

if TYPE_CHECKING:
    from samgraft.adapters.prompts.base import Prompts


@dataclass(frozen=True, kw_only=True)
class DistancesConfig(DecoderConfig):
    """Instance decoder with distance maps, for ``task.kind: instance``."""

    method: ClassVar[str] = "distances"
    taps: str | tuple[int, ...] = "auto"
    """Encoder blocks read beside the neck: "auto" (after a quarter, half and three quarters), "none", or indices."""
    width: int = 16
    """Channels of the detail path at a quarter of the patch; doubled at every coarser level."""
    fused: int = 64
    """Channels of the joined token maps."""
    full_resolution: bool = False
    """Maps at H x W; else four per patch side, as SAM's masks (the nearest power of 2 below)."""
    dropout: float = 0.0
    """Probability of dropping whole channels of the joined token maps while training, in [0, 1)."""
    foreground: float = 0.5
    """Least foreground probability of an object's pixel."""
    centre: float = 0.5
    """A seed's largest distance to a centre, as a share of the object's size."""
    boundary: float = 0.5
    """A seed's largest value of the boundary channel; less means deeper inside."""
    from_points: bool = False
    """Ask the frozen mask decoder for every object, with its centre as a point, instead of taking the watershed's."""
    box_margin: float | None = None
    """from_points: add the box of the watershed's object, wider by this share of its sides; None for points alone."""
    nms: float = 0.9
    """from_points: of masks with a larger IoU than this the better one stays."""

    def __post_init__(self) -> None:
        """Check choices and numbers."""
        if isinstance(self.taps, str):
            check_choice(self.method, "taps", self.taps, ("auto", "none"))
        for name in ("width", "fused"):
            if getattr(self, name) < 8:
                raise ConfigError(f"distances: {name} is {getattr(self, name)}; expected at least 8 channels")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"distances: dropout is {self.dropout}; expected a probability in [0, 1)")
        for name in ("foreground", "centre", "boundary", "nms"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"distances: {name} is {getattr(self, name)}; expected above 0, at most 1")
        if self.box_margin is not None and self.box_margin < 0:
            raise ConfigError(f"distances: box_margin is {self.box_margin}; expected 0 or more, or None for no box")

    def thresholds(self) -> dict[str, float]:
        """What :func:`~samgraft.adapters.decoders.distance_maps.objects_from_distances` is told."""
        return {"foreground": self.foreground, "centre": self.centre, "boundary": self.boundary}

    def build(self, backbone: Backbone) -> "DistanceDecoder":
        """Create the decoder; ``backbone`` is only read."""
        return DistanceDecoder(self, backbone)


@dataclass(frozen=True, kw_only=True, eq=False)
class DistanceOutput(SemanticOutput):
    """Logits of the three maps; as a class map it is the foreground alone."""

    channels: ClassVar[tuple[str, ...]] = CHANNELS

    @property
    def num_classes(self) -> int:
        """One: object."""
        return 1

    def maps(self) -> Tensor:
        """(B, 3, h', w') in [0, 1], at least float32."""
        return self.logits.to(torch.promote_types(self.logits.dtype, torch.float32)).sigmoid()

    def foreground(self) -> Tensor:
        """(B, 1, h', w') in [0, 1]: probability of an object."""
        return self.maps()[:, :1]

    def labels(self) -> Tensor:
        """(B, h', w') int64: 1 inside objects."""
        return (self.logits[:, 0] > 0).long()


class DistanceDecoder(DecoderPatch):
    """Token maps and the image to three logit maps.

    Attributes:
        fusion: Joins taps and neck.
        path: Back to fine resolution.
        reader: The last 1 x 1 convolution.
    """

    def __init__(self, config: DistancesConfig, backbone: Backbone) -> None:
        """Build; ``backbone`` is only read."""
        super().__init__()
        self.config = config
        spec, like = backbone.spec, next(backbone.parameters())
        self.taps = resolve_taps(config.taps, spec.num_blocks, config.method)
        stride = 1 if config.full_resolution else finest_stride(spec.patch_size)
        with torch.device(like.device):
            self.fusion = TokenFusion(len(self.taps), spec.embed_dim, spec.neck_channels, config.fused)
            self.dropout = nn.Dropout2d(config.dropout)
            self.path = DetailPath(config.fused, spec.patch_size, stride=stride, width=config.width)
            self.reader = nn.Conv2d(self.path.widths[0], len(CHANNELS), 1)
        self.to(like.dtype)

    def forward(
        self, backbone: Backbone, features: Features, image: Tensor, prompts: "Prompts | None" = None
    ) -> DistanceOutput:
        """Logits (B, 3, H / s, W / s) with s a quarter of the patch, or 1; ``prompts`` are not used."""
        del backbone, prompts
        missing = [tap for tap in self.taps if tap not in features.taps]
        if missing:
            raise ConfigError(
                f"distances reads blocks {list(self.taps)}; features lack {missing}; encode with taps=decoder.taps"
            )
        fused = self.dropout(self.fusion([features.taps[tap] for tap in self.taps], features.neck))
        return DistanceOutput(logits=self.reader(self.path(image.to(fused.dtype), fused)), activation="sigmoid")
