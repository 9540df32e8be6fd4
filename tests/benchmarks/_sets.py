"""Real sets as tensors: what goes into a network and how its output is scored.

Pictures and slices, or with ``window`` windows of them, are fitted into a square of ``size`` pixels (aspect kept, zeros
right and below); predictions are cut back, resized and scored on the grid of the file.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from samgraft.recipes.config import AugmentConfig
from samgraft.recipes.data.fit import blend_weight, windows
from samgraft.recipes.instances import average_precision, border_target, instances_from_probabilities, match_instances
from samgraft.recipes.losses import IGNORE
from tests.benchmarks._data import Case, cases, picture
from tests.benchmarks._metrics import dice, iou

Forward = Callable[[Tensor], Tensor]
"""(B, 3, S, S) in [0, 1] -> class logits (B, K, S, S); for 3D networks (B, 1, D, H, W) -> (B, K, D, H, W)."""
SCAN = AugmentConfig(rotate=15, scale=0.25, shift=0.08, elastic=0.03)
AERIAL = AugmentConfig(flip_x=True, quarter_turns=True, rotate=20, scale=0.3, colour=0.1)
FUNDUS = AugmentConfig(
    flip_x=True, flip_y=True, quarter_turns=True, rotate=30, scale=0.2, shift=0.05, colour=0.1, noise=0.02, blur=0.7
)
CELLS = AugmentConfig(
    flip_x=True, flip_y=True, quarter_turns=True, rotate=20, scale=0.3, gamma=0.4, contrast=0.3, colour=0.15
)
"""Both near those of the packaged recipes retina_vessels and nuclei."""


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
    window: int | None = None
    """Native side of windows; None for whole pictures."""
    full_resolution: bool = False
    """Logits of the class-token decoder at the size of the input."""
    border: int = 2
    """Rim of an object in training targets, pixels of the input; instance sets only."""
    min_area: int = 64
    """Predicted objects with fewer pixels of the file are dropped; instance sets only."""
    class_weights: tuple[float, ...] | None = None
    """Weights of cross-entropy, background first."""

    @property
    def instances(self) -> bool:
        """Whether objects are counted."""
        return "ap50" in self.headline


FIRST_SLICE = ("hippocampus_mr", "cardiac_mr", "nerve_us", "buildings_banepa")
"""Sets of the first-slice benchmark."""
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
        SetSpec(
            name="nuclei",
            size=128,
            window=128,
            classes=3,
            budget=240,
            headline=("ap50", "iou"),
            augment=CELLS,
            batch=4,
            full_resolution=True,
            border=1,
            min_area=10,
            class_weights=(1.0, 1.0, 2.0),
        ),
        SetSpec(
            name="retina_vessels",
            size=128,
            window=128,
            classes=2,
            budget=240,
            headline=("dice", "dice_pooled"),
            augment=FUNDUS,
            batch=4,
            full_resolution=True,
        ),
    )
}


def patient(case: Case) -> str:
    """Who is in the picture."""
    return case.id


def staining(case: Case) -> str:
    """Bright field or fluorescence, which is dark.

    All validation pictures of nuclei are bright, and two thirds of the training pictures dark: five drawn blindly are
    all dark with seed 0, and then every network scores zero.
    """
    return "bright" if float(case.image.mean()) > 0.5 else "dark"


SPREAD_OVER: dict[str, Callable[[Case], str]] = {"nuclei": staining}
"""Set -> what a few training cases are spread over; patients where none stands here."""


def choose(cases: Sequence[Case], count: int | None, seed: int, group: Callable[[Case], str] = patient) -> list[Case]:
    """``count`` cases, one per patient (or ``group``) in turn, in an order fixed by ``seed``; None takes all."""
    if count is None or count >= len(cases):
        return list(cases)
    order = np.random.default_rng(seed).permutation(len(cases))
    seen: dict[str, int] = {}
    ranked = []
    for place, index in enumerate(order):
        name = group(cases[index])
        turn = seen[name] = seen.get(name, -1) + 1
        ranked.append((turn, place, int(index)))
    return [cases[i] for _, _, i in sorted(ranked)[:count]]


def training_cases(fraction: str) -> int | None:
    """Number of training cases as ``choose`` takes it; "all" is None."""
    return None if fraction == "all" else int(fraction)


def split(name: str, count: int | None, seed: int, *, tune: bool) -> tuple[list[Case], list[Case]]:
    """Training and scored cases. With ``tune`` every fifth training case or patient is scored; val is not read."""
    train, group = cases(name, "train"), SPREAD_OVER.get(name, patient)
    if not tune:
        return choose(train, count, seed, group), cases(name, "val")
    held = set(sorted({case.id for case in train})[::5])
    return choose([c for c in train if c.id not in held], count, seed, group), [c for c in train if c.id in held]


def planes(case: Case) -> Tensor:
    """Network pictures (N, 3, H, W): one for a picture, one per slice (with its two neighbours) for a volume."""
    if case.image.ndim == 3 and case.image.shape != (*case.label.shape, 3) and case.label.ndim == 3:
        padded = np.pad(case.image, ((1, 1), (0, 0), (0, 0)), mode="edge")
        return torch.from_numpy(np.stack([padded[:-2], padded[1:-1], padded[2:]], axis=1))
    return picture(case)[None]


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


def targets(spec: SetSpec, label: Tensor) -> Tensor:
    """Training classes (N, S, S) of labels (N, H, W); instance maps become background, interior, border."""
    small = letterbox_label(label, spec.size)
    if not spec.instances:
        return small
    found = [border_target(picture.numpy(), border=spec.border).astype(np.int64) for picture in small]
    return torch.stack([torch.from_numpy(target) for target in found])


def tensors(spec: SetSpec, cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
    """All training pictures or windows (N, 3, S, S) and targets (N, S, S)."""
    images, labels = [], []
    for case in cases:
        picture, label = planes(case), torch.from_numpy(case.label.astype(np.int64))
        label = label if label.ndim == 3 else label[None]
        for rows, cols in windows((label.shape[1], label.shape[2]), spec.window, 0.0):
            images.append(letterbox(picture[..., rows, cols], spec.size))
            labels.append(targets(spec, label[..., rows, cols]))
    return torch.cat(images).contiguous(), torch.cat(labels)


def _whole(forward: Forward, spec: SetSpec, pictures: Tensor) -> Tensor:
    """Class probabilities (N, K, H, W) of pictures (N, 3, H, W)."""
    logits = torch.cat([forward(part) for part in letterbox(pictures, spec.size).split(16)])
    return unletterbox(logits, (pictures.shape[2], pictures.shape[3])).softmax(1)


def _blended(forward: Forward, spec: SetSpec, pictures: Tensor) -> Tensor:
    """The same from windows that overlap no more than they must, blended there; one row of them at a time."""
    places = windows((pictures.shape[2], pictures.shape[3]), spec.window, 0.0)
    total = torch.zeros(len(pictures), spec.classes, *pictures.shape[2:])
    mass = torch.zeros(pictures.shape[2:])
    for row in _grouped(places):
        found = _whole(forward, spec, torch.cat([pictures[..., rows, cols] for rows, cols in row]))
        for (rows, cols), part in zip(row, found.split(len(pictures)), strict=True):
            weight = blend_weight(part.shape[2], part.shape[3])
            total[..., rows, cols] += part * weight
            mass[rows, cols] += weight
    return total / mass


def _grouped(places: Sequence[tuple[slice, slice]]) -> Iterator[list[tuple[slice, slice]]]:
    """Windows with the same rows, which have the same shape."""
    for start in dict.fromkeys(rows.start for rows, _ in places):
        yield [place for place in places if place[0].start == start]


@torch.no_grad()
def probabilities(forward: Forward, spec: SetSpec, case: Case, *, three: bool) -> NDArray[np.float32]:
    """Class probabilities on the grid of the file: (K, H, W) or (K, D, H, W)."""
    if three:
        volume = torch.from_numpy(case.image)[None, None]
        pads = [(-n) % 8 for n in volume.shape[2:]]
        padded = functional.pad(volume, (0, pads[2], 0, pads[1], 0, pads[0]))
        depth, height, width = volume.shape[2:]
        return forward(padded)[0, :, :depth, :height, :width].softmax(0).numpy()
    found = (_whole if spec.window is None else _blended)(forward, spec, planes(case))
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
        if spec.instances:
            labels, scores = instances_from_probabilities(found, min_area=spec.min_area)
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
