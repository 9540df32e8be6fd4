"""Attach trainable parts to a frozen backbone: grafts inside it, a prompter before its decoder, a decoder after it.

    grafted = attach(backbone, LoraConfig(rank=4), decoder=ClassTokensConfig(num_classes=3))
    output = grafted.predict(image)        # SemanticOutput
    print(grafted.trainable_table())
    grafted.detach()                       # the backbone is as it was

Everything is checked before anything is changed; the backbone's own tensors never ask for a gradient.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from samgraft.adapters.backbones.base import Backbone, BackboneSpec, Features
from samgraft.adapters.decoders.base import DecoderConfig, DecoderPatch, MaskDecoder, PromptedDecoder, SemanticOutput
from samgraft.adapters.grafts.base import Graft, GraftConfig
from samgraft.adapters.parts import check_state, trainable_table
from samgraft.adapters.prompts.base import PrompterConfig, PromptGenerator, Prompts
from samgraft.errors import CheckpointError, ConfigError

GraftConfigs = GraftConfig | Sequence[GraftConfig] | Mapping[str, GraftConfig]


class Grafted(nn.Module):
    """A frozen backbone with what was attached to it. Build it with :func:`attach`.

    ``state_dict`` holds the attached parts only, each tensor once (``grafts.<name>...``, ``prompter...``,
    ``decoder...``).

    Attributes:
        backbone: The frozen backbone; grafts are installed in it until :meth:`detach`.
        grafts: Name -> graft.
        prompter: Prompt generator or None.
        decoder: Decoder patch or None (then the backbone's mask decoder answers the prompter).
        configs: Name -> configuration of each graft.
        base_hash: SHA-256 of the frozen weights, taken before anything was installed; empty on the meta device.
    """

    def __init__(
        self,
        backbone: Backbone,
        grafts: Mapping[str, Graft],
        *,
        prompter: tuple[PrompterConfig, PromptGenerator] | None = None,
        decoder: tuple[DecoderConfig, DecoderPatch] | None = None,
    ) -> None:
        """Hold the parts; :func:`attach` builds and installs them."""
        super().__init__()
        self.configs = {name: graft.config for name, graft in grafts.items()}
        self.prompter_config: PrompterConfig | None = None if prompter is None else prompter[0]
        self.decoder_config: DecoderConfig | None = None if decoder is None else decoder[0]
        on_meta = any(parameter.is_meta for parameter in backbone.parameters())
        self.base_hash = "" if on_meta else backbone.weights_hash()
        self.backbone = backbone
        self.grafts = nn.ModuleDict(grafts)
        self.prompter = None if prompter is None else prompter[1]
        self.decoder = None if decoder is None else decoder[1]
        self.merged = False
        self.attached = False
        self._load_prefix = ""
        self._register_state_hooks()

    def train(self, mode: bool = True) -> "Grafted":
        """Set the attached parts to training or evaluation; the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        for part in self._parts().values():
            part.train(mode)
        return self

    @property
    def spec(self) -> BackboneSpec:
        """What the backbone is."""
        return self.backbone.spec

    def taps(self) -> tuple[int, ...]:
        """Encoder blocks that prompter and decoder read."""
        wanted = [part.taps for part in (self.prompter, self.decoder) if part is not None]
        return tuple(sorted({tap for taps in wanted for tap in taps}))

    def frozen_blocks(self) -> int:
        """Leading encoder blocks whose output nothing attached can change."""
        return 0 if self.merged else self.backbone.untouched()[0]

    def frozen_encoder(self) -> bool:
        """Whether nothing attached can change the encoder's output, so that one pass serves all training."""
        return not self.merged and self.backbone.untouched()[1]

    def encode(self, image: Tensor, taps: Sequence[int] = (), *, depth: int = 1) -> Features:
        """Features of ``image`` (B, 3, H, W) in [0, 1], with the taps that the parts need and ``taps``.

        So many images as ``depth`` says are the slices of one volume, see ``Backbone.encode``.
        """
        volumes = {} if depth == 1 else {"depth": depth}
        return self.backbone.encode(image, tuple(sorted({*self.taps(), *taps})), **volumes)

    def prompt(self, features: Features, image: Tensor, context: Mapping[str, Any] | None = None) -> Prompts:
        """Prompts of the generator for ``image``.

        Raises:
            ConfigError: no prompter is attached.
        """
        if self.prompter is None:
            raise ConfigError(
                "no prompter is attached; pass prompter=... to attach, or decode with prompts of your own"
            )
        prompts: Prompts = self.prompter(features, image, context or {})
        return prompts

    def decode(self, features: Features, prompts: Prompts, *, multimask: bool = False) -> tuple[Tensor, Tensor]:
        """Mask logits (N, K, 4h, 4w) and predicted IoU (N, K) for any prompts.

        The answer is that of the attached decoder if it answers prompts (a ``PromptedDecoder``; ``features`` then need
        its taps, as :meth:`encode` gives them), else that of the backbone's mask decoder.
        """
        return self._answering().decode(self.backbone, features, prompts, multimask=multimask)

    def decode_parts(
        self, features: Features, prompts: Prompts, *, multimask: bool = False, chunk: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """:meth:`decode` in parts; see ``Backbone.decode_parts``."""
        return self._answering().decode_parts(self.backbone, features, prompts, multimask=multimask, chunk=chunk)

    @property
    def answers_prompts(self) -> bool:
        """Whether the attached decoder answers prompts in the place of the backbone's."""
        return isinstance(self.decoder, PromptedDecoder)

    def _answering(self) -> PromptedDecoder:
        """What answers prompts."""
        return self.decoder if isinstance(self.decoder, PromptedDecoder) else MaskDecoder()

    def predict(
        self, image: Tensor, *, features: Features | None = None, context: Mapping[str, Any] | None = None
    ) -> SemanticOutput:
        """Class maps without a person.

        Args:
            image: (B, 3, H, W) in [0, 1]; sides are multiples of the patch.
            features: Cached output of :meth:`encode` for the same images; None to compute it.
            context: Handed to the prompter.

        Raises:
            ConfigError: neither a decoder that needs no prompts nor a semantic prompter is attached.
        """
        decoder, features, prompts = self._asked(image, features, context)
        output: SemanticOutput = decoder(self.backbone, features, image, prompts)
        return self._finished(output, prompts)

    forward = predict

    def learn(
        self,
        image: Tensor,
        labels: Tensor,
        *,
        features: Features | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> tuple[SemanticOutput, Tensor | None]:
        """:meth:`predict` for training, and what the decoder learns beside class maps: a scalar to add, or None.

        Args:
            image: (B, 3, H, W) in [0, 1].
            labels: What the class maps will be compared with, see ``DecoderPatch.learn``.
            features: As for :meth:`predict`.
            context: As for :meth:`predict`.

        Raises:
            ConfigError: as :meth:`predict`.
        """
        decoder, features, prompts = self._asked(image, features, context)
        output, further = decoder.learn(self.backbone, features, image, prompts, labels)
        return self._finished(output, prompts), further

    def _asked(
        self, image: Tensor, features: Features | None, context: Mapping[str, Any] | None
    ) -> tuple[DecoderPatch, Features, Prompts | None]:
        """The decoder, and what it wants to know."""
        decoder = MaskDecoder() if self.decoder is None else self.decoder
        if decoder.needs_prompts and (self.prompter is None or self.prompter.num_classes < 1):
            attached = "none" if self.prompter_config is None else self.prompter_config.method
            raise ConfigError(
                f"predict needs class maps, but the prompter is {attached} and the decoder answers prompts; "
                "attach decoder=ClassTokensConfig(...) or prompter=AutoSamConfig(...)"
            )
        if features is None:
            features = self.encode(image)
        if len(features.neck) != len(image) and not decoder.splits_planes:
            raise ConfigError(
                f"{len(image)} slices became {len(features.neck)} token planes, which this decoder cannot take apart; "
                "attach a volumetric one (detail_3d, mla_3d), or merge no slices (depth_patch=1)"
            )
        return decoder, features, self.prompt(features, image, context) if decoder.needs_prompts else None

    def _finished(self, output: SemanticOutput, prompts: Prompts | None) -> SemanticOutput:
        """Class maps as the prompter wants them read, where it asked for them."""
        return output if self.prompter is None or prompts is None else self.prompter.finish(output)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Every attached parameter, each once."""
        return [parameter for part in self._parts().values() for parameter in part.parameters()]

    def rate_factors(self) -> dict[nn.Parameter, float]:
        """What the learning rate of an attached parameter is multiplied by, where that is not 1."""
        factors = {graft: graft.config.lr_factor for graft in self._grafts().values()}
        return {p: factor for graft, factor in factors.items() if factor != 1 for p in graft.parameters()}

    def penalty(self) -> Tensor | None:
        """What grafts want to add to the loss of the last forward pass (a gate's balance), or None."""
        own = [penalty for graft in self._grafts().values() if (penalty := graft.penalty()) is not None]
        return torch.stack(own).sum() if own else None

    def graft_state(self) -> dict[str, Tensor]:
        """Attached tensors by name: what a bundle stores."""
        return {
            f"{name}.{key}": value for name, part in self._parts().items() for key, value in part.state_dict().items()
        }

    def load_graft_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy tensors written by :meth:`graft_state` into the attached parts.

        Raises:
            CheckpointError: unknown, missing, misshapen or non-finite tensors, by name; nothing was changed.
        """
        own = self.graft_state()
        check_state(own, state)
        if self.merged:
            raise CheckpointError("the grafts are merged into the backbone; call unmerge() before loading tensors")
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(state[key])

    def trainable_table(self) -> str:
        """Plain text: part, method, insertion point, parameters, and their share of the backbone's."""
        return trainable_table(self)

    def merge(self) -> None:
        """Fold every graft into the frozen weights (reversible); prompter and decoder stay beside.

        Raises:
            ConfigError: a graft cannot be merged, or the backbone is quantised; nothing was changed.
        """
        if self.backbone.quantized and self.configs and not self.merged:
            raise ConfigError(
                f"backbone {self.backbone.spec.name!r} is quantised to {self.backbone.quantized}, so no weight is left "
                "to merge into; keep the grafts attached, or merge on a backbone in float32"
            )
        for name, graft in self._grafts().items():
            if graft.merge_refusal:
                raise ConfigError(
                    f"graft {name!r} ({graft.config.method}) cannot be merged: {graft.merge_refusal}; "
                    "nothing was changed"
                )
        if not self.merged and self.attached:
            for graft in self._merge_order():
                graft.merge(self.backbone)
            self.merged = self.backbone.merged = True

    def unmerge(self) -> None:
        """Undo :meth:`merge`; the frozen weights are the same objects as before."""
        if self.merged:
            for graft in reversed(self._merge_order()):
                graft.unmerge(self.backbone)
            for graft in reversed(self._grafts().values()):  # in the order of before, which is that of sums
                graft.remove(self.backbone)
            self.install()
            self.merged = self.backbone.merged = False

    def detach(self) -> Backbone:
        """Take everything out of the backbone and return it, with the module tree and weights it had."""
        self.unmerge()
        if self.attached:
            for graft in reversed(self._grafts().values()):
                graft.remove(self.backbone)
            self.attached = False
            self.backbone.occupied &= not self.configs
        return self.backbone

    def install(self) -> None:
        """Put the grafts (back) into the backbone; on failure nothing stays in it."""
        done: list[Graft] = []
        try:
            for graft in self._grafts().values():
                done.append(graft)
                graft.install(self.backbone)
        except Exception:
            for graft in reversed(done):
                graft.remove(self.backbone)
            raise
        self.attached = True
        self.backbone.occupied |= bool(done)

    def _grafts(self) -> dict[str, Graft]:
        return {name: graft for name, graft in self.grafts.items() if isinstance(graft, Graft)}

    def _merge_order(self) -> list[Graft]:
        return sorted(self._grafts().values(), key=lambda graft: not graft.merge_first)

    def _parts(self) -> dict[str, nn.Module]:
        parts: dict[str, nn.Module] = {f"grafts.{name}": graft for name, graft in self.grafts.items()}
        if self.prompter is not None:
            parts["prompter"] = self.prompter
        if self.decoder is not None:
            parts["decoder"] = self.decoder
        return parts

    def _register_state_hooks(self) -> None:
        """Keep the backbone out of ``state_dict`` and of what ``load_state_dict`` misses, at any nesting."""

        def drop_backbone(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict[str, Any]) -> None:
            del module, metadata
            for key in [key for key in state if key.startswith(f"{prefix}backbone.")]:
                del state[key]

        def remember_prefix(module: nn.Module, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
            del module, state, rest
            self._load_prefix = prefix

        def forgive_backbone(module: nn.Module, keys: Any) -> None:
            del module
            keys.missing_keys[:] = [
                key for key in keys.missing_keys if not key.startswith(f"{self._load_prefix}backbone.")
            ]

        self.register_state_dict_post_hook(drop_backbone)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(remember_prefix)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(forgive_backbone)  # type: ignore[no-untyped-call]


def attach(
    backbone: Backbone,
    grafts: GraftConfigs = (),
    *,
    prompter: PrompterConfig | None = None,
    decoder: DecoderConfig | None = None,
) -> Grafted:
    """Freeze ``backbone``, build the parts and install the grafts. With ``init="identity"`` its output does not change.

    Args:
        backbone: From ``load_backbone``; nothing may be installed in it.
        grafts: One configuration, several, or names mapped to configurations. Unnamed ones are called by their method.
        prompter: Writes prompts automatically.
        decoder: Turns features into class maps.

    Raises:
        NoMatchError: a graft names a block, layer or insertion point that does not exist.
        ConfigError: two grafts want the same layer, or the backbone already carries grafts. Nothing was changed.
    """
    configs = _named(grafts)
    if configs and backbone.occupied:
        raise ConfigError(
            f"backbone {backbone.spec.name!r} already carries grafts; detach() those first, or attach all together"
        )
    decoder_part = None if decoder is None else (decoder, decoder.build(backbone))
    prompter_part = None if prompter is None else (prompter, prompter.build(backbone))
    modules = {name: config.build(backbone) for name, config in configs.items()}
    claimed: dict[str, str] = {}
    for name, module in modules.items():
        for path in module.claims():
            if path in claimed:
                raise ConfigError(
                    f"grafts {claimed[path]!r} and {name!r} both want layer {path!r}; nothing was changed; drop one"
                )
            claimed[path] = name
    parameter = next(backbone.parameters())
    for part in (decoder_part, prompter_part):
        if part is not None:
            part[1].to(device=parameter.device, dtype=parameter.dtype)
    grafted = Grafted(backbone, modules, prompter=prompter_part, decoder=decoder_part)
    grafted.install()
    return grafted.eval()


def _named(grafts: GraftConfigs) -> dict[str, GraftConfig]:
    if isinstance(grafts, GraftConfig):
        grafts = [grafts]
    if isinstance(grafts, Mapping):
        named = dict(grafts)
    else:
        named = {}
        for config in grafts:
            name, number = config.method, 2
            while name in named:
                name, number = f"{config.method}_{number}", number + 1
            named[name] = config
    for name, config in named.items():
        if not isinstance(config, GraftConfig):
            raise ConfigError(
                f"graft {name!r} is a {type(config).__name__}; expected a configuration such as LoraConfig(rank=4)"
            )
        if not name.isidentifier():
            raise ConfigError(f"graft name {name!r} cannot be part of a tensor key; use letters, digits and _")
    return named
