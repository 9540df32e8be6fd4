"""The training task: a frozen backbone with grafts and a head, trained with Dice + cross-entropy, judged case by case.

Two kinds: "semantic" (a class per pixel) and "instance" (maps per pixel that separate objects are made of). What the
network's channels mean, learn and become is said by ``samgraft.recipes.representations``. Metrics are of validation
cases only, on the case's own grid.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard

from samgraft.adapters.backbones.base import Backbone, Features
from samgraft.adapters.graft import Grafted
from samgraft.errors import CheckpointError, ConfigError
from samgraft.recipes.assemble import build_network
from samgraft.recipes.augment import augment, augment_views
from samgraft.recipes.cache.features import CachedEncoder
from samgraft.recipes.cache.store import FeatureStore
from samgraft.recipes.config import AugmentConfig, FitConfig
from samgraft.recipes.data.cases import CaseArrays
from samgraft.recipes.data.slabs import flat_slabs
from samgraft.recipes.inference import find_instances, predict_instances, predict_semantic
from samgraft.recipes.instances import InstanceMatch, average_precision, match_instances, mean_matched_iou
from samgraft.recipes.losses import IGNORE
from samgraft.recipes.metrics import MetricTable, Score, Summary, overlap, score_case
from samgraft.recipes.optimiser import make_optimizer
from samgraft.recipes.ranks import ALONE, current, from_first, gather, sum_over_ranks
from samgraft.recipes.report import Panel
from samgraft.recipes.representations import Maps, ObjectMaps, WindowObjects, head_of, represent
from samgraft.recipes.weak_learning.judge import agreement_summaries, judge
from samgraft.recipes.weak_learning.learning import WeakLearning

INSTANCE_CLASSES = ("interior", "border")
CACHED_VIEWS = 32
"""Views of an image where the features of a frozen encoder are kept; few are soon learned by heart."""
_SAMPLES = 8
_MOST_PANEL = 1536
"""Pixels along a side of a picture that is kept for the report."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseResult:
    """What the validation of one case gave; processes exchange these."""

    number: int
    """Place of the case among all validation cases."""
    scores: list[Score]
    match: InstanceMatch | None = None
    panel: Panel | None = None
    agreement: tuple[str, dict[str, float]] | None = None
    """Without masks: group of the case, and its figures."""


class SegmentationTask(lightning.LightningModule):
    """Trains what is grafted onto a frozen backbone.

    Args:
        config: The whole run.
        class_names: Foreground classes in order of label value.
        size: Side of the network input.
        backbone: Ready backbone; None loads ``config.task.backbone``.
        grafted: Ready backbone with everything attached; ``backbone`` and the settings of grafts and head do not count.
    """

    def __init__(
        self,
        config: FitConfig,
        *,
        class_names: Sequence[str],
        size: int | None = None,
        backbone: Backbone | None = None,
        grafted: Grafted | None = None,
    ) -> None:
        """Attach grafts and head; loads the backbone if none is given."""
        super().__init__()
        self.config, self.class_names, self.size = config, tuple(class_names), size or config.data.size
        task = config.task
        channels = len(INSTANCE_CLASSES) if task.kind == "instance" else len(self.class_names)
        self.grafted = grafted or build_network(task, num_classes=channels, backbone=backbone)
        self.representation = represent(
            task.kind, head_of(self.grafted), classes=len(self.class_names), border=task.border
        )
        self.loss = self.representation.loss(task, reduce=sum_over_ranks)
        self.augmentation: AugmentConfig = config.augment
        self.encoder: CachedEncoder | None = None
        if config.train.cache:
            self.encoder = CachedEncoder(self.grafted, FeatureStore(limit_gb=config.train.cache_gb))
        self.weak: WeakLearning | None = None
        self.views = self._views()
        self.amplitudes: Tensor | None = None  # for augment.fourier; made when training begins
        self.randomness = torch.Generator().manual_seed(config.train.seed)
        self.began, self.elapsed = time.monotonic(), 0.0
        self.results: list[CaseResult] = []
        self.table = MetricTable()
        self.matches: list[InstanceMatch] = []
        self.panels: list[Panel] = []
        self.agreements: list[tuple[str, dict[str, float]]] = []
        self.summaries: list[Summary] = []

    def _views(self) -> int:
        """Different views of each training image; 0 for new ones every time, whose features are not worth keeping.

        Slabs begin at every slice, so there are too many of them for views that come back.
        """
        if self.augmentation.views is not None:
            return self.augmentation.views
        kept = self.encoder is not None and self.grafted.frozen_encoder() and self.config.data.slab is None
        return CACHED_VIEWS if kept else 0

    @property
    def num_classes(self) -> int:
        """Foreground classes of the data set."""
        return len(self.class_names)

    def configure_model(self) -> None:
        """Split the tensors over processes where the strategy has a mesh of them (FSDP); called by Lightning."""
        mesh = self.device_mesh
        if mesh is not None and not isinstance(self, FSDPModule):
            fully_shard(self, mesh=mesh["data_parallel"])

    def forward(self, image: Tensor, label: Tensor | None = None) -> Any:
        """The loss of a batch with labels; without them what the network says of it.

        Everything comes through here, since strategies that split the weights over processes bring them together when
        this is called.

        Args:
            image: (B, 3, S, S) in [0, 1], or slabs (B, 3, D, S, S), whose B * D slices are then what B means below.
            label: (B, S, S) classes or instance numbers, with ``IGNORE``; of slabs (B, D, S, S). With weak or partial
                labels, places in their tiles.

        Returns:
            A scalar; or logits (B, K, s, s) of the representation, such as class logits with background first; or
            ``FoundObjects``, where objects are found window by window.
        """
        image, label, depth = flat_slabs(image, label)
        representation, there = self.representation, image.to(self.device)
        features = self._features(there, depth)
        if label is not None and self.weak is not None:
            return self.weak.learn(representation, self.loss, self.grafted, features, there, label)
        if label is not None:
            return representation.learn(self.loss, self.grafted, features, there, label)
        if isinstance(representation, WindowObjects):
            return representation.find(self.grafted, features or self.grafted.encode(there), there)
        if not isinstance(representation, Maps):
            raise ConfigError(f"{type(representation).__name__} gives neither maps nor objects")
        return representation.logits(self.grafted.predict(there, features=features))

    def _features(self, image: Tensor, depth: int) -> Features | None:
        """Features of ``image``, kept ones where those are worth keeping; None to let the network compute them."""
        if self.encoder is not None and (self.views or not self.training):
            return self.encoder(image, depth)
        return None if depth == 1 else self.grafted.encode(image, depth=depth)

    def leaves_unused(self) -> bool:
        """Whether some attached parameter gets no gradient, since the head does not look where it lies.

        Heads that find objects are taken to leave some: what they look at depends on what they find.
        """
        if not isinstance(self.representation, Maps):
            return True
        trained, mode = [p for p in self.grafted.trainable_parameters() if p.requires_grad], self.training
        image = torch.zeros(1, 3, self.size, self.size, device=self.device)
        self.eval()
        try:
            with torch.enable_grad():
                total = self.grafted.predict(image).logits.sum()
            found = torch.autograd.grad(total, trained, allow_unused=True)
        finally:
            self.train(mode)
        return any(gradient is None for gradient in found)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Augment, predict, compare; the loss is that of the batch of all processes, on every process.

        A penalty of the grafts (balance of a gate) is added; it is of the images of this process.
        """
        del index
        if self.config.train.minutes is not None:  # one clock: the rate and the last step follow from it
            self.elapsed = from_first(time.monotonic() - self.began)
        image, label = batch
        share = current()
        image = image.float() / 255
        how: Any = {"share": share, "amplitudes": self.amplitudes}
        if self.views:
            image, label = augment_views(image, label, self.randomness, self.augmentation, self.views, **how)
        else:
            image, label = augment(image, label, self.randomness, self.augmentation, **how)
        loss: Tensor = self(image, label)
        penalty = self.grafted.penalty()
        if penalty is not None:
            self.log("train/penalty", penalty)
            loss = loss + penalty
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self.results, self.table, self.matches, self.panels, self.summaries = [], MetricTable(), [], [], []
        self.agreements = []

    def validation_step(self, case: CaseArrays | None, index: int) -> None:
        """Predict a case at its own geometry and score it; None where this process has no case left.

        Cases are dealt in turn (see ``SegmentationData``), except under FSDP, where each process sees all of them.
        """
        if case is None:
            return
        part = ALONE if self.config.train.strategy == "fsdp" else current()
        instances = self.representation.kind == "instance"
        validate = self._validate_instances if instances else self._validate_semantic
        self.results.append(validate(case, index * part.world + part.rank))

    def _options(self) -> dict[str, Any]:
        data = self.config.data
        return {"size": self.size, "window": data.window, "overlap": data.overlap, "batch_size": data.batch_size}

    def _validate_semantic(self, case: CaseArrays, number: int) -> CaseResult:
        panel = None
        slab = {"slab": self.config.data.slab, "slab_overlap": self.config.data.slab_overlap}
        predicted = predict_semantic(self, case, **self._options(), **slab)
        if case.weak is not None:
            return self._validate_weak(case, number, predicted)
        named, known = enumerate(self.class_names, start=1), case.annotated
        classes = {label: name for label, name in named if known is None or label in known}
        rows = score_case(case.id, predicted, case.labels, classes, group=case.group, spacing=case.spacing)
        if number < _SAMPLES:
            middle = int((case.labels > 0).sum(axis=(1, 2)).argmax())
            caption = ", ".join(f"{r.class_name} Dice {r.dice:.2f}" for r in rows)
            title = case.id if case.axis is None else f"{case.id}, slice {middle}"
            panel = self._panel(case, middle, predicted[middle], title, caption)
        return CaseResult(number=number, scores=rows, panel=panel)

    def _validate_instances(self, case: CaseArrays, number: int) -> CaseResult:
        panel = None
        predicted, scores = self.objects(case)
        if case.weak is not None:
            return self._validate_weak(case, number, predicted[None])
        truth = case.labels[0]
        match = match_instances(case.id, predicted, scores, truth)
        name = self.class_names[0] if self.class_names else "object"
        known = truth != IGNORE
        rows = score_case(case.id, (predicted > 0).astype(int), _known_foreground(truth), {1: name}, group=case.group)
        if number < _SAMPLES:
            hits = int((match.best_iou >= 0.5).sum())
            iou = overlap((predicted > 0) & known, (truth > 0) & known)[1]
            caption = f"{hits} of {match.num_truth} objects at IoU 0.5, {len(match.scores)} predicted; IoU {iou:.2f}"
            panel = self._panel(case, 0, predicted, case.id, caption)
        return CaseResult(number=number, scores=rows, match=match, panel=panel)

    def _validate_weak(self, case: CaseArrays, number: int, predicted: NDArray[np.integer]) -> CaseResult:
        """Agreement of (n, h, w) labels with weak ones; the panel shows pseudo-labels where others show the truth."""
        figures = judge(case, predicted, instance=self.config.task.kind == "instance", classes=self.num_classes)
        panel = None
        if number < _SAMPLES:
            middle = int((case.labels > 0).sum(axis=(1, 2)).argmax())
            caption = "white: pseudo-labels; " + ", ".join(f"{k} {v:.2f}" for k, v in figures.items())
            panel = self._panel(case, middle, predicted[middle], case.id, caption)
        return CaseResult(number=number, scores=[], panel=panel, agreement=(case.group, figures))

    def objects(self, case: CaseArrays) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Labels (h, w) 1..n and scores (n,) of a picture; for ``task.kind: instance``."""
        options = self._options() | {"min_area": self.config.task.min_area}
        representation = self.representation
        if isinstance(representation, WindowObjects):
            return find_instances(self, case, **options)
        if isinstance(representation, ObjectMaps):
            return predict_instances(self, case, representation=representation, **options)
        raise ConfigError(f"{type(representation).__name__} gives no objects; train with task.kind instance")

    def _panel(self, case: CaseArrays, index: int, predicted: Any, title: str, caption: str) -> Panel:
        image = case.picture(index)
        image = image[1] if case.neighbours and case.image.shape[1] == 1 else image
        step = -(-max(case.plane) // _MOST_PANEL)
        instances = self.config.task.kind == "instance"
        return Panel(
            title=title,
            image=image[..., ::step, ::step],
            predicted=predicted[::step, ::step],
            truth=case.labels[index, ::step, ::step],
            instances=instances,
            caption=caption,
        )

    def _collect(self) -> None:
        """Bring the results of all processes into the order of the cases, each case once."""
        found = {result.number: result for part in gather(self.results) for result in part}
        for number in sorted(found):
            result = found[number]
            self.table.add(result.scores)
            self.matches += [] if result.match is None else [result.match]
            self.panels += [] if result.panel is None else [result.panel]
            self.agreements += [] if result.agreement is None else [result.agreement]

    def on_validation_epoch_end(self) -> None:
        """Sum up and log ``val/...``, the same on every process."""
        self._collect()
        if self.agreements:
            self.summaries = agreement_summaries([one for _, one in self.agreements], [g for g, _ in self.agreements])
            for summary in self.summaries:
                self.log(f"val/{summary.name}", summary.mean, prog_bar=summary.name == "agreement", batch_size=1)
            return
        self.summaries = self.table.summaries()
        if self.config.task.kind == "instance":
            n = len(self.matches)
            figures = {"ap50": average_precision(self.matches), "object_iou": mean_matched_iou(self.matches)}
            extra = [Summary(name=k, mean=v, std=math.nan, n=n) for k, v in figures.items()]
            self.summaries = extra + self.summaries
        values = {s.name.removesuffix("/mean"): s.mean for s in self.summaries}
        if self.config.task.kind == "instance" and math.isnan(values["ap50"]):
            values["ap50"] = 0.0
        for name, value in values.items():
            self.log(f"val/{name}", value, prog_bar=name in ("dice", "ap50"), batch_size=1)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The chosen optimiser (no decay on vectors), linear warm-up, cosine; by steps or by time, what ends first."""
        task = self.config.task
        optimizer = make_optimizer(
            task.optimizer,
            self.grafted.trainable_parameters(),
            lr=task.lr,
            weight_decay=task.weight_decay,
            factors=self.grafted.rate_factors(),
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Attached parts come in evaluation mode; training wants their dropout. The backbone stays as it is.

        Amplitudes for ``augment.fourier`` are collected where that is asked for.
        """
        self.train()
        data = getattr(self.trainer, "datamodule", None)
        if self.augmentation.enabled and self.augmentation.fourier and data is not None:
            self.amplitudes = data.amplitudes(self.augmentation)

    def on_train_start(self) -> None:
        """Start the clock; let processes drop different things (dropout is the only draw from the global generator)."""
        self.began = time.monotonic()
        part = current()
        if part.world > 1:
            torch.manual_seed(self.config.train.seed + part.rank)

    def progress(self, step: int) -> float:
        """Share of the training that is done, by steps or by time, what is further."""
        share = step / self.config.train.steps
        if self.config.train.minutes is not None:
            share = max(share, self.elapsed / (60 * self.config.train.minutes))
        return share

    def _rate(self, step: int) -> float:
        """Factor on the peak rate."""
        progress = self.progress(step)
        warmup = self.config.task.warmup
        if progress < warmup:
            return progress / warmup + 1e-3
        share = min(1.0, (progress - warmup) / (1 - warmup))
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the random numbers; the tensors are the attached parts only (see ``Grafted``)."""
        checkpoint["randomness"] = self.randomness.get_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the file holds exactly the attached parts.

        Raises:
            CheckpointError: names that are missing or unknown, or values that are not finite.
        """
        state = checkpoint["state_dict"]
        keys, wanted = set(state), set(self.state_dict())
        if keys != wanted:
            odd = sorted(keys ^ wanted)[:5]
            raise CheckpointError(
                f"checkpoint does not fit this configuration; differing tensors: {odd}; resume with the same config"
            )
        bad = [k for k, v in state.items() if not torch.isfinite(v).all()]
        if bad:
            raise CheckpointError(f"checkpoint has non-finite values in {bad[:5]}; resume from an earlier one")
        if "randomness" in checkpoint:
            self.randomness.set_state(checkpoint["randomness"].cpu())


def _known_foreground(truth: Any) -> Any:
    """Instance map to 0/1, with ``IGNORE`` kept."""
    return (truth > 0).astype(int) + (truth == IGNORE) * IGNORE
