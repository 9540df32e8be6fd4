"""From a name, a folder, a file or a model to a backbone: the table ``BACKBONES`` and :func:`load_backbone`."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import SamModel

from samgraft.adapters.backbones.hf import SAM_MEAN, SAM_STD, HFSamBackbone
from samgraft.adapters.backbones.loading import brief, build_model
from samgraft.adapters.backbones.sam_pth import load_sam_pth
from samgraft.errors import CheckpointError, ConfigError
from samgraft.registry import Registry

EMBEDDED = Path(__file__).parent / "embedded"
"""Folder in the package that holds ``graft_tiny.safetensors`` and ``graft_tiny.json``."""
UNIT_MEAN, UNIT_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
"""MedSAM takes the image in [0, 1] as it is."""


@dataclass(frozen=True, kw_only=True)
class BackboneEntry:
    """A backbone that has a name."""

    source: str
    """Id on the Hugging Face hub, or "embedded" for weights in the package."""
    mean: tuple[float, float, float] = SAM_MEAN
    std: tuple[float, float, float] = SAM_STD
    licence: str = "Apache-2.0"
    description: str = ""


BACKBONES: Registry[BackboneEntry] = Registry("backbone")
"""Name -> where it comes from and how it is normalised."""

for _name, _entry in {
    "graft-tiny": BackboneEntry(source="embedded", description="in the package; trained on procedural images only"),
    "sam-vit-base": BackboneEntry(source="facebook/sam-vit-base", description="SAM ViT-B, 94 million parameters"),
    "sam-vit-large": BackboneEntry(source="facebook/sam-vit-large", description="SAM ViT-L, 312 million parameters"),
    "sam-vit-huge": BackboneEntry(source="facebook/sam-vit-huge", description="SAM ViT-H, 641 million parameters"),
    "medsam": BackboneEntry(
        source="wanglab/medsam-vit-base",
        mean=UNIT_MEAN,
        std=UNIT_STD,
        description="SAM ViT-B tuned on medical images; boxes",
    ),
    "slimsam-50": BackboneEntry(source="nielsr/slimsam-50-uniform", description="SAM ViT-B pruned to half its width"),
    "slimsam-77": BackboneEntry(
        source="nielsr/slimsam-77-uniform", description="SAM ViT-B pruned to 22 % of its width"
    ),
}.items():
    BACKBONES.register(_name)(_entry)


def load_backbone(
    source: str | os.PathLike[str] | SamModel | HFSamBackbone = "graft-tiny",
    *,
    local_files_only: bool = False,
    device: torch.device | str | None = None,
    name: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> HFSamBackbone:
    """Load a frozen backbone in float32.

    Args:
        source: A name of :data:`BACKBONES`; a folder with ``config.json`` and weights; a ``.pth`` file in Meta's format
            (a file name with "medsam" in it is read as MedSAM: image in [0, 1] without further normalisation); an id
            "owner/name" on the Hugging Face hub; a ``SamModel``, which is taken over and frozen; or a backbone, which
            is returned.
        local_files_only: Never use the network.
        device: Where to put it; None leaves it where it is (the CPU for files).
        name: What to call it in bundles and tables.
        mean: Normalisation per channel instead of the source's own; comes with ``std``.
        std: See ``mean``.

    Raises:
        CheckpointError: nothing there, damaged, incomplete, not a SAM, or not on this machine while offline.
        NoMatchError: a name that is not in :data:`BACKBONES`, with the closest one.
        ConfigError: one of mean and std without the other, or options for a backbone that is loaded already.
    """
    if (mean is None) != (std is None):
        raise ConfigError(f"mean is {mean} and std is {std}; give both or neither")
    given: dict[str, Any] = {
        key: value for key, value in (("name", name), ("mean", mean), ("std", std)) if value is not None
    }
    if isinstance(source, HFSamBackbone):
        if given:
            raise ConfigError(f"{', '.join(given)} cannot change a backbone that is loaded; give the SamModel instead")
        backbone = source
    elif isinstance(source, SamModel):
        backbone = HFSamBackbone(source, **{"name": "sam", "source": "SamModel object", **given})
    else:
        model, about = _find(source, local_files_only)
        backbone = HFSamBackbone(model, **{**about, **given})
    return backbone if device is None else backbone.to(device)


def _find(source: str | os.PathLike[str], local_files_only: bool) -> tuple[SamModel, dict[str, Any]]:
    """The model, and the keyword arguments of its backbone."""
    text = os.fspath(source)
    path = Path(text).expanduser()
    if isinstance(source, str) and source in BACKBONES:
        return _load_embedded() if BACKBONES.get(source).source == "embedded" else _load_named(source, local_files_only)
    if path.is_dir():
        return _load_folder(path)
    if path.is_file() or path.suffix in (".pth", ".pt"):
        return _load_pth(path)
    if not isinstance(source, str) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise CheckpointError(
            f"no backbone at {text}; expected a folder with config.json, a .pth file or one of {', '.join(BACKBONES)}"
        )
    if "/" not in text:
        BACKBONES.get(text)
    known = [entry for entry in BACKBONES if BACKBONES.get(entry).source == text]
    if known:
        return _load_named(known[0], local_files_only)
    return _from_pretrained(text, local_files_only), {"name": text.partition("/")[2], "source": text}


def _load_embedded() -> tuple[SamModel, dict[str, Any]]:
    weights, card = EMBEDDED / "graft_tiny.safetensors", EMBEDDED / "graft_tiny.json"
    for path in (weights, card):
        if not path.is_file():
            raise CheckpointError(
                f"the package holds no {path.name} in {EMBEDDED}; reinstall samgraft, or run `samgraft pretrain`"
            )
    try:
        about = json.loads(card.read_text(encoding="utf-8"))
        tensors = load_file(weights)
        known = {key: about[key] for key in ("name", "mean", "std", "licence")}
        config = about["config"]
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"the embedded graft-tiny in {EMBEDDED} is damaged: {error}; reinstall samgraft"
        ) from error
    return build_model(config, tensors, str(weights)), {**known, "source": "embedded"}


def _load_named(name: str, local_files_only: bool) -> tuple[SamModel, dict[str, Any]]:
    entry = BACKBONES.get(name)
    about = {"name": name, "mean": entry.mean, "std": entry.std, "licence": entry.licence, "source": entry.source}
    return _from_pretrained(entry.source, local_files_only), about


def _load_pth(path: Path) -> tuple[SamModel, dict[str, Any]]:
    model = load_sam_pth(path)
    if "medsam" in path.name.lower():
        return model, {"name": "medsam", "mean": UNIT_MEAN, "std": UNIT_STD, "source": str(path)}
    sizes = {(768, 12): "sam-vit-base", (1024, 24): "sam-vit-large", (1280, 32): "sam-vit-huge"}
    vision = model.config.vision_config
    return model, {"name": sizes.get((vision.hidden_size, vision.num_hidden_layers), path.stem), "source": str(path)}


def _load_folder(folder: Path) -> tuple[SamModel, dict[str, Any]]:
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(f"folder {folder} has no config.json; expected what SamModel.save_pretrained writes")
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, OSError, AttributeError) as error:
        raise CheckpointError(f"{config} cannot be read: {error}; get the folder again") from error
    if kind != "sam":
        raise CheckpointError(
            f"{config} describes a model of type {kind!r}; expected 'sam'; other families cannot be loaded yet"
        )
    mean, std = _folder_normalisation(folder)
    about = {"name": folder.resolve().name, "mean": mean, "std": std, "source": str(folder)}
    return _from_pretrained(str(folder), True), {**about, **_folder_card(folder)}


def _folder_card(folder: Path) -> dict[str, str]:
    """Name, licence and source from ``samgraft.json``, as ``samgraft distill`` writes it; nothing without that file."""
    path = folder / "samgraft.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: str(found[key]) for key in ("name", "licence", "source") if key in found}
    except (ValueError, TypeError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}; get the folder again, or delete that file to go by the folder's name"
        ) from error


def _folder_normalisation(folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std of ``preprocessor_config.json`` if the folder has one, else SAM's."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return SAM_MEAN, SAM_STD
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not found.get("do_normalize", True):
            return UNIT_MEAN, UNIT_STD
        mean, std = found.get("image_mean", SAM_MEAN), found.get("image_std", SAM_STD)
        return tuple(float(value) for value in mean), tuple(float(value) for value in std)
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}; get the folder again, or delete that file to use SAM's mean"
        ) from error


def _from_pretrained(source: str, local_files_only: bool) -> SamModel:
    """Load with transformers, and refuse what it would quietly fill with random numbers."""
    try:
        model, report = SamModel.from_pretrained(
            source,
            local_files_only=local_files_only,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=False,
        )
    except Exception as error:  # transformers, huggingface_hub, safetensors and torch each raise kinds of their own
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        if Path(source).is_dir():
            raise CheckpointError(
                f"weights in {source} cannot be loaded: {first}; the folder is damaged or incomplete"
            ) from error
        raise CheckpointError(
            f"backbone {source!r} is not on this machine and cannot be fetched: {first}. Where there is a network, run "
            f"`hf download {source}`, copy the folder here and load it by its path; or use 'graft-tiny', which is here"
        ) from error
    wrong = [
        f"{kind}: {brief(sorted(map(str, report[kind])))}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if report.get(kind)
    ]
    if wrong:
        raise CheckpointError(f"weights of {source} do not fit their configuration: {'; '.join(wrong)}; get them again")
    broken = sorted(key for key, tensor in model.state_dict().items() if not bool(torch.isfinite(tensor).all()))
    if broken:
        raise CheckpointError(f"weights of {source} hold NaN or Inf in {brief(broken)}; get them again")
    return model.eval()
