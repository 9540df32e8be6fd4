"""The network that learns: any encoder of SAM's kind, with the teacher's prompt encoder and mask decoder.

Takes the teacher and a preset, a JSON file or a backbone; gives an :class:`HFSamBackbone` around a ``SamModel`` of its
own, whose encoder ends in as many channels as the teacher's.

Source:
    Decoupled distillation, MobileSAM, arXiv:2306.14289, section 3: the decoder is kept, only the encoder is new.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import SamModel, SamVisionConfig

from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.backbones.hub import load_backbone
from samgraft.adapters.backbones.loading import build_model
from samgraft.adapters.backbones.tiny import build_graft_tiny, tiny_config
from samgraft.errors import CheckpointError, ConfigError, NoMatchError

ENCODER = "vision_encoder."
"""Prefix of the tensors of the image encoder; all others come from the teacher."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Size of a preset encoder: graft-tiny's design (patch 8, windows of 8 tokens, every third block global)."""

    embed_dim: int
    num_blocks: int
    num_heads: int


STUDENTS: Mapping[str, Shape] = {
    "tiny": Shape(embed_dim=192, num_blocks=6, num_heads=6),
    "tiny-narrow": Shape(embed_dim=96, num_blocks=6, num_heads=3),
    "tiny-shallow": Shape(embed_dim=192, num_blocks=3, num_heads=6),
}
"""Presets: graft-tiny's encoder, half its width, half its depth. The native size gives the teacher's grid of tokens."""


def make_student(
    student: str, teacher: HFSamBackbone, *, name: str | None = None, grid: int | None = None, seed: int = 0
) -> HFSamBackbone:
    """Build the student; the teacher is only read.

    Args:
        student: A preset of :data:`STUDENTS`, a JSON file with the fields of a ``SamVisionConfig``, or anything that
            ``load_backbone`` takes, whose encoder is the start.
        teacher: Where prompt encoder, position code and mask decoder come from.
        name: What to call it; None joins both names.
        grid: Tokens per side of the teacher's embedding, to which a preset's native size is chosen; None takes the
            teacher's native grid.
        seed: Of the initial values of a new encoder.

    Raises:
        ConfigError: a student that is none of these or cannot be loaded, or whose neck has another number of channels
            than the teacher's.
    """
    cells = grid or teacher.spec.native_size // teacher.spec.patch_size
    title = name or f"{teacher.spec.name}-{Path(student).stem}"
    about: dict[str, Any] = {"mean": teacher.spec.mean, "std": teacher.spec.std, "licence": teacher.spec.licence}
    if student in STUDENTS:
        vision, tensors = _preset(STUDENTS[student], teacher, cells), None
    elif Path(student).suffix.lower() == ".json":
        vision, tensors = _from_json(Path(student).expanduser()), None
    else:
        start = _loaded(student)
        vision, tensors = start.sam.config.vision_config.to_dict(), _encoder_tensors(start.sam)
        licences = dict.fromkeys((start.spec.licence, teacher.spec.licence))
        about = {"mean": start.spec.mean, "std": start.spec.std, "licence": " and ".join(licences)}
    config = _full_config(vision, teacher, student)
    if tensors is None:
        tensors = _encoder_tensors(_fresh(config, seed, student))
    kept = {key: value.detach().clone() for key, value in _taken_over(teacher.sam).items()}
    model = build_model(config, {**tensors, **kept}, f"student {student!r}")
    source = f"samgraft distill: {student} learned from {teacher.spec.name}"
    return HFSamBackbone(model, name=title, source=source, **about)


def _preset(shape: Shape, teacher: HFSamBackbone, cells: int) -> dict[str, Any]:
    config = tiny_config(
        embed_dim=shape.embed_dim,
        num_blocks=shape.num_blocks,
        num_heads=shape.num_heads,
        neck_channels=teacher.spec.neck_channels,
        native_size=8 * cells,
    )
    vision: dict[str, Any] = config["vision_config"]
    return vision


def _from_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"student {path} cannot be read: {error}; give JSON with fields of SamVisionConfig"
        ) from error
    found = found.get("vision_config", found) if isinstance(found, dict) else found
    if not isinstance(found, dict):
        raise ConfigError(f"student {path} holds {type(found).__name__}; expected a JSON object of SamVisionConfig")
    unknown = sorted(set(found) - set(SamVisionConfig().to_dict()))
    if unknown:
        raise ConfigError(f"student {path} has unknown fields {unknown}; expected those of SamVisionConfig")
    return found


def _loaded(student: str) -> HFSamBackbone:
    try:
        return load_backbone(student)
    except (CheckpointError, NoMatchError) as error:
        presets = ", ".join(STUDENTS)
        raise ConfigError(
            f"student {student!r} is no preset ({presets}), no JSON file and no backbone: {error}"
        ) from error


def _full_config(vision: Mapping[str, Any], teacher: HFSamBackbone, student: str) -> dict[str, Any]:
    """Arguments of ``SamConfig``: the student's encoder, the teacher's other parts at the student's size."""
    given, channels = vision.get("output_channels"), teacher.spec.neck_channels
    if given is not None and given != channels:
        raise ConfigError(
            f"the neck of student {student!r} has {given} channels; {teacher.spec.name!r} has {channels}, and its "
            f"decoder is kept; set output_channels to {channels}, or choose another student"
        )
    own = teacher.sam.config
    feats = own.vision_config.num_pos_feats
    encoder = {**vision, "output_channels": channels, "num_pos_feats": feats}
    side, patch = encoder.get("image_size", 1024), encoder.get("patch_size", 16)
    if not isinstance(side, int) or not isinstance(patch, int) or patch < 1 or side % patch:
        raise ConfigError(
            f"student {student!r}: image_size {side}, patch_size {patch}; expected a whole number of patches"
        )
    placed = {"image_size": side, "patch_size": patch, "image_embedding_size": side // patch}
    return {
        "vision_config": encoder,
        "prompt_encoder_config": {**own.prompt_encoder_config.to_dict(), **placed},
        "mask_decoder_config": own.mask_decoder_config.to_dict(),
    }


def _fresh(config: dict[str, Any], seed: int, student: str) -> SamModel:
    try:
        return build_graft_tiny(config, seed=seed)
    except Exception as error:  # transformers and torch each raise kinds of their own
        raise ConfigError(f"student {student!r} cannot be built: {error}; check its SamVisionConfig") from error


def _encoder_tensors(model: SamModel) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items() if key.startswith(ENCODER)}


def _taken_over(model: SamModel) -> dict[str, Tensor]:
    """Everything but the encoder: position code, prompt encoder, mask decoder."""
    return {key: value for key, value in model.state_dict().items() if not key.startswith(ENCODER)}


def differing(student: HFSamBackbone, teacher: HFSamBackbone, *, decoder: bool = True) -> list[str]:
    """Names of tensors that student and teacher should share, bit for bit, and do not.

    Args:
        student: The student.
        teacher: The teacher.
        decoder: Whether the mask decoder counts; it is trained in phase 2.
    """
    own, theirs = student.sam.state_dict(), _taken_over(teacher.sam)
    names = [key for key in theirs if decoder or not key.startswith("mask_decoder.")]
    return [key for key in names if not bool((own[key].cpu() == theirs[key].cpu()).all())]
