"""RSPrompter, query form: a small DETR on the frozen encoder that writes one prompt per object, of tokens and a mask.

    taps -> feature aggregator -> encoder layer(s) -> x (B, dim, h, w)       (aggregator.py)
    x -> map of object centres -> its Q highest peaks -> Q queries           (centre_map.py)
    queries -> decoder layers on x -> per query:  classes (C + 1)
                                                  tokens e = sin(a) + b, (Kp, neck channels)        sparse prompt
                                                  coarse mask (4h, 4w): m . upscaled(x) + bell      dense prompt
    frozen mask decoder (tokens, coarse mask) -> mask

The bell is ``1 + b - |p - c|^2 e^s / 8`` at place p, in tokens: the query says b, s and how far c is from where it
began. Class logits begin with what the map of centres says there. In training, each object is matched with one query by
class and coarse mask (assignment.py), on every layer. The loss on masks of the frozen decoder, which cost most, is on
the last layer and for matched queries only. The coarse mask reaches the decoder detached, and has losses of its own.

Source:
    RSPrompter, arXiv:2306.16269, section 3 (query-based prompter); layers, costs and weights from
    KyanChen/RSPrompter: branch lightning (1 encoder and 4 decoder layers, pre-norm, weights 2, 5, 5, no-object 0.1) and
    branch release (aggregator, coarse mask as dense prompt, 5 tokens, Mask2Former layers). Ranking by class score times
    mean probability within the mask, and attention within the mask: Mask2Former, arXiv:2112.01527. Queries at peaks:
    CenterNet, arXiv:1904.07850. Masks that know their place: CondInst, arXiv:2003.05664, section 3.1.
Deviations:
    Plain attention on one map: the released deformable attention needs a compiled kernel and a pyramid, and one map of
    a plain encoder is small. Queries begin at peaks of a map of centres, and their masks with a bell there; learned
    queries (``start="learned"``, as published, with a bell at a learned place) have to find their places first, which
    takes hundreds of epochs. Coarse masks are matched and trained on every layer, which costs next to nothing. No
    dropout by default. Queries that found something in a part of the image that nobody labelled are not taught that
    nothing is there. A query has the class with the highest probability; the release ranks all pairs of query and
    class. The backbone is frozen throughout, its decoder included; the released configurations train it. Width is that
    of the backbone's neck (256 for SAM, as published). At most ``decoded`` matched queries of a step go through the
    frozen decoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.config import check_choice, check_positive
from samgraft.adapters.prompts.aggregator import FeatureAggregator, Norm, sine_positions, sine_tokens, taps_for
from samgraft.adapters.prompts.assignment import MatchWeights, Truth, match
from samgraft.adapters.prompts.base import PrompterConfig, Prompts
from samgraft.adapters.prompts.centre_map import best_cells, centre_loss
from samgraft.adapters.prompts.mask_losses import POINTS, at_least_float
from samgraft.adapters.prompts.object_masks import certainty, in_the_unknown, mask_nms
from samgraft.adapters.prompts.objects import FoundObjects, ObjectPrompter, Objects
from samgraft.adapters.prompts.query_layers import (
    DecoderLayer,
    EncoderLayer,
    LearnedQueries,
    gather_rows,
    mask_products,
    mlp,
    outside,
    pooled,
    upscaler,
    with_places,
    zeroed,
)
from samgraft.errors import ConfigError

if TYPE_CHECKING:
    from samgraft.adapters.backbones.base import Backbone, Features

RARE = -2.2
"""Logit of an object's centre to begin with: one cell in ten."""
WIDTH = 2.0
"""Tokens: the standard deviation of the bell around a query with which coarse masks begin."""
LIMIT = 10.0
"""Largest logit of a dense prompt: the bell falls far below what the frozen decoder was trained with."""
NO_OBJECT = 0.1
"""Weight of queries without an object in the class loss."""


@dataclass(frozen=True, kw_only=True)
class RSPrompterQueryConfig(PrompterConfig):
    """One prompt per object from a small DETR on frozen features."""

    method: ClassVar[str] = "rsprompter_query"
    point: ClassVar[str] = "sparse and dense prompt"
    object_classes: int = 1
    """Kinds of objects C."""
    queries: int = 100
    """Most objects that can be found in one image (published: 30 to 100)."""
    tokens: int = 5
    """Sparse tokens Kp of a prompt."""
    dim: int | None = None
    """Width; a multiple of 8 and of ``heads``; None for the channels of the neck."""
    heads: int = 8
    """Attention heads."""
    ffn: int | None = None
    """Hidden width of the perceptrons; None for four times the width."""
    encoder_layers: int = 1
    """Layers among image tokens."""
    decoder_layers: int = 4
    """Layers from queries to image tokens."""
    dropout: float = 0.0
    """In attention layers (published: 0.1)."""
    hidden: int = 32
    """Channels in which the aggregator adds up the taps."""
    norm: Norm = "group"
    """Of the aggregator: "group", or "batch" as published."""
    taps: tuple[int, ...] = ()
    """Blocks that are read; () for the published selection, see ``taps_for``."""
    start: Literal["image", "learned"] = "image"
    """Whether queries begin as the most promising cells of the image, or as learned vectors."""
    masked: bool = True
    """Queries look only within their coarse mask of the layer before; needs ``coarse_mask``."""
    coarse_mask: bool = True
    """Predict a coarse mask, match with it, and give it to the frozen decoder as dense prompt."""
    points: int = POINTS
    """Places at which masks are compared, where they have more than twice as many cells."""
    decoded: int = 32
    """Most matched queries of a training step whose masks the frozen decoder computes, drawn at random."""
    score: float = 0.05
    """Least score of an object that is found."""
    nms: float = 0.5
    """Of two masks with a larger IoU the one with the lower score is dropped; 1 keeps all (published)."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_choice(self.method, "start", self.start, ("image", "learned"))
        for option in ("object_classes", "queries", "tokens", "heads", "decoder_layers", "hidden", "points", "decoded"):
            check_positive(self.method, option, getattr(self, option))
        if self.encoder_layers < 0:
            raise ConfigError(f"{self.method}: encoder_layers is {self.encoder_layers}; expected 0 or more")

    def build(self, backbone: "Backbone") -> "RSPrompterQuery":
        """Create the prompter for ``backbone``, which is only read.

        Raises:
            ConfigError: the width does not fit heads or positions, or a tap names no block.
        """
        return RSPrompterQuery(self, backbone)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Seen:
    """What the network says of B images."""

    states: list[Tensor]
    """(B, Q, dim) after the start (where it is supervised) and after each decoder layer, normalised."""
    pixels: Tensor | None
    """(B, m + 4, 4h, 4w): coarse masks are products with it."""
    small: Tensor | None
    """(B, m + 4, h, w): their means over tokens."""
    promise: Tensor | None
    """(B, h, w) logits of object centres; None for learned queries."""
    prior: Tensor | None
    """(B, Q, 1): the same where queries began, without a graph."""
    centres: Tensor
    """(B, Q, 2): where queries stand at the start, (x, y) in tokens."""


class RSPrompterQuery(ObjectPrompter):
    """Queries on frozen features; see the module's docstring."""

    def __init__(self, config: RSPrompterQueryConfig, backbone: "Backbone") -> None:
        """Build the network; ``backbone`` is only read."""
        super().__init__()
        spec, like = backbone.spec, next(backbone.parameters())
        self.config, self.object_classes = config, config.object_classes
        self.taps = config.taps or taps_for(spec.num_blocks)
        dim = config.dim or spec.neck_channels
        _check(config, dim, self.taps, spec.num_blocks)
        layer = (dim, config.heads, config.ffn or 4 * dim, config.dropout)
        with torch.device(like.device):
            self.aggregator = FeatureAggregator(spec.embed_dim, len(self.taps), config.hidden, dim, norm=config.norm)
            self.encoder = nn.ModuleList(EncoderLayer(*layer) for _ in range(config.encoder_layers))
            self.image_norm, self.query_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
            self.start = nn.Linear(dim, dim) if config.start == "image" else LearnedQueries(config.queries, dim)
            if config.start == "image":
                self.promise = nn.Linear(dim, 1)
                nn.init.constant_(self.promise.bias, RARE)
            self.decoder = nn.ModuleList(DecoderLayer(*layer) for _ in range(config.decoder_layers))
            self.class_head = mlp((dim, dim // 2, config.object_classes + 1))
            self.token_head = mlp((dim, dim, dim, config.tokens * 2 * spec.neck_channels))
            if config.coarse_mask:
                self.upscale = upscaler(dim, dim // 8)
                self.mask_head = mlp((dim, dim, dim // 8))
                self.place_head = zeroed(nn.Linear(dim, 4))
        self.to(like.dtype)

    def forward(self, features: "Features", image: Tensor, context: Mapping[str, Any]) -> Prompts:
        """Prompts of all queries whose score is high enough; ``class_logits`` are (N, C + 1), "no object" last."""
        del image, context
        seen = self._see(features)
        class_logits = self._classes(seen.states[-1], seen)  # (B, Q, C + 1)
        scores = class_logits.softmax(dim=-1)[..., :-1].amax(dim=-1)
        coarse = self._coarse(seen.states[-1], seen.pixels, seen.centres)
        if coarse is not None:
            scores = scores * certainty(coarse.flatten(0, 1)).reshape(scores.shape)
        where, query = (scores > self.config.score).nonzero().unbind(dim=1)
        return Prompts(
            image_index=where,
            sparse=self._tokens(seen.states[-1][where, query]),
            masks=None if coarse is None else coarse[where, query][:, None].clamp(-LIMIT, LIMIT),
            class_logits=class_logits[where, query],
            scores=scores[where, query],
        )

    def find(
        self, backbone: "Backbone", features: "Features", image: Tensor, context: Mapping[str, Any]
    ) -> FoundObjects:
        """Masks of the frozen decoder, without those that are another object's again."""
        found = super().find(backbone, features, image, context)
        return found.select(mask_nms(found, self.config.nms))

    def losses(self, backbone: "Backbone", features: "Features", image: Tensor, objects: Objects) -> dict[str, Tensor]:
        """``class``, ``bce`` and ``dice`` of decoded masks; ``coarse_bce`` and ``coarse_dice`` of the head's own.

        Each is weighted; class and coarse losses are sums over layers, mask losses means over objects.
        """
        seen = self._see(features)
        height, width = features.neck.shape[-2:]
        dtype = at_least_float(seen.states[-1]).dtype
        truth = Truth(objects, (4 * height, 4 * width), points=self.config.points, dtype=dtype)
        pairs = self._match(backbone, features, seen, Truth(objects, (height, width), dtype=dtype))
        total: dict[str, Tensor] = {"class": torch.zeros((), device=image.device, dtype=dtype)}
        if seen.pixels is not None:
            total |= dict.fromkeys(("coarse_bce", "coarse_dice"), total["class"])
        for state, matched in zip(seen.states, pairs, strict=True):
            total["class"] = total["class"] + self._class_loss(state, seen, matched, objects)
            coarse = self._coarse_of(state, seen, matched)
            if coarse is not None:
                bce, dice = _mask_loss(coarse, truth, matched.row)
                total["coarse_bce"], total["coarse_dice"] = total["coarse_bce"] + bce, total["coarse_dice"] + dice
        if seen.promise is not None:
            total["centre"] = centre_loss(seen.promise, objects)
        total["bce"], total["dice"] = self._decoded_loss(backbone, features, seen, pairs[-1], truth)
        return total

    def _see(self, features: "Features") -> _Seen:
        like = self.query_norm.weight
        x = self.aggregator([features.taps[tap].to(like.dtype) for tap in self.taps])  # (B, dim, h, w)
        place = sine_positions((x.shape[2], x.shape[3]), x.shape[1], like=like)
        spots = place.flatten(1).T  # (S, dim)
        tokens = x.flatten(2).transpose(1, 2)
        for layer in self.encoder:
            tokens = layer(tokens, spots)
        pixels = small = None
        if self.config.coarse_mask:
            pixels = with_places(self.upscale(tokens.transpose(1, 2).unflatten(2, x.shape[2:])))
            small = pooled(pixels)
        tokens = self.image_norm(tokens)
        grid = (x.shape[2], x.shape[3])
        promise = prior = None
        if isinstance(self.start, LearnedQueries):
            parts = (self.start.content, self.start.place, self.start.points(grid))
            queries, query_place, centres = (part.expand(len(tokens), -1, -1) for part in parts)
        else:
            promise = at_least_float(self.promise(tokens)).squeeze(-1)  # (B, S)
            best = best_cells(promise.detach().unflatten(1, grid), self.config.queries)  # (B, Q)
            queries, query_place, prior = self.start(gather_rows(tokens, best)), spots[best], promise.detach()
            centres = torch.stack([best % grid[1], best // grid[1]], dim=-1).to(spots.dtype) + 0.5
            promise, prior = promise.unflatten(1, grid), prior.gather(1, best)[..., None]
        masked = self.config.masked and small is not None
        states = [self.query_norm(queries)] if masked or promise is not None else []
        for layer in self.decoder:
            hidden = None
            if masked and small is not None:
                with torch.no_grad():
                    hidden = outside(mask_products(self._weights(states[-1], centres), small))
            queries = layer(queries, query_place, tokens, spots, hidden)
            states.append(self.query_norm(queries))
        return _Seen(states=states, pixels=pixels, small=small, promise=promise, prior=prior, centres=centres)

    def _classes(self, state: Tensor, seen: _Seen) -> Tensor:
        """(B, Q, C + 1) class logits, not in half precision; what the map of centres said is where they begin."""
        logits = at_least_float(self.class_head(state))
        if seen.prior is None:
            return logits
        return torch.cat([logits[..., :-1] + seen.prior, logits[..., -1:]], dim=-1)

    def _coarse(self, state: Tensor, pixels: Tensor | None, centres: Tensor) -> Tensor | None:
        """(B, Q, ...) mask logits of a state, not in half precision."""
        return None if pixels is None else mask_products(self._weights(state, centres), pixels)

    def _coarse_of(self, state: Tensor, seen: _Seen, pairs: "_Pairs") -> Tensor | None:
        """(n, 4h, 4w): the same of matched queries only."""
        if seen.pixels is None:
            return None
        weights = self._weights(state, seen.centres)
        rows = [weights[image, pairs.query[pairs.image == image]][None] for image in range(len(weights))]
        return torch.cat([mask_products(w, p[None])[0] for w, p in zip(rows, seen.pixels, strict=True)])

    def _weights(self, state: Tensor, centres: Tensor) -> Tensor:
        """(B, Q, m + 4) weights of pixels, and of the places that :func:`with_places` adds to them."""
        shift, spread, bias = at_least_float(self.place_head(state)).split((2, 1, 1), dim=-1)
        centre, narrow = centres + shift, spread.clamp(-8, 8).exp() / (2 * WIDTH**2)
        # 1 + bias - narrow * |p - centre|^2, written as a product with (|p|^2, x, y, 1)
        square = centre.square().sum(dim=-1, keepdim=True)
        places = torch.cat([-narrow, 2 * narrow * centre, bias + 1 - narrow * square], dim=-1)
        return torch.cat([self.mask_head(state).to(places.dtype), places], dim=-1)

    def _tokens(self, state: Tensor) -> Tensor:
        """(..., dim) -> (..., Kp, C)."""
        return sine_tokens(self.token_head(state).unflatten(-1, (self.config.tokens, -1)))

    @torch.no_grad()
    def _match(self, backbone: "Backbone", features: "Features", seen: _Seen, truth: Truth) -> "list[_Pairs]":
        """Matched queries of every layer: each by its own coarse masks, or all by the decoder's masks of the last."""
        pairs: list[_Pairs] = []
        for state in seen.states:
            coarse = self._coarse(state, seen.small, seen.centres)
            if coarse is None:
                last = seen.states[-1]
                masks = self._decode_all(backbone, features, last)
                return [self._match_layer(self._classes(last, seen), masks, truth)] * len(seen.states)
            pairs.append(self._match_layer(self._classes(state, seen), coarse, truth))
        return pairs

    def _match_layer(self, classes: Tensor, masks: Tensor, truth: Truth) -> "_Pairs":
        """Match every image; ``masks`` (B, Q, h, w)."""
        images, queries, rows = [], [], []
        for image, (logits, maps) in enumerate(zip(classes, masks, strict=True)):
            query, row = match(logits, maps, truth, image, MatchWeights())
            images.append(torch.full_like(query, image))
            queries.append(query)
            rows.append(row)
        return _Pairs(image=torch.cat(images), query=torch.cat(queries), row=torch.cat(rows))

    def _decode_all(self, backbone: "Backbone", features: "Features", state: Tensor) -> Tensor:
        """(B, Q, h, w) masks of all queries, as means over tokens."""
        batch, count, _ = state.shape
        index = torch.arange(batch, device=state.device).repeat_interleave(count)
        logits, _ = backbone.decode(features, Prompts(image_index=index, sparse=self._tokens(state).flatten(0, 1)))
        return pooled(at_least_float(logits)).reshape(batch, count, *features.neck.shape[-2:])

    def _class_loss(self, state: Tensor, seen: _Seen, pairs: "_Pairs", objects: Objects) -> Tensor:
        logits = self._classes(state, seen)
        wanted = logits.new_full(logits.shape[:2], self.object_classes, dtype=torch.int64)
        wanted[pairs.image, pairs.query] = objects.classes[pairs.row]
        weights = torch.where(wanted == self.object_classes, NO_OBJECT, 1.0).to(logits.dtype)
        with torch.no_grad():
            coarse = self._coarse(state, seen.small, seen.centres)
        if coarse is not None:
            free = (wanted == self.object_classes) & in_the_unknown(coarse, objects.known)
            weights = weights.masked_fill(free, 0.0)
        each = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        loss = (each * weights.flatten()).sum() / weights.sum().clamp_min(NO_OBJECT)
        return MatchWeights().classes * loss

    def _decoded_loss(
        self, backbone: "Backbone", features: "Features", seen: _Seen, pairs: "_Pairs", truth: Truth
    ) -> tuple[Tensor, Tensor]:
        """Losses of the frozen decoder's masks for (some of) the matched queries of the last layer."""
        some = pairs.some(self.config.decoded)
        state = seen.states[-1]
        if len(some.row) == 0:
            nothing = self._tokens(state).sum() * 0
            return nothing, nothing
        with torch.no_grad():
            coarse = self._coarse_of(state, seen, some)
        prompts = Prompts(
            image_index=some.image,
            sparse=self._tokens(state[some.image, some.query]),
            masks=None if coarse is None else coarse[:, None].clamp(-LIMIT, LIMIT),
        )
        logits, _ = backbone.decode(features, prompts)
        return _mask_loss(logits[:, 0], truth, some.row)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pairs:
    """Matched queries of a batch, image by image."""

    image: Tensor
    query: Tensor
    row: Tensor
    """Of ``Objects``."""

    def some(self, count: int) -> "_Pairs":
        """At most ``count`` of them, drawn at random."""
        if len(self.row) <= count:
            return self
        kept = torch.randperm(len(self.row), device=self.row.device)[:count].sort().values
        return _Pairs(image=self.image[kept], query=self.query[kept], row=self.row[kept])


def _mask_loss(logits: Tensor, truth: Truth, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean losses of masks (n, h', w') of the objects ``rows``; 0 with a graph where there are none."""
    each, count, weights = truth.losses(logits, rows), max(len(rows), 1), MatchWeights()
    return weights.bce * each.bce.sum() / count, weights.dice * each.dice.sum() / count


def _check(config: RSPrompterQueryConfig, dim: int, taps: tuple[int, ...], num_blocks: int) -> None:
    if dim % 8 or dim % config.heads:
        raise ConfigError(f"{config.method}: dim is {dim}; expected a multiple of 8 and of heads ({config.heads})")
    wrong = [tap for tap in taps if not 0 <= tap < num_blocks]
    if wrong:
        raise ConfigError(f"{config.method}: taps {wrong} name no block; expected 0..{num_blocks - 1}")
