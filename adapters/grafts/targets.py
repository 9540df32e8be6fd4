"""What grafts on linear layers of a block can name: slices of the fused projection, or whole layers; and checks."""

from torch import nn

from samgraft.adapters.backbones.base import Backbone
from samgraft.adapters.config import check_choice, check_positive
from samgraft.adapters.grafts.peft_linear import find_linears
from samgraft.errors import ConfigError

SLICES = ("q", "k", "v")
LINEARS = {"qkv": r"attn\.qkv", "proj": r"attn\.proj", "lin1": r"mlp\.lin1", "lin2": r"mlp\.lin2"}
"""Target -> path below a block."""
POINTS = {"qkv": "I2 fused qkv", "proj": "I3 proj", "lin1": "I7 lin1", "lin2": "I7 lin2"}
"""Target -> how it is called in tables."""


def check_targets(owner: str, targets: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Check names of what is adapted.

    Raises:
        ConfigError: no or unknown or repeated targets.
    """
    if not targets or len(set(targets)) < len(targets):
        raise ConfigError(f"{owner}: targets are {list(targets)}; name at least one of {', '.join(known)}, each once")
    for target in targets:
        check_choice(owner, "target", target, known)


def check_lora(
    owner: str, targets: tuple[str, ...], known: tuple[str, ...], rank: int, alpha: float | None, dropout: float
) -> None:
    """Check options that LoRA on the encoder and on the decoder share.

    Raises:
        ConfigError: no or unknown or repeated targets, a rank below 1, alpha not above 0, dropout outside [0, 1).
    """
    check_targets(owner, targets, known)
    check_rank(owner, rank, dropout)
    if alpha is not None:
        check_positive(owner, "alpha", alpha)


def check_rank(owner: str, rank: int, dropout: float) -> None:
    """Check what all low-rank methods share.

    Raises:
        ConfigError: a rank below 1, dropout outside [0, 1).
    """
    if rank < 1:
        raise ConfigError(f"{owner}: rank is {rank}; expected at least 1")
    if not 0 <= dropout < 1:
        raise ConfigError(f"{owner}: dropout is {dropout}; expected a probability in [0, 1)")


def block_linear(backbone: Backbone, block: int, target: str) -> tuple[str, nn.Linear]:
    """Path and layer of one target (a key of ``LINEARS``) of one block.

    Raises:
        ConfigError: the layer is wrapped already, or quantised.
        NoMatchError: there is none.
    """
    found = find_linears(backbone, rf"vision_encoder\.layers\.{block}\.{LINEARS[target]}$")
    return next(iter(found.items()))
