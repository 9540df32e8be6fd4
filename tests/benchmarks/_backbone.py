"""The backbone under test: by name, or an export of `samgraft pretrain` that is not in the package yet; its tensors."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.backbones.hub import load_backbone
from samgraft.adapters.backbones.loading import build_model
from samgraft.adapters.graft import Grafted


def open_backbone(source: str) -> HFSamBackbone:
    """Load what ``samgraft.load_backbone`` knows, or a folder with graft_tiny.safetensors and graft_tiny.json."""
    folder = Path(source)
    card = folder / "graft_tiny.json"
    if not card.is_file():
        return load_backbone(source)
    about = json.loads(card.read_text())
    weights = folder / "graft_tiny.safetensors"
    model = build_model(about["config"], load_file(weights), str(weights))
    known = {key: about[key] for key in ("name", "mean", "std", "licence")}
    return HFSamBackbone(model, **known, source=source)


def fingerprint(grafted: Grafted) -> str:
    """SHA-256 over the backbone's tensors as they are now (``weights_hash`` tells what was loaded)."""
    own = {id(p) for p in grafted.trainable_parameters()}
    return tensor_hash(p for p in grafted.backbone.parameters() if id(p) not in own)


def tensor_hash(tensors: Iterable[Tensor]) -> str:
    """SHA-256 over the bytes of tensors in their order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def unfreeze(grafted: Grafted) -> list[nn.Parameter]:
    """Let the backbone's own tensors be trained in place, but for the fixed Fourier matrix of positions.

    Returns:
        What is attached, then the backbone's own.
    """
    trained = grafted.trainable_parameters()
    own = {id(p) for p in trained}
    for key, parameter in grafted.backbone.named_parameters():
        if id(parameter) not in own and "positional_embedding" not in key:
            trained.append(parameter.requires_grad_(True))
    return trained
