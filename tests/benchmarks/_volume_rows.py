"""What the benchmark of volumes compares, and how one row is trained and scored: data, networks, metrics in mm."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from monai.networks.nets import SwinUNETR, UNet
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import samgraft
from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.decoders.base import DecoderConfig
from samgraft.adapters.decoders.class_tokens import ClassTokensConfig
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import LoraConfig
from samgraft.adapters.grafts.base import GraftConfig
from samgraft.domains.segmentation import Segmentation
from samgraft.recipes.augment import augment
from samgraft.recipes.config import AugmentConfig
from samgraft.recipes.data.slabs import Slabs, slab_maps
from samgraft.recipes.engine.flipped import FlippedResult
from samgraft.recipes.engine.propagated import VolumeOptions
from samgraft.recipes.engine.self_prompted import SLICES, carried
from samgraft.recipes.losses import IGNORE, SegmentationLoss
from samgraft.recipes.representations.classes import class_probabilities
from samgraft.volumetric.grafts import Adapter3dsamConfig, MaSamConfig, SdTransConfig
from samgraft.volumetric.heads import Detail3dConfig, Mla3dConfig, ProgressiveConfig
from tests.benchmarks._arms import DROPOUT, count
from tests.benchmarks._backbone import open_backbone
from tests.benchmarks._data import Case, cut_axis, volume_file
from tests.benchmarks._graft_rows import KEY, bundle_mb, short_hash, state_of
from tests.benchmarks._sets import SCAN, letterbox, letterbox_label, planes, split, unletterbox
from tests.benchmarks._steps import Extra
from tests.benchmarks._surface import mean_scores, surface_scores
from tests.benchmarks._train import Optimiser, augment_volume, batches, descend

Kind = Literal["slices", "neighbours", "slabs"]
Volume = tuple[Tensor, Tensor]
"""Image (n, 1, S, S) in [0, 1] and classes (n, S, S) with ``IGNORE``."""
Forward = Callable[[Tensor], Tensor]
"""(B, C, D, S, S) in [0, 1] -> class logits (B, K, D, S, S)."""


@dataclass(frozen=True, kw_only=True)
class VolumeSpec:
    """How one set is trained and scored, the same for every row."""

    name: str
    size: int
    """Side S of a fitted slice."""
    classes: int
    """Output channels with background."""
    slab: int
    """Slices D of a slab."""
    isotropic: bool
    """Augmentation turns volumes about all axes; else slices in their plane only."""
    depth_patch: int
    """Slices of a token of adapter_3dsam, so that tokens are about as deep as they are wide."""
    depth_halvings: int
    """Of detail_3d: slices that are thin can be halved as often as rows and columns."""
    augment: AugmentConfig = field(default_factory=lambda: SCAN)
    slices: int = 16
    """Slices per step of a network that takes them one by one."""
    foreground: float = 0.67
    """Share of slabs or slices that are drawn to hold foreground."""


TUMOUR = replace(SCAN, flip_x=True, shift=0.1)
VOLUMES = {
    spec.name: spec
    for spec in (
        VolumeSpec(name="hippocampus_mr", size=64, classes=3, slab=32, isotropic=True, depth_patch=4, depth_halvings=2),
        *(
            VolumeSpec(
                name=name,
                size=128,
                classes=2,
                slab=16,
                isotropic=False,
                depth_patch=2,
                depth_halvings=1,
                augment=TUMOUR,
            )
            for name in ("sarcoma_mr", "sarcoma_ct")
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class VolumeRow:
    """One line of the table: grafts and head on the frozen backbone, or a network from scratch."""

    kind: Kind = "slabs"
    grafts: tuple[GraftConfig, ...] = ()
    head: DecoderConfig | None = None
    """Its number of classes is that of the set; None for a network from scratch."""
    scratch: str = ""
    lr: float = 2e-3
    depth: int | None = None
    """Slices of a slab; None: the set's."""
    shown: int = 0
    """Slices of the largest piece of every class that are shown to the frozen decoder and carried; 0 for none."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, for the hash."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in ("kind", "scratch", "lr", "depth")}
        head = None if self.head is None else self.head.to_dict()
        plain |= {"shown": self.shown} if self.shown else {}
        return plain | {"grafts": [graft.to_dict() for graft in self.grafts], "head": head}


TOKENS = ClassTokensConfig(dropout=DROPOUT)
DETAIL = Detail3dConfig(dropout=DROPOUT)
ROWS: dict[str, VolumeRow] = {
    "slices: lora + class_tokens": VolumeRow(kind="slices", grafts=(LoraConfig(),), head=TOKENS),
    "2.5D: lora + class_tokens": VolumeRow(kind="neighbours", grafts=(LoraConfig(),), head=TOKENS),
    "slices: lora + class_tokens, carried": VolumeRow(kind="slices", grafts=(LoraConfig(),), head=TOKENS, shown=SLICES),
    "ma_sam + progressive": VolumeRow(grafts=(MaSamConfig(),), head=ProgressiveConfig()),
    "ma_sam + progressive, carried": VolumeRow(grafts=(MaSamConfig(),), head=ProgressiveConfig(), shown=SLICES),
    "ma_sam + class_tokens": VolumeRow(grafts=(MaSamConfig(),), head=TOKENS),
    "sd_trans + class_tokens": VolumeRow(grafts=(SdTransConfig(),), head=TOKENS),
    "adapter_3dsam + mla_3d": VolumeRow(grafts=(Adapter3dsamConfig(),), head=Mla3dConfig()),
    "frozen + detail_3d": VolumeRow(head=DETAIL),
    "lora + detail_3d": VolumeRow(grafts=(LoraConfig(),), head=DETAIL),
    "ma_sam + detail_3d": VolumeRow(grafts=(MaSamConfig(),), head=DETAIL),
    "adapter_3dsam + detail_3d": VolumeRow(grafts=(Adapter3dsamConfig(),), head=DETAIL),
    "scratch: UNet": VolumeRow(scratch="unet"),
    "scratch: SwinUNETR": VolumeRow(scratch="swinunetr", lr=1e-3, depth=32),
}


@dataclass(kw_only=True, eq=False)
class Network:
    """A row ready for training."""

    forward: Forward
    trained: list[nn.Parameter]
    module: nn.Module
    factors: Mapping[nn.Parameter, float]
    penalty: Callable[[], Tensor | None]
    grafted: Any = None


def build(row: VolumeRow, spec: VolumeSpec, backbone: HFSamBackbone | None) -> Network:
    """Create the network of a row."""
    if row.head is None:
        module = scratch(row.scratch, spec)
        trained = list(module.parameters())
        return Network(forward=module, trained=trained, module=module, factors={}, penalty=lambda: None)
    if backbone is None:
        raise ValueError("a row with grafts needs a backbone")
    grafts, head = of_set(row, spec)
    grafted = attach(backbone, grafts, decoder=head)

    def forward(image: Tensor) -> Tensor:
        slabs, depth = len(image), image.shape[2]
        flat = image.transpose(1, 2).flatten(0, 1).expand(-1, 3, -1, -1)
        features = grafted.encode(flat, depth=depth)
        logits = grafted.predict(flat, features=features).logits
        logits = functional.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)
        return logits.unflatten(0, (slabs, depth)).transpose(1, 2)

    return Network(
        forward=forward,
        trained=grafted.trainable_parameters(),
        module=grafted,
        factors=grafted.rate_factors(),
        penalty=grafted.penalty,
        grafted=grafted,
    )


def of_set(row: VolumeRow, spec: VolumeSpec) -> tuple[list[GraftConfig], DecoderConfig]:
    """Grafts and head of a row, with what follows from the set."""
    depth = {"depth_patch": spec.depth_patch}
    grafts = [replace(g, **depth) if isinstance(g, Adapter3dsamConfig) else g for g in row.grafts]
    values: dict[str, Any] = {"num_classes": spec.classes - 1}
    if isinstance(row.head, Detail3dConfig):
        values["depth_halvings"] = spec.depth_halvings
    if row.head is None:
        raise ValueError("a network from scratch has no head")
    return grafts, replace(row.head, **values)


def scratch(name: str, spec: VolumeSpec) -> nn.Module:
    """A 3D network of MONAI with random weights."""
    if name == "unet":
        return UNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=spec.classes,
            channels=(16, 32, 64, 128),
            strides=(2, 2, 2),
            num_res_units=1,
            norm=("INSTANCE", {"affine": True}),
        )
    return SwinUNETR(in_channels=1, out_channels=spec.classes, feature_size=12)


def stacks(spec: VolumeSpec, cases: Sequence[Case], kind: Kind) -> list[Volume]:
    """Slices of every case, fitted into squares; three channels where neighbours are channels."""
    found = []
    for case in cases:
        pictures = planes(case) if kind == "neighbours" else torch.from_numpy(case.image)[:, None]
        label = torch.from_numpy(case.label.astype(np.int64))
        found.append((letterbox(pictures, spec.size), letterbox_label(label, spec.size)))
    return found


def drawn(
    volumes: Sequence[Volume], spec: VolumeSpec, kind: Kind, depth: int, generator: torch.Generator
) -> Iterator[Volume]:
    """Training batches without end: a slab (1, C, D, S, S) of one volume, or slices (N, C, 1, S, S) of any.

    Every volume comes once per round; a share of slabs and slices holds foreground where their volume has any.
    """
    order = (int(i) for batch in batches(len(volumes), 1, generator) for i in batch)
    while True:
        if kind == "slabs":
            image, label = _slab(volumes[next(order)], spec, depth, generator)
        else:
            picked = [_slab(volumes[next(order)], spec, 1, generator) for _ in range(spec.slices)]
            image, label = torch.cat([p[0] for p in picked]), torch.cat([p[1] for p in picked])
        if kind == "slabs" and spec.isotropic:
            yield augment_volume(image, label, generator, spec.augment)
        else:
            yield augment(image, label, generator, spec.augment)


def _slab(volume: Volume, spec: VolumeSpec, depth: int, generator: torch.Generator) -> Volume:
    """A random slab (1, C, D, S, S) with labels (1, D, S, S), ``IGNORE`` beyond the volume."""
    images, labels = volume
    cut = Slabs(count=len(images), slab=depth)
    first, last = cut.starts[0], max(cut.starts[0], len(images) - depth)
    filled = (labels > 0).flatten(1).any(dim=1).nonzero()[:, 0]
    if len(filled) and float(torch.rand((), generator=generator)) < spec.foreground:
        seed = int(filled[int(torch.randint(len(filled), (), generator=generator))])
        first, last = min(max(first, seed - depth + 1), last), max(min(last, seed), first)
    start = first + int(torch.randint(last - first + 1, (), generator=generator))
    chosen, inside = cut.slices(start), cut.inside(start)
    label = labels[chosen]
    label[: inside.start], label[inside.stop :] = IGNORE, IGNORE
    return images[chosen].transpose(0, 1)[None], label[None]


@torch.no_grad()
def predicted(forward: Forward, spec: VolumeSpec, case: Case, kind: Kind, depth: int) -> NDArray[np.int32]:
    """Classes (D, H, W) on the grid of the file, from overlapping slabs with blended logits, or slice by slice."""
    images, _ = stacks(spec, [case], kind)[0]
    if kind != "slabs":
        logits = torch.cat([forward(part[:, :, None])[:, :, 0] for part in images.split(16)])
        return unletterbox(logits, case.label.shape[1:]).argmax(1).numpy().astype(np.int32)
    cut = Slabs(count=len(images), slab=depth)

    def answers() -> Iterator[Tensor]:
        for start in cut.starts:
            yield forward(images[cut.slices(start)].transpose(0, 1)[None])[0].transpose(0, 1)

    square, place = (spec.size, spec.size), (slice(0, spec.size), slice(0, spec.size))
    maps = slab_maps(answers(), square, cut, [place], size=spec.size, maps=class_probabilities)
    plane = case.label.shape[1:]
    return np.stack([unletterbox(found[None], plane)[0].argmax(0).numpy() for found in maps]).astype(np.int32)


def drawn_anew(network: Network, spec: VolumeSpec, case: Case, labels: NDArray[np.int32], shown: int) -> NDArray[Any]:
    """The classes of a case (D, H, W) after the frozen decoder has carried them, by what the package does with a file.

    Args:
        network: Grafts on a backbone.
        spec: The set.
        case: Whose file is read; its labels are not.
        labels: What the network found.
        shown: Slices of each class that are shown.
    """
    scene = samgraft.open(volume_file(spec.name, case.id))
    axis = cut_axis(np.asarray(scene.grid.spacing))
    classes = {k: str(k) for k in range(1, spec.classes)}
    whole = np.ascontiguousarray(np.moveaxis(labels, 0, axis)).astype(np.uint8)
    found = Segmentation(labels=whole, grid=scene.grid, kind="semantic", classes=classes)
    known = FlippedResult(segmentation=found, signals={}, uncertainty=np.zeros(0, np.float32), axis=axis)
    return np.moveaxis(carried(scene, known, network.grafted, VolumeOptions(shown=shown)).labels, axis, 0)


def evaluate(
    network: Network, spec: VolumeSpec, cases: Sequence[Case], kind: Kind, depth: int, shown: int = 0
) -> dict[str, Any]:
    """Scores over cases and classes, and Dice of every case and class."""
    rows, each = [], {}
    for case in cases:
        labels = predicted(network.forward, spec, case, kind, depth)
        if shown:
            labels = drawn_anew(network, spec, case, labels, shown)
        for k in range(1, spec.classes):
            scores = surface_scores(labels == k, case.label == k, case.spacing or (1.0, 1.0, 1.0))
            rows.append(scores)
            each[f"{case.id} class {k}"] = round(scores["dice"], 4)
    return {"n": len(cases), **mean_scores(rows), "each": each}


def train(network: Network, data: Iterator[Volume], task: Mapping[str, Any], lr: float) -> dict[str, Any]:
    """Train for ``task["budget"]`` seconds of process time; what it took."""
    loss_of = SegmentationLoss()

    def objective(image: Tensor, label: Tensor) -> Tensor:
        label = label[:, None] if label.ndim == 3 else label
        loss, extra = loss_of(network.forward(image), label), network.penalty()
        return loss if extra is None else loss + extra

    network.module.train()
    memory, wall, begun = Extra(), time.perf_counter(), time.process_time()
    took = descend(
        objective,
        network.trained,
        data,
        Optimiser(lr=lr, batch=1),
        start=begun,
        deadline=begun + task["budget"],
        factors=network.factors,
    )
    seconds, waited = time.process_time() - begun, time.perf_counter() - wall
    idle = count([p for p in network.trained if p.grad is None])
    return took | {
        "seconds": seconds,
        "busy": seconds / waited,
        "seconds_per_step": seconds / max(1, int(took["steps"])),
        "extra_mb": memory.mb(),
        "without_gradient": idle,
    }


def one(
    backbone: HFSamBackbone | None, task: dict[str, Any], train_cases: list[Case], scored: list[Case]
) -> dict[str, Any]:
    """Build, train, score once."""
    spec, row = VOLUMES[task["set"]], ROWS[task["method"]]
    depth = row.depth or spec.slab
    before = None if backbone is None else state_of(backbone)
    torch.manual_seed(task["seed"])
    network = build(row, spec, backbone)
    generator = torch.Generator().manual_seed(task["seed"])
    data = drawn(stacks(spec, train_cases, row.kind), spec, row.kind, depth, generator)
    took = train(network, data, task, row.lr)
    network.module.eval()
    start = time.perf_counter()
    scores = evaluate(network, spec, scored, row.kind, depth, row.shown)
    found = {
        **{key: task[key] for key in KEY},
        **scores,
        **took,
        "metric": "dice",
        "lr": row.lr,
        "depth": depth,
        "trainable": count(network.trained),
        "total": count(list(network.module.parameters())),
        "adapter_mb": None if network.grafted is None else bundle_mb(network.grafted),
        "scoring_seconds": time.perf_counter() - start,
        "backbone_unchanged": True,
    }
    if network.grafted is not None and backbone is not None:
        network.grafted.detach()
        found["backbone_unchanged"] = state_of(backbone) == before
    return found


def many(group: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All rows of one (set, cases, seed); data are read once. A run that fails gives {"failed": ..., ``KEY``}."""
    first = group["tasks"][0]
    chosen, scored = split(first["set"], first["cases"], first["seed"], tune=first["tune"])
    backbone = open_backbone(group["backbone"])
    for task in group["tasks"]:
        own = backbone if ROWS[task["method"]].head is not None else None
        try:
            row = one(own, task, chosen, scored)
        except Exception as error:  # any method may be broken, and the others are to be measured all the same
            row = {key: task[key] for key in KEY} | {"failed": f"{type(error).__name__}: {error}"}
        if not row.get("backbone_unchanged"):
            backbone = open_backbone(group["backbone"])
        yield row | {"train_cases": len(chosen)}


def recipe_hash(spec: VolumeSpec) -> str:
    """Of the set's settings."""
    return short_hash(asdict(spec))
