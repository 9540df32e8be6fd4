"""Where a structure lies in a new volume: 3D boxes from a few annotated volumes, without a label of the new one.

unlabelled volumes -> training.train_positions (self-supervised) -> PositionNet
3 to 10 annotated volumes -> locator.Locator.of (landmarks: codes and feature patches; templates; what serves better)
new volume -> Locator.locate -> one box in mm per structure
"""

from samgraft.volumetric.localisation.bundle import load_locator, read_locator_header, save_locator
from samgraft.volumetric.localisation.landmarks import Located, Support
from samgraft.volumetric.localisation.locator import Locator, LocatorConfig
from samgraft.volumetric.localisation.network import PositionConfig, PositionNet
from samgraft.volumetric.localisation.training import PositionTraining, train_positions

__all__ = [
    "Located",
    "Locator",
    "LocatorConfig",
    "PositionConfig",
    "PositionNet",
    "PositionTraining",
    "Support",
    "load_locator",
    "read_locator_header",
    "save_locator",
    "train_positions",
]
