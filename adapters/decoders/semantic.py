"""What configurations of heads with one channel per class have in common."""

from dataclasses import dataclass
from typing import Literal

from samgraft.adapters.config import check_choice
from samgraft.adapters.decoders.base import DecoderConfig
from samgraft.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SemanticConfig(DecoderConfig):
    """Classes, and whether background is one of the channels."""

    num_classes: int = 1
    """Foreground classes C."""
    activation: Literal["softmax", "sigmoid"] = "softmax"
    """"softmax": C + 1 channels, background first; "sigmoid": C channels that may overlap."""

    def __post_init__(self) -> None:
        """Check the choice and the number."""
        check_choice(self.method, "activation", self.activation, ("softmax", "sigmoid"))
        if self.num_classes < 1:
            raise ConfigError(
                f"{self.method}: num_classes is {self.num_classes}; expected at least 1 (background is not counted)"
            )

    @property
    def num_channels(self) -> int:
        """K: channels of the output."""
        return self.num_classes + (1 if self.activation == "softmax" else 0)
