"""What a distillation leaves behind: a folder that ``load_backbone`` loads, and a picture to look at."""

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.domains.atomic import atomic_path
from samgraft.errors import OutputError
from samgraft.recipes.distill.data import Tiles
from samgraft.recipes.distill.judge import mask_iou
from samgraft.recipes.distill.prompting import box_prompts, scale_prompts
from samgraft.recipes.distill.teacher import Teacher, resize_square
from samgraft.recipes.report import Panel, overlay, png
from samgraft.recipes.sheet import titled

SHOWN_TILES, SHOWN_BOXES = 6, 5


def export_student(folder: Path, student: HFSamBackbone, card: Mapping[str, Any]) -> Path:
    """Write ``config.json``, ``model.safetensors``, ``preprocessor_config.json`` and ``samgraft.json``.

    The first two are what ``SamModel.save_pretrained`` writes; the third holds mean and std in the form of
    ``SamImageProcessor``; the last name, licence, source and ``card``. A folder that is there is replaced as a whole.

    Raises:
        OutputError: the folder cannot be written; what was there before stays.
    """
    spec = student.spec
    about = {"name": spec.name, "licence": spec.licence, "source": spec.source, "card": dict(card)}
    side = {"height": spec.native_size, "width": spec.native_size}
    seen = {
        "image_processor_type": "SamImageProcessor",
        "processor_class": "SamProcessor",
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_pad": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "size": {"longest_edge": spec.native_size},
        "pad_size": side,
    }
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        student.sam.save_pretrained(temporary)
        (temporary / "preprocessor_config.json").write_text(json.dumps(seen, indent=1) + "\n", encoding="utf-8")
        (temporary / "samgraft.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        for path in temporary.iterdir():
            path.chmod(0o644)
        _swap(temporary, folder)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error}; choose a writable folder with enough space") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _swap(new: Path, folder: Path) -> None:
    """Put ``new`` in place of ``folder``."""
    old = new.with_suffix(".old")
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


@torch.no_grad()
def draw_masks(path: Path, student: HFSamBackbone, size: int, teacher: Teacher, tiles: Tiles) -> None:
    """One row per held-out tile: the image with its boxes, the teacher's masks, the student's masks for those boxes.

    Args:
        path: PNG to write.
        student: The trained student.
        size: Side in pixels of what it sees.
        teacher: The teacher.
        tiles: Held-out tiles; the first few, evenly spaced, are shown.

    Raises:
        OutputError: the file cannot be written.
    """
    some = tiles.some(SHOWN_TILES)
    rows = [_row(some.images[i : i + 1].float() / 255, student, size, teacher) for i in range(len(some))]
    gap = np.full((6, rows[0].shape[1], 3), 255, dtype=np.uint8)
    stacked = [part for row in rows for part in (row, gap)][:-1]
    with atomic_path(path) as temporary:
        temporary.write_bytes(png(np.concatenate(stacked)))


def _row(view: Tensor, student: HFSamBackbone, size: int, teacher: Teacher) -> NDArray[np.uint8]:
    side, device = view.shape[-1], next(student.parameters()).device
    view = view.to(device)
    neck = teacher.neck(view)
    prompts = box_prompts(teacher.objects(view, neck), side=side, most=SHOWN_BOXES)
    wanted = teacher.decode(neck, prompts, side=side, multimask=False)[0]
    features = Features(neck=student.encode(resize_square(view, size)).neck)
    own = student.decode(features, scale_prompts(prompts, size / side).to(device))[0]
    masks = [resize_square(part.float(), side)[:, 0].cpu() > 0 for part in (wanted, own)]
    iou = float(mask_iou(masks[1], masks[0]).mean())
    image = (view[0].cpu().numpy() * 255).round().astype(np.uint8)
    boxes = prompts.boxes if prompts.boxes is not None else torch.zeros(0, 4)
    labels = [_box_labels(boxes, side), _mask_labels(masks[0]), _mask_labels(masks[1])]
    pictures = [overlay(Panel(title="", image=image, predicted=label), side=256) for label in labels]
    titles = (f"{len(boxes)} boxes", "teacher", f"student, IoU {iou:.2f}")
    columns = [titled(picture, title) for picture, title in zip(pictures, titles, strict=True)]
    gap = np.full((columns[0].shape[0], 6, 3), 255, dtype=np.uint8)
    return np.concatenate([part for column in columns for part in (column, gap)][:-1], axis=1)


def _mask_labels(masks: Tensor) -> NDArray[np.integer]:
    """(s, s) numbers from 1 of masks (n, s, s), small ones on top."""
    labels = np.zeros(masks.shape[1:], dtype=np.int32)
    for row in masks.flatten(1).sum(1).argsort(descending=True).tolist():
        labels[masks[row].numpy()] = row + 1
    return labels


def _box_labels(boxes: Tensor, side: int) -> NDArray[np.integer]:
    masks = torch.zeros(len(boxes), side, side, dtype=torch.bool)
    for row, box in enumerate(boxes.round().long().clamp(0, side - 1).tolist()):
        masks[row, box[1] : box[3] + 1, box[0] : box[2] + 1] = True
    return _mask_labels(masks)
