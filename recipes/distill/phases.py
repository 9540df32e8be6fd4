"""The two phases as Lightning modules: what they share, and what a step of each is.

Every random choice of a step comes from a generator seeded by the run's seed, the phase and the step, so that a run
that was killed and resumed makes the same choices.

Source:
    Phase 1: MobileSAM, arXiv:2306.14289 (mean squared error of the image embedding, decoder untouched).
    Phase 2: EdgeSAM, arXiv:2312.06660 (teacher masks for prompts that follow the student's errors).
"""

import math
import time
from collections.abc import Iterable
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Features
from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.prompts.clicks import random_error_clicks, with_click
from samgraft.errors import CheckpointError
from samgraft.recipes.augment import augment, augment_views
from samgraft.recipes.distill.config import DistillConfig
from samgraft.recipes.distill.judge import Figures, Judge
from samgraft.recipes.distill.prompting import first_prompts, scale_prompts
from samgraft.recipes.distill.teacher import Teacher, resize_square


class Phase(lightning.LightningModule):
    """What both phases share: views, held-out figures, optimiser, schedule.

    Args:
        config: The run.
        student: The network; its parts are set to trainable here.
        student_size: Side in pixels of what the student sees.
        teacher: The frozen teacher.
        number: 1 or 2.
        steps: Optimiser steps of this phase.
        minutes: Wall time of this phase, or None.
        lr: Peak learning rate.

    Attributes:
        figures: Of the last validation.
        used: Seconds that this phase took before it was resumed.
    """

    def __init__(
        self,
        config: DistillConfig,
        student: HFSamBackbone,
        student_size: int,
        teacher: Teacher,
        *,
        number: int,
        steps: int,
        minutes: float | None,
        lr: float,
    ) -> None:
        """Mark what is trained."""
        super().__init__()
        self.config, self.student, self.student_size, self.teacher = config, student, student_size, teacher
        self.number, self.steps, self.minutes, self.lr = number, steps, minutes, lr
        student.checkpointing = config.checkpointing
        for parameter in student.sam.parameters():
            parameter.requires_grad_(False)
        for part in self.parts():
            part.requires_grad_(True)
        self.judge = Judge()
        self.figures: Figures | None = None
        self.used, self.began = 0.0, time.monotonic()

    def parts(self) -> Iterable[nn.Module]:
        """What this phase trains."""
        raise NotImplementedError

    def better(self, figures: Figures) -> float:
        """The figure by which the best student is kept; larger is better."""
        raise NotImplementedError

    def on_fit_start(self) -> None:
        """The teacher goes where the student is; the clock starts."""
        self.teacher.to(self.device)
        self.began = time.monotonic()

    def on_validation_start(self) -> None:
        """Forget the last validation."""
        self.teacher.to(self.device)
        self.judge = Judge()

    def validation_step(self, batch: Tensor, index: int) -> None:
        """Compare on held-out tiles (B, 3, S, S) uint8, unchanged."""
        del index
        self.judge.add(self.student, self.student_size, self.teacher, batch.float() / 255)

    def on_validation_epoch_end(self) -> None:
        """Sum up and show."""
        self.figures = self.judge.figures()
        self.log("error", self.figures.relative_error, prog_bar=True)
        self.log("iou", self.figures.mask_iou, prog_bar=True)

    def generator(self) -> torch.Generator:
        """Randomness of the current step."""
        state = np.random.SeedSequence([self.config.seed, self.number, self.global_step]).generate_state(2)
        return torch.Generator().manual_seed((int(state[0]) << 31) + int(state[1]))

    def view(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """Views (B, 3, S, S) in [0, 1] of tiles in bytes."""
        image = batch.float() / 255
        blank = torch.zeros((len(image), *image.shape[2:]), dtype=torch.uint8, device=image.device)
        if self.config.views == 0:
            return augment(image, blank, generator, self.config.augment)[0]
        if self.config.views == 1 and not self.config.augment.enabled:
            return image
        return augment_views(image, blank, generator, self.config.augment, self.config.views)[0]

    @property
    def keep(self) -> bool:
        """Whether a view comes again, so that its embedding is worth keeping."""
        return self.config.views > 0

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW without decay on vectors; warm-up and cosine by steps, or by time where that ends first."""
        trained = [parameter for part in self.parts() for parameter in part.parameters()]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.config.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def seconds(self) -> float:
        """Wall time of this phase, over all resumes."""
        return self.used + time.monotonic() - self.began

    def rate(self, step: int) -> float:
        """Factor on the peak rate."""
        done = step / self.steps
        if self.minutes is not None:
            done = max(done, self.seconds() / (60 * self.minutes))
        if done < self.config.warmup:
            return (done + 1 / self.steps) / (self.config.warmup + 1 / self.steps)
        left = 1 - min(1.0, (done - self.config.warmup) / (1 - self.config.warmup))
        return 0.01 + 0.99 * math.sin(0.5 * math.pi * left) ** 2

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the time used and whose embeddings were learned."""
        checkpoint["distill"] = {"seconds": self.seconds(), "teacher": self.teacher.hash}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the clock.

        Raises:
            CheckpointError: the checkpoint is of another teacher or student.
        """
        about = checkpoint.get("distill", {})
        if about.get("teacher") != self.teacher.hash:
            raise CheckpointError("the checkpoint was made with another teacher; resume with the same --teacher")
        keys, wanted = checkpoint["state_dict"], self.state_dict()
        odd = sorted(set(keys) ^ set(wanted)) or [k for k in wanted if keys[k].shape != wanted[k].shape]
        if odd:
            raise CheckpointError(
                f"the checkpoint is of another student; differing: {odd[:3]}; resume with the same one"
            )
        self.used = float(about["seconds"])


class EmbeddingPhase(Phase):
    """Phase 1: the student's embedding approaches the teacher's; only the image encoder is trained."""

    def parts(self) -> Iterable[nn.Module]:
        """The image encoder."""
        return [self.student.sam.vision_encoder]

    def better(self, figures: Figures) -> float:
        """The smaller the error of the embedding, the better."""
        return -figures.relative_error

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        """Mean squared error of the embeddings of (B, 3, S, S) uint8 tiles."""
        del index
        view = self.view(batch, self.generator())
        own = self.student.encode(resize_square(view, self.student_size)).neck
        target = resize_square(self.teacher.neck(view, keep=self.keep), own.shape[-1])
        loss = functional.mse_loss(own.float(), target)
        self.log("loss", loss, prog_bar=True)
        return loss


class MaskPhase(Phase):
    """Phase 2: the student's masks approach the teacher's; image encoder and mask decoder are trained."""

    def parts(self) -> Iterable[nn.Module]:
        """The image encoder and the mask decoder; prompt encoder and position code stay the teacher's."""
        return [self.student.sam.vision_encoder, self.student.sam.mask_decoder]

    def better(self, figures: Figures) -> float:
        """The larger the IoU of masks, the better."""
        return figures.mask_iou

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        """Rounds of prompts on (B, 3, S, S) uint8 tiles: a box or a point first, then clicks on disagreement."""
        del index
        config, generator = self.config, self.generator()
        view = self.view(batch, generator)
        side = view.shape[-1]
        target = self.teacher.neck(view, keep=self.keep)
        own = self.student.encode(resize_square(view, self.student_size)).neck
        by_box = float(torch.rand((), generator=generator)) < config.box_share
        objects = self.teacher.objects(view, target, keep=self.keep)
        prompts = first_prompts(objects, side=side, count=config.prompts, by_box=by_box, generator=generator)
        loss = own.new_zeros(())
        for number in range(config.rounds):
            multimask = number == 0 and not by_box
            wanted, expected = self.teacher.decode(target, prompts, side=side, multimask=multimask)
            placed = scale_prompts(prompts, self.student_size / side).to(own.device)
            logits, iou = self.student.decode(Features(neck=own), placed, multimask=multimask)
            wanted = resize_square(wanted, logits.shape[-1])
            loss = loss + mask_loss(logits.float(), wanted, bce=config.bce_weight, dice=config.dice_weight)
            loss = loss + config.iou_weight * functional.mse_loss(iou.float(), expected)
            if number + 1 < config.rounds:
                best = expected.argmax(1)[:, None, None, None].expand(-1, 1, *logits.shape[-2:])
                seen = logits.gather(1, best)[:, 0], wanted.gather(1, best)[:, 0]
                prompts = with_click(prompts, *random_error_clicks(*seen, side, generator))
        loss = loss / config.rounds
        if config.embedding_weight:
            near = functional.mse_loss(own.float(), resize_square(target, own.shape[-1]))
            loss = loss + config.embedding_weight * near
        self.log("loss", loss, prog_bar=True)
        return loss


def mask_loss(logits: Tensor, wanted: Tensor, *, bce: float, dice: float) -> Tensor:
    """Cross-entropy plus Dice with the teacher's probabilities; the mean over prompts and masks.

    Both are least where student and teacher agree. The usual soft Dice is not: with targets between 0 and 1 it rewards
    certainty, so a student that equals its teacher would be pulled away from it. Here the overlap of p and t is
    (sum p + sum t - sum |p - t|) / 2, which for masks of 0 and 1 is the usual one.

    Args:
        logits: (N, K, s, s) of the student.
        wanted: (N, K, s, s) logits of the teacher.
        bce: Weight of the cross-entropy.
        dice: Weight of Dice.

    Source:
        Dice semimetric losses, arXiv:2303.16296, section 3.
    """
    target = wanted.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(logits, target)
    soft = logits.sigmoid()
    total = soft.sum((-1, -2)) + target.sum((-1, -2))
    apart = (soft - target).abs().sum((-1, -2))
    return bce * entropy + dice * (apart / (total + 1)).mean()
