"""The network of a configuration without its weights, and one training step of it under the tracer.

Parameters and inputs are tensors of the meta device: they have shapes and storages but no bytes, so a step of SAM-H at
1024 px takes seconds and no memory. Under autocast, which does not know that device, they are fake tensors, some ten
times slower. Where code looks at values (some prompters), the step is done for real with random weights.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import SamConfig, SamModel

from samgraft.adapters.backbones import attention
from samgraft.adapters.backbones.base import Features, Prefix
from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.backbones.hub import load_backbone
from samgraft.adapters.graft import Grafted
from samgraft.errors import ConfigError
from samgraft.recipes.assemble import build_network
from samgraft.recipes.config import FitConfig
from samgraft.recipes.data.fit import round_up
from samgraft.recipes.optimiser import STATE_BYTES_8BIT, make_optimizer
from samgraft.recipes.plan.trace import Trace, Tracer, Work, saved_bytes
from samgraft.recipes.representations import Maps, head_of, represent
from samgraft.recipes.representations.classes import with_background

Mode = Literal["meta", "fake", "real"]
SHAPES = {
    "sam-vit-base": (768, 12, 12, (2, 5, 8, 11)),
    "medsam": (768, 12, 12, (2, 5, 8, 11)),
    "sam-vit-large": (1024, 24, 16, (5, 11, 17, 23)),
    "sam-vit-huge": (1280, 32, 16, (7, 15, 23, 31)),
}
"""Width, blocks, heads and global blocks of backbones whose weights need not be on this machine to plan with them."""


@dataclass(frozen=True, kw_only=True)
class StepTrace:
    """One training step, and one prediction, of a configuration."""

    trace: Trace
    """Weights and optimiser states, then a step."""
    frozen: Work
    """Leading blocks that nothing attached can change, once for a batch."""
    rest: Work
    """Everything else of a forward pass, and the backward pass."""
    update: Work
    """The optimiser."""
    predict: Work
    """A forward pass without gradients, whole."""
    activations: int
    """Bytes that live from the forward to the backward pass, each storage once."""
    saved: int
    """Bytes that autograd says it saves; less than ``activations`` with checkpointing, whose inputs it does not see."""
    entry: int
    """Bytes that the feature store keeps for one view; 0 if nothing is frozen."""
    mode: Mode


def sam_config(source: str) -> SamConfig:
    """The shape of a backbone by name, folder or file.

    Raises:
        CheckpointError: as ``load_backbone``.
        NoMatchError: as ``load_backbone``.
    """
    if source in SHAPES:
        width, blocks, heads, whole = SHAPES[source]
        vision = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": heads}
        return SamConfig(vision_config={**vision, "global_attn_indexes": list(whole)})
    if (Path(source) / "config.json").is_file():
        return SamConfig.from_pretrained(source)
    return load_backbone(source).sam.config


def skeleton(config: FitConfig, shape: SamConfig, num_classes: int) -> Grafted:
    """Backbone with everything attached, on the meta device, in training mode.

    Args:
        config: Which grafts and head, and whether blocks are checkpointed.
        shape: Of the backbone.
        num_classes: Foreground channels of the head.
    """
    with torch.device("meta"):
        backbone = HFSamBackbone(SamModel(shape), name=config.task.backbone)
        grafted = build_network(config.task, num_classes=num_classes, backbone=backbone)
    backbone.checkpointing = config.train.checkpointing
    return grafted.train()


def trace_step(
    config: FitConfig, shape: SamConfig, *, num_classes: int, cached: bool = False, device: str = "cpu"
) -> StepTrace:
    """Follow one step at the configured size and batch.

    Args:
        config: The run.
        shape: Of the backbone, see :func:`sam_config`.
        num_classes: Foreground channels of the head.
        cached: Features of the frozen blocks come from the store.
        device: "cpu" or "cuda"; attention works in larger parts on the latter.
    """
    if config.train.precision.endswith("mixed"):
        return _trace(config, shape, num_classes, cached, device, "fake")
    try:
        return _trace(config, shape, num_classes, cached, device, "meta")
    except (RuntimeError, ValueError) as error:  # values were asked for; what is really wrong fails again below
        del error
    return _trace(config, shape, num_classes, cached, device, "real")


def _trace(config: FitConfig, shape: SamConfig, classes: int, cached: bool, device: str, mode: Mode) -> StepTrace:
    grafted = skeleton(config, shape, classes)
    size = round_up(config.data.size, grafted.backbone.spec.patch_size)
    with contextlib.ExitStack() as stack:
        if mode == "fake":
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        if device == "cpu":
            stack.enter_context(mock.patch.object(attention, "CHUNK_ELSEWHERE", attention.CHUNK))
        materialise(grafted, mode, weight_dtype(config))
        if mode != "real":
            stack.enter_context(_NoValues())
        tracer = stack.enter_context(Tracer())
        return _follow(tracer, config, grafted, (config.data.batch_size, size), cached, mode)


def _follow(
    tracer: Tracer, config: FitConfig, grafted: Grafted, shape: tuple[int, int], cached: bool, mode: Mode
) -> StepTrace:
    """States, prediction, step."""
    tracer.adopt([*grafted.parameters(), *grafted.buffers()], "weights")
    weights = list(grafted.parameters())
    trained = grafted.trainable_parameters()
    step = _optimizer(tracer, config, trained)
    depth = config.data.slab or 1
    image, target = make_batch((shape[0] * depth, shape[1]), mode, grafted)
    target = blank_target(config, grafted, target)
    begun = tracer.done()
    with autocast(config), torch.no_grad():
        class_logits(grafted, image, None, depth)
    predicted = tracer.done()
    with autocast(config), torch.no_grad():
        kept = frozen_part(grafted, image, depth)
    frozen = tracer.done()
    entry = sum(2 * tensor.numel() for tensor in kept.values()) // len(image)  # fp16
    given = kept if cached else None
    del kept
    tracer.adopt([image, target, *([] if given is None else given.values())], "batch")
    loss_of = loss_function(config, grafted)
    before = tracer.done()
    with saved_bytes([*weights, target]) as saved:
        with autocast(config):
            loss = loss_of(at_input_size(class_logits(grafted, image, given, depth), image), target)
        activations = tracer.keep()
        total = saved()
    loss.backward()
    tracer.adopt([p.grad for p in trained if p.grad is not None], "gradients")
    after = tracer.done()
    step()
    own = predicted - begun
    rest = after - before
    if not cached:
        rest = rest - (frozen - predicted)
    return StepTrace(
        trace=tracer.trace,
        frozen=frozen - predicted,
        rest=rest,
        update=tracer.done() - after,
        predict=own,
        activations=activations,
        saved=total,
        entry=entry,
        mode=mode,
    )


def _optimizer(tracer: Tracer, config: FitConfig, trained: list[nn.Parameter]) -> Callable[[], object]:
    """The step of an optimiser that has its states already; 8-bit ones are stood in for by as many bytes."""
    if config.task.optimizer.endswith("8bit"):
        states = [p.new_empty(STATE_BYTES_8BIT * p.numel(), dtype=torch.uint8) for p in trained]
        tracer.adopt(states, "states")
        return lambda: states
    optimizer = make_optimizer(config.task.optimizer, trained, lr=1e-3, weight_decay=0.01)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    values = [value for state in optimizer.state.values() for value in state.values()]
    tracer.adopt([value for value in values if isinstance(value, Tensor)], "states")
    return optimizer.step


def make_batch(shape: tuple[int, int], mode: Mode, grafted: Grafted) -> tuple[Tensor, Tensor]:
    """Images (B, 3, S, S) and labels (B, S, S) for ``shape`` (B, S)."""
    batch, size = shape
    like = next(grafted.parameters())
    image = like.new_empty(batch, 3, size, size, dtype=torch.float32)
    target = torch.zeros(batch, size, size, dtype=torch.long, device=like.device)
    return (image.uniform_() if mode == "real" else image), target


def frozen_part(grafted: Grafted, image: Tensor, depth: int = 1) -> "Kept":
    """What the leading blocks give that nothing attached can change, as the feature store keeps it."""
    backbone, taps = grafted.backbone, grafted.taps()
    whole, stop = grafted.frozen_encoder(), grafted.frozen_blocks()
    if not whole and stop == 0:
        return Kept(None, None)
    prefix = backbone.prefix(image, stop, tuple(tap for tap in taps if tap < stop), depth=depth)
    if not whole:
        return Kept(prefix, None)
    return Kept(None, Features(neck=backbone.resume(prefix, image).neck, taps=prefix.taps, depth=depth))


@dataclass(frozen=True, eq=False)
class Kept:
    """Output of the frozen part: a prefix, or whole features, or nothing."""

    prefix: Prefix | None
    features: Features | None

    def values(self) -> list[Tensor]:
        """All tensors."""
        if self.prefix is not None:
            return [self.prefix.tokens, *self.prefix.taps.values()]
        return [] if self.features is None else [self.features.neck, *self.features.taps.values()]

    def use(self, grafted: Grafted, image: Tensor) -> Features | None:
        """Features of ``image``; None to compute them."""
        if self.prefix is None:
            return self.features
        return grafted.backbone.resume(self.prefix, image, taps=grafted.taps())


def class_logits(grafted: Grafted, image: Tensor, kept: "Kept | None", depth: int = 1) -> Tensor:
    """Class logits (B, 1 + classes, s, s) or other maps, as ``SegmentationTask.forward`` makes them, in float32."""
    features = None if kept is None else kept.use(grafted, image)
    if features is None and depth > 1:
        features = grafted.encode(image, depth=depth)
    output = grafted.predict(image, features=features)
    return with_background(output).float()


def at_input_size(logits: Tensor, image: Tensor) -> Tensor:
    """Logits (B, K, s, s) at the size of ``image`` (B, 3, S, S), as in training."""
    return functional.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)


def loss_function(config: FitConfig, grafted: Grafted) -> nn.Module:
    """The configured loss; class weights do not change what it costs."""
    return _representation(config, grafted).loss(replace(config.task, class_weights=None))


def blank_target(config: FitConfig, grafted: Grafted, labels: Tensor) -> Tensor:
    """A target of the shape and type of the run's, for labels (B, S, S)."""
    return _representation(config, grafted).blank(labels)


def _representation(config: FitConfig, grafted: Grafted) -> Maps:
    found = represent(config.task.kind, head_of(grafted), classes=1)
    if not isinstance(found, Maps):
        raise ConfigError(f"head {config.task.head!r} gives objects and no maps; such a run cannot be planned yet")
    return found


def materialise(grafted: Grafted, mode: Mode, dtype: torch.dtype = torch.float32) -> None:
    """Give parameters and buffers a device and dtype; tied ones stay tied. Values are random where they are real.

    Their scale is that of trained weights: with values near zero a processor meets denormal numbers and is ten times
    slower.
    """
    where = "meta" if mode == "meta" else "cpu"
    made: dict[int, tuple[Tensor, Tensor]] = {}

    def new(old: Tensor) -> Tensor:
        if id(old) not in made:
            tensor = torch.empty(old.shape, dtype=dtype if old.is_floating_point() else old.dtype, device=where)
            if mode == "real" and tensor.is_floating_point():
                tensor.normal_(std=0.02)
            made[id(old)] = (old, tensor)
        return made[id(old)][1]

    ready: dict[int, nn.Parameter] = {}
    for module in grafted.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fresh = ready.setdefault(
                    id(new(parameter)), nn.Parameter(new(parameter), requires_grad=parameter.requires_grad)
                )
                module._parameters[name] = fresh
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = new(buffer)


def weight_dtype(config: FitConfig) -> torch.dtype:
    """Of the weights."""
    return {"bf16-true": torch.bfloat16, "16-true": torch.float16}.get(config.train.precision, torch.float32)


@contextlib.contextmanager
def autocast(config: FitConfig, device: str = "cpu") -> Iterator[None]:
    """Mixed precision as configured."""
    precision = config.train.precision
    with torch.autocast(
        device,
        dtype=torch.float16 if precision.startswith("16") else torch.bfloat16,
        enabled=precision.endswith("mixed"),
    ):
        yield


class _NoValues(TorchFunctionMode):
    """Answer for tensors without values what the code asks of them, and take the kernels that a CPU would take."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options, name = kwargs or {}, getattr(func, "__name__", "")
        if func is torch.equal:
            return True
        if func is torch.arange and "device" not in options:
            with unset_fake_temporarily():  # a list of axes, whose values the loss reads
                return func(*args, **options)
        if name == "__int__":
            return 0  # the largest label, or image index
        if name == "__bool__":
            return True  # all values are finite, some are left
        if name == "nonzero":
            return args[0].new_empty(args[0].numel(), args[0].ndim, dtype=torch.long)
        if name == "cpu" and isinstance(args[0], Tensor):
            return args[0]
        if name == "__getitem__" and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            return args[0].flatten()  # at most as many as there are
        if func is functional.scaled_dot_product_attention and args[0].is_meta:
            return _attention(*args, **options)
        return func(*args, **options)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """The fused kernel of a CPU; on the meta device torch would take the plain one, which keeps all weights."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out: Tensor = kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return out
