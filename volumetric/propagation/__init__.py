"""From one or more annotated slices to a volume: walk both ways, stop where the object ends, join what meets.

    annotated slices -> walk.walk (prompts of the previous mask, answers of a frozen network, stop rule)
                     -> join.join (between annotated slices) -> Propagated

Nothing here knows a file or a crop: slices come from anything that is a :class:`~.slices.Slices`.
"""

from samgraft.volumetric.propagation.config import PropagationConfig, StopRule
from samgraft.volumetric.propagation.propagate import Propagated, propagate
from samgraft.volumetric.propagation.slices import SliceAnswer, SlicePrompt, Slices, answer_of
from samgraft.volumetric.propagation.walk import Stopped

__all__ = [
    "Propagated",
    "PropagationConfig",
    "SliceAnswer",
    "SlicePrompt",
    "Slices",
    "StopRule",
    "Stopped",
    "answer_of",
    "propagate",
]
