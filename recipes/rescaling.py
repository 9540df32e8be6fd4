"""The same adapter for images of another modality: its tensors stay, only how values become [0, 1] is said anew.

An adapter that was trained on CT sees every volume through its window of Hounsfield units, and refuses volumes that
hold none. Before it can be moved to MR (aligned, adapted, or used as it is), it has to look at MR as an MR adapter
would. How well it then does is another matter.
"""

import shutil
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from samgraft.adapters.bundle import read_meta, replace_meta
from samgraft.domains.atomic import atomic_path
from samgraft.domains.medical.intensity import ct_window
from samgraft.errors import ConfigError
from samgraft.recipes.config import DataConfig
from samgraft.recipes.data.layouts import intensity_rule


def rescale_adapter(
    adapter: str | PathLike[str],
    out: str | PathLike[str],
    *,
    modality: str,
    intensity: tuple[float, float] | None = None,
) -> Path:
    """Write ``adapter`` with the scale that ``samgraft fit`` would choose for ``modality``.

    Args:
        adapter: A bundle; it stays as it is.
        out: The bundle to write.
        modality: "CT" (soft-tissue window), "MR" (percentiles of each volume), or another name (as each file looks).
        intensity: Fixed window (lower, upper) in file units instead.

    Raises:
        CheckpointError: ``adapter`` is missing or damaged.
        ConfigError: ``out`` is ``adapter``, no modality, or a window whose lower end is not below its upper one.
        OutputError: ``out`` cannot be written; nothing is left behind.
    """
    source, target = Path(adapter), Path(out)
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target} is the adapter itself, which stays as it is; choose another output")
    if not modality.strip():
        raise ConfigError("modality is empty; name what the images are, such as MR or CT")
    meta = read_meta(source)
    origin = {"modality": meta.modality, "intensity": meta.intensity}
    told = replace(
        meta,
        modality=modality,
        intensity=_scale(DataConfig(modality=modality, intensity=intensity)),
        extra={**meta.extra, "rescaled_from": origin},
    )
    with atomic_path(target) as path:
        shutil.copyfile(source, path)
        replace_meta(path, told)
    return target


def _scale(config: DataConfig) -> dict[str, Any] | None:
    """How values of such images become [0, 1], as headers have it; None: as each file looks."""
    if config.intensity is not None:
        lower, upper = config.intensity
        return {"kind": "range", "lower": lower, "upper": upper, "note": "given by hand"}
    rule = intensity_rule(config, config.modality)
    if rule is not None:
        return rule.to_dict()
    return ct_window("soft").to_dict() if config.modality == "CT" else None
