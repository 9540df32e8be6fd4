"""What an adaptation leaves behind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Round:
    """The criteria after a round; round 0 is the source adapter."""

    step: int
    """Optimiser steps so far."""
    figures: Mapping[str, float]
    """Name -> value, see ``samgraft.recipes.adaptation.criteria``."""
    refused: str = ""
    """Why the guard does not trust this state; empty if it does."""

    @property
    def score(self) -> float:
        """The figure by which states are compared; larger is better."""
        return float(self.figures["score"])


@dataclass(frozen=True, kw_only=True)
class AdaptResult:
    """Where everything is, and what was decided."""

    adapter: Path
    """The bundle that was written."""
    work: Path
    """Folder with settings, state, history and report."""
    report: Path
    """HTML page with pictures before and after."""
    fell_back: bool
    """Whether the guard kept the source adapter: the same tensors, byte by byte."""
    reason: str
    """Why it did, or why it stopped."""
    best_step: int
    """Optimiser steps of the state that was written; 0 for the source adapter."""
    rounds: tuple[Round, ...] = field(default=())
    """Criteria over time."""
    seconds: float = 0.0
    """Process time."""
