"""The four sets of the first-slice benchmark as tensors: what goes into a network and how its output is scored.

Pictures and slices are fitted into a square of ``size`` pixels (aspect kept, zeros right and below); predictions are
cut back, resized and scored on the grid of the file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from samgraft.recipes.config import AugmentConfig
from samgraft.recipes.instances import average_precision, border_target, instances_from_probabilities, match_instances
from samgraft.recipes.losses import IGNORE
from tests.benchmarks._data import Case
from tests.benchmarks._metrics import dice, iou

Forward = Callable[[Tensor], Tensor]
"""(B, 3, S, S) in [0, 1] -> class logits (B, K, S, S); for 3D networks (B, 1, D, H, W) -> (B, K, D, H, W)."""
SCAN = AugmentConfig(rotate=15, scale=0.25, shift=0.08, elastic=0.03)
AERIAL = AugmentConfig(flip_x=True, quarter_turns=True, rotate=20, scale=0.3, colour=0.1)


@dataclass(frozen=True, kw_only=True)
class SetSpec:
    """How one set is trained and scored, the same for every arm."""

    name: str
    size: int
    """Side of the network input in pixels."""
    classes: int
    """Output channels with background."""
    budget: float
    """Process seconds of training, data loading included."""
    headline: tuple[str, ...]
    """Metrics of the summary table."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    batch: int = 8
    volumetric: bool = False


SPECS = {
    spec.name: spec
    for spec in (
        SetSpec(
            name="hippocampus_mr", size=64, classes=3, budget=240, headline=("dice",), augment=SCAN, volumetric=True
        ),
        SetSpec(
            name="cardiac_mr",
            size=128,
            classes=2,
            budget=240,
            headline=("dice", "dice_patient", "dice_pooled"),
            augment=SCAN,
        ),
        SetSpec(name="nerve_us", size=128, classes=3, budget=240, headline=("dice", "dice_pooled"), augment=SCAN),
        SetSpec(
            name="buildings_banepa", size=256, classes=3, budget=240, headline=("iou", "ap50"), augment=AERIAL, batch=4
        ),
    )
}


def choose(cases: Sequence[Case], count: int | None, seed: int) -> list[Case]:
    """``count`` cases, one per patient in turn, in an order fixed by ``seed``; None takes all."""
    if count is None or count >= len(cases):
        return list(cases)
    order = np.random.default_rng(seed).permutation(len(cases))
    seen: dict[str, int] = {}
    ranked = []
    for place, index in enumerate(order):
        turn = seen[cases[index].id] = seen.get(cases[index].id, -1) + 1
        ranked.append((turn, place, int(index)))
    return [cases[i] for _, _, i in sorted(ranked)[:count]]


def planes(case: Case) -> Tensor:
    """Network pictures (N, 3, H, W): one for a picture, one per slice (with its two neighbours) for a volume."""
    if case.image.ndim == 3 and case.image.shape != (*case.label.shape, 3) and case.label.ndim == 3:
        padded = np.pad(case.image, ((1, 1), (0, 0), (0, 0)), mode="edge")
        return torch.from_numpy(np.stack([padded[:-2], padded[1:-1], padded[2:]], axis=1))
    return torch.from_numpy(np.ascontiguousarray(case.image.transpose(2, 0, 1)[None]))


def fitted(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """Height and width of a picture whose longer side becomes ``size``."""
    scale = size / max(shape)
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def letterbox(image: Tensor, size: int) -> Tensor:
    """(N, C, H, W) -> (N, C, size, size): longer side to ``size``, zeros right and below."""
    height, width = fitted((image.shape[2], image.shape[3]), size)
    scaled = functional.interpolate(image, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return functional.pad(scaled, (0, size - width, 0, size - height))


def letterbox_label(label: Tensor, size: int) -> Tensor:
    """(N, H, W) -> (N, size, size), nearest; ``IGNORE`` outside."""
    height, width = fitted((label.shape[1], label.shape[2]), size)
    scaled = functional.interpolate(label[:, None].double(), (height, width), mode="nearest-exact")[:, 0].long()
    return functional.pad(scaled, (0, size - width, 0, size - height), value=IGNORE)


def unletterbox(logits: Tensor, shape: tuple[int, int]) -> Tensor:
    """(N, K, size, size) -> (N, K, H, W): undo :func:`letterbox`."""
    height, width = fitted(shape, logits.shape[-1])
    return functional.interpolate(logits[:, :, :height, :width], shape, mode="bilinear", align_corners=False)


def targets(spec: SetSpec, case: Case) -> Tensor:
    """Training classes (N, S, S); instance maps become background, interior, border."""
    label = torch.from_numpy(case.label.astype(np.int64))
    small = letterbox_label(label if label.ndim == 3 else label[None], spec.size)
    if "ap50" not in spec.headline:
        return small
    return torch.stack([torch.from_numpy(border_target(s.numpy(), border=2).astype(np.int64)) for s in small])


def tensors(spec: SetSpec, cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
    """All training pictures (N, 3, S, S) and targets (N, S, S)."""
    images = torch.cat([letterbox(planes(case), spec.size) for case in cases])
    return images.contiguous(), torch.cat([targets(spec, case) for case in cases])


@torch.no_grad()
def probabilities(forward: Forward, spec: SetSpec, case: Case, *, three: bool) -> NDArray[np.float32]:
    """Class probabilities on the grid of the file: (K, H, W) or (K, D, H, W)."""
    if three:
        volume = torch.from_numpy(case.image)[None, None]
        pads = [(-n) % 8 for n in volume.shape[2:]]
        padded = functional.pad(volume, (0, pads[2], 0, pads[1], 0, pads[0]))
        depth, height, width = volume.shape[2:]
        return forward(padded)[0, :, :depth, :height, :width].softmax(0).numpy()
    inputs = letterbox(planes(case), spec.size)
    logits = torch.cat([forward(part) for part in inputs.split(16)])
    shape = (case.label.shape[-2], case.label.shape[-1])
    found = unletterbox(logits, shape).softmax(1)
    return found[0].numpy() if case.label.ndim == 2 else found.transpose(0, 1).numpy()


def evaluate(
    forward: Forward, spec: SetSpec, cases: Sequence[Case], *, three: bool, masks: list[NDArray[np.int32]] | None = None
) -> dict[str, float | int | str]:
    """Scores over cases and their number; predicted label maps are appended to ``masks``.

    "dice" averages over pictures or volumes, "dice_patient" over patients with all their slices counted together (where
    patients have several), and "dice_pooled" counts all cases together.
    """
    rows, matches, pooled = [], [], np.zeros((spec.classes - 1, 2))
    patients: dict[str, NDArray[np.float64]] = {}
    kept: list[NDArray[np.int32]] = [] if masks is None else masks
    for case in cases:
        found = probabilities(forward, spec, case, three=three)
        if "ap50" in spec.headline:
            labels, scores = instances_from_probabilities(found, min_area=64)
            matches.append(match_instances(case.name, labels, scores, case.label))
            foreground = 1 - found[0] > 0.5
            rows.append([iou(foreground, case.label > 0)])
            pooled[0] += (foreground & (case.label > 0)).sum(), (foreground | (case.label > 0)).sum()
            kept.append(labels)
            continue
        labels = found.argmax(0).astype(np.int32)
        pairs = [(labels == k, case.label == k) for k in range(1, spec.classes)]
        rows.append([dice(p, t) for p, t in pairs])
        counts = np.array([(2 * (p & t).sum(), p.sum() + t.sum()) for p, t in pairs], dtype=np.float64)
        pooled += counts
        patients[case.id] = patients.get(case.id, 0) + counts
        kept.append(labels)
    overlap = "iou" if matches else "dice"
    whole = pooled[: 1 if matches else None]
    values: dict[str, float | int | str] = {"n": len(cases)}
    values[overlap] = float(np.mean(rows))
    values[f"{overlap}_pooled"] = float((whole[:, 0] / np.maximum(whole[:, 1], 1)).mean())
    if matches:
        values["ap50"] = float(average_precision(matches))
    else:
        if len(patients) < len(cases):
            by_patient = [(c[:, 0] / c[:, 1])[c[:, 1] > 0] for c in patients.values()]
            values["dice_patient"] = float(np.concatenate(by_patient).mean())
        values |= {f"{overlap}_class{k + 1}": float(v) for k, v in enumerate(np.mean(rows, axis=0))}
    return values
