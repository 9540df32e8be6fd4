"""What can be done to an adapter when it meets a scene, and how much; one frozen dataclass per method, by name."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from samgraft.adapters.config import MethodConfig, check_choice, check_positive
from samgraft.errors import ConfigError
from samgraft.registry import Registry

Moved = Literal["neck", "norms", "adapter"]
MOVED: tuple[Moved, ...] = ("neck", "norms", "adapter")


@dataclass(frozen=True, kw_only=True)
class SceneMethod(MethodConfig):
    """What every method has: where it looks, and when its result is thrown away."""

    inputs: int = 16
    """Network inputs, spread over the scene, on which the adapter is fitted and judged."""
    change: float = 2.0
    """Guard: no class may cover less than its share before divided by this, nor the foreground more than its share
    times this. Outside of that, or if the entropy does not fall, the scene is segmented by the adapter as it was."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.inputs < 1:
            raise ConfigError(f"{self.method}: inputs is {self.inputs}; expected at least 1")
        if not self.change > 1:
            raise ConfigError(f"{self.method}: change is {self.change}; expected a factor above 1, such as 2")


@dataclass(frozen=True, kw_only=True)
class EntropyConfig(SceneMethod):
    """Entropy minimisation (``samgraft.recipes.test_time.entropy``)."""

    method: ClassVar[str] = "entropy"
    steps: int = 10
    """Steps of Adam; each sees all inputs."""
    lr: float = 1e-2
    """Learning rate."""
    moved: Moved = "neck"
    """What is changed: "neck", a scale and a shift per channel of the encoder's output (the encoder runs once);
    "norms", weight and bias of both norms of every encoder block (TENT's choice; the encoder runs in every step);
    "adapter", what the adapter has of norms, scales and biases: its tensors with one axis."""
    balanced: bool = True
    """Weigh pixels so that those called background and those called foreground count the same together."""

    def __post_init__(self) -> None:
        """Check words and ranges."""
        super().__post_init__()
        check_choice(self.method, "moved", self.moved, MOVED)
        check_positive(self.method, "lr", self.lr)
        if self.steps < 1:
            raise ConfigError(f"{self.method}: steps is {self.steps}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class StatisticsConfig(SceneMethod):
    """Feature statistics of the scene brought to those of training (``samgraft.recipes.test_time.statistics``)."""

    method: ClassVar[str] = "statistics"
    prior: float = 16.0
    """How many inputs the statistics of training count as, beside those of the scene; 0 trusts the scene alone."""
    limit: float = 4.0
    """A channel is scaled by no more than this factor, and no less than its inverse."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if self.prior < 0 or not self.limit >= 1:
            raise ConfigError(
                f"{self.method}: prior is {self.prior} and limit {self.limit}; expected at least 0 and at least 1"
            )


METHODS: Registry[type[SceneMethod]] = Registry("test-time method")
"""Name -> configuration."""
for _config in (EntropyConfig, StatisticsConfig):
    METHODS.register(_config.method)(_config)
