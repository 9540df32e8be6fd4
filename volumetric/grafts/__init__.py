"""Grafts that look across the slices of a volume; importing this registers them beside those of one image."""

from samgraft.adapters.grafts import GRAFTS
from samgraft.adapters.grafts.base import GraftConfig
from samgraft.volumetric.grafts.adapter_3dsam import Adapter3dsamConfig
from samgraft.volumetric.grafts.ma_sam import MaSamConfig
from samgraft.volumetric.grafts.sd_trans import SdTransConfig

_CONFIGS: tuple[type[GraftConfig], ...] = (Adapter3dsamConfig, MaSamConfig, SdTransConfig)
for _config in _CONFIGS:
    GRAFTS.register(_config.method)(_config)

__all__ = ["Adapter3dsamConfig", "MaSamConfig", "SdTransConfig"]
