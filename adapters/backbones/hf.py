"""A Hugging Face ``SamModel`` as a frozen backbone: our encoder and decoder forward over its parameters.

Logits equal ``SamModel.forward`` at the native size; any other H, W that are multiples of the patch work, with
position tables interpolated. Grafts go into ``encoder_sites`` and ``block_sites``, or wrap linear layers of ``sam``.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import SamModel

from samgraft.adapters.backbones.attention import absolute_table
from samgraft.adapters.backbones.base import Backbone, BackboneSpec, Features, MaskDecoderPatch, Prefix, in_order
from samgraft.adapters.backbones.blocks import block_forward
from samgraft.adapters.backbones.decoding import decode_masks, embed_prompts, image_code
from samgraft.adapters.backbones.guidance import Guidance
from samgraft.adapters.backbones.shared_decoding import SharedImage, can_share
from samgraft.adapters.backbones.sites import BlockSites, EncoderSites, MergedPlanes, SiteContext, add_deltas
from samgraft.errors import CheckpointError, InputError, NoMatchError, PromptError, ShapeError

if TYPE_CHECKING:
    from samgraft.adapters.prompts.base import Prompts

SAM_MEAN = (0.485, 0.456, 0.406)
"""Mean of SAM's training images, RGB in [0, 1] (ImageNet)."""
SAM_STD = (0.229, 0.224, 0.225)
"""Standard deviation that goes with :data:`SAM_MEAN`."""
DECODE_TOKENS = 2**17
"""Image tokens decoded at once, over all prompts: 32 prompts of SAM at 1024 px, 512 of graft-tiny at 128 px."""

SHARED_TOKENS = 2**14
"""The same where prompts share an image: what belongs to them then stays in the cache (docs/benchmarks.md)."""
SHARED_FROM = 8
"""Prompts on one image from which they share its projections; fewer take the arithmetic of ``SamModel``, bit by bit."""
FROZEN_MARK = "_samgraft_frozen"
"""In the ``__dict__`` of every module that came with the backbone."""


class HFSamBackbone(Backbone):
    """SAM, MedSAM, SlimSAM or graft-tiny as a :class:`~samgraft.adapters.backbones.base.Backbone`.

    Args:
        sam: The model. It is taken over, not copied: set to eval mode, and none of its parameters asks for a gradient.
        name: What the backbone is called in bundles and tables.
        mean: Per channel, subtracted from the image in [0, 1].
        std: Per channel, divides the image after that.
        licence: Of the weights.
        source: Where the weights come from.

    Attributes:
        sam: The frozen model.
        encoder_sites: Grafted modules at I0 and I8.
        block_sites: Grafted modules of each block, I1 to I6.

    Raises:
        CheckpointError: the configuration is not one of a square SAM image encoder with RGB input.
    """

    def __init__(
        self,
        sam: SamModel,
        *,
        name: str = "sam",
        mean: Sequence[float] = SAM_MEAN,
        std: Sequence[float] = SAM_STD,
        licence: str = "unknown",
        source: str = "",
    ) -> None:
        """Freeze ``sam`` and hash its tensors."""
        super().__init__()
        self.spec = _make_spec(sam, name, mean, std, licence, source)
        self.sam = sam
        self.encoder_sites = EncoderSites()
        self.block_sites = nn.ModuleList(BlockSites() for _ in range(self.spec.num_blocks))
        self._block_forward: Callable[..., tuple[Tensor, Tensor | None]] = block_forward
        for parameter in sam.parameters():
            parameter.requires_grad_(False)
        for module in self.modules():
            module.__dict__[FROZEN_MARK] = True
        self.train(False)
        self._hash = "" if any(p.is_meta for p in sam.parameters()) else hash_tensors(sam.state_dict())

    def train(self, mode: bool = True) -> Self:
        """Keep everything frozen in eval mode; only grafted modules follow ``mode``."""
        for module in self.modules():
            module.training = mode and FROZEN_MARK not in module.__dict__
        return self

    def encode(self, image: Tensor, taps: Sequence[int] = (), *, depth: int = 1) -> Features:
        """Encode images; see :meth:`Backbone.encode`.

        Args:
            image: (B, 3, H, W) float in [0, 1]; H and W multiples of ``spec.patch_size``.
            taps: Block indices whose output is wanted.
            depth: So many images are the slices of one volume.

        Raises:
            ShapeError: wrong rank, channels or side, or B is no multiple of ``depth``.
            InputError: the image is not of a floating type.
            NoMatchError: a tap names no block.
        """
        return self.resume(self.prefix(image, 0, depth=depth), image, taps)

    def prefix(self, image: Tensor, stop: int, taps: Sequence[int] = (), *, depth: int = 1) -> Prefix:
        """Patch embedding and blocks 0 .. stop - 1; see :meth:`Backbone.prefix`.

        Raises:
            NoMatchError: a tap names no block that is run.
        """
        self._check_taps(taps, range(stop))
        if depth != 1 and (depth < 1 or len(image) % depth):
            raise ShapeError(f"{len(image)} images are no volumes of {depth} slices; give a multiple of that many")
        normalised = self._normalise(image)
        encoder = self.sam.vision_encoder
        # contiguous: otherwise this layout goes through every sum to the last block, and every norm copies its input
        x = encoder.patch_embed.projection(normalised).permute(0, 2, 3, 1).contiguous()
        grid = (x.shape[1], x.shape[2])
        for planes in self.encoder_sites.planes:
            x, depth = planes(x, depth), cast(MergedPlanes, planes).count(depth)
        normalised = self._per_plane(normalised, x.shape[0], depth)
        if encoder.pos_embed is not None:
            x = x + absolute_table(encoder.pos_embed, grid)
        x = add_deltas(self.encoder_sites.patch_embed, x, SiteContext(grid_size=grid, image=normalised, depth=depth))
        x, extra, kept = self._blocks(x, None, normalised, range(stop), taps, depth)
        return Prefix(tokens=x, stop=stop, taps=kept, extra=extra, depth=depth)

    def resume(self, prefix: Prefix, image: Tensor, taps: Sequence[int] = ()) -> Features:
        """Run the remaining blocks, and the neck; see :meth:`Backbone.resume`.

        Raises:
            NoMatchError: a tap names no block that is run, and is not in ``prefix``.
        """
        left = range(prefix.stop, self.spec.num_blocks)
        self._check_taps([tap for tap in taps if tap not in prefix.taps], left)
        depth = prefix.depth
        normalised = self._per_plane(self._normalise(image), prefix.tokens.shape[0], depth)
        x, _, kept = self._blocks(prefix.tokens, prefix.extra, normalised, left, taps, depth)
        context = SiteContext(grid_size=(x.shape[1], x.shape[2]), image=normalised, depth=depth)
        neck = add_deltas(self.encoder_sites.neck, self.sam.vision_encoder.neck(x), context)
        early = {tap: tensor for tap, tensor in prefix.taps.items() if tap in taps}
        return Features(neck=neck, taps=early | kept, depth=depth)

    def untouched(self) -> tuple[int, bool]:
        """See :meth:`Backbone.untouched`."""
        encoder = self.sam.vision_encoder
        if not _frozen(encoder.patch_embed, self.encoder_sites.patch_embed, self.encoder_sites.planes) or (
            encoder.pos_embed is not None and encoder.pos_embed.requires_grad
        ):
            return 0, False
        for block, layer in enumerate(encoder.layers):
            if not _frozen(layer, self._sites(block)):
                return block, False
        return self.spec.num_blocks, _frozen(encoder.neck, self.encoder_sites.neck)

    def compile_blocks(self, **options: Any) -> Self:
        """Run every block through ``torch.compile`` from now on; each new shape is compiled once, which takes a while.

        Meant for GPUs, where ``mode="reduce-overhead"`` also records CUDA graphs; what it gains there has not been
        measured yet. While compiling, attention takes the way that a graph can hold (``attention_ways``).

        Args:
            options: Of ``torch.compile``.
        """
        self._block_forward = torch.compile(block_forward, dynamic=False, **options)
        return self

    def _per_plane(self, image: Tensor, rows: int, depth: int) -> Tensor:
        """One image per token plane: of merged slices the middle one. ``rows`` are the planes of all volumes."""
        if not self.encoder_sites.planes or len(image) == rows:  # not len() before: torch.export would fix the batch
            return image
        volumes: Tensor = image.unflatten(0, (rows // depth, -1))
        centres = cast(MergedPlanes, self.encoder_sites.planes[0]).centres(volumes.shape[1])
        return volumes[:, centres].flatten(0, 1)

    def _blocks(
        self, x: Tensor, extra: Tensor | None, image: Tensor, blocks: range, taps: Sequence[int], depth: int
    ) -> tuple[Tensor, Tensor | None, dict[int, Tensor]]:
        """Run ``blocks`` on tokens (B, h, w, D) and extra ones (B, p, D), and keep what ``taps`` asks for."""
        kept = {}
        for block in blocks:
            parts = (self.sam.vision_encoder.layers[block], self._sites(block), x, image, extra, depth)
            if self.checkpointing and torch.is_grad_enabled():
                x, extra = checkpoint(self._block_forward, *parts, use_reentrant=False)
            else:
                x, extra = self._block_forward(*parts)
            if block in taps:
                kept[block] = x
        return x, extra, kept

    def embed(self, prompts: "Prompts", size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Embed prompts for a network input of ``size`` (H, W): sparse (N, k, C), dense (N, C, h, w).

        Raises:
            ShapeError: a mask, sparse or dense prompt does not fit ``size``.
            PromptError: a coordinate is not finite, or a label is unknown.
        """
        return embed_prompts(self.sam.prompt_encoder, prompts, size, self.spec.patch_size)

    def decode(
        self,
        features: Features,
        prompts: "Prompts",
        *,
        multimask: bool = False,
        patch: MaskDecoderPatch | None = None,
        guidance: Guidance | None = None,
        chunk: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode N prompts: mask logits (N, K, 4h, 4w) and predicted IoU (N, K); K = 3 if ``multimask`` else 1.

        Args:
            features: Of B images.
            prompts: N prompts; ``image_index`` says which image each belongs to.
            multimask: Three masks instead of one.
            patch: Extra decoder tokens and another ending; it decides on K.
            guidance: Where each of the N prompts shall look, and what for.
            chunk: Prompts decoded at once; None: as many as :data:`DECODE_TOKENS` allows. Bounds the memory.

        Raises:
            PromptError: an image index outside 0 .. B - 1.
            ShapeError: guidance of another number of prompts or another grid.
        """
        options: dict[str, Any] = {"multimask": multimask, "patch": patch, "guidance": guidance, "chunk": chunk}
        return in_order(self.decode_parts(features, prompts, **options))

    def decode_parts(
        self,
        features: Features,
        prompts: "Prompts",
        *,
        multimask: bool = False,
        patch: MaskDecoderPatch | None = None,
        guidance: Guidance | None = None,
        chunk: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """:meth:`decode` in parts, so that thousands of prompts take the memory of a few.

        Yields:
            Which prompts these are (n,), their mask logits (n, K, 4h, 4w) and predicted IoU (n, K).

        Raises:
            PromptError: an image index outside 0 .. B - 1.
            ShapeError: guidance of another number of prompts or another grid.
        """
        batch, channels, height, width = features.neck.shape
        index = prompts.image_index
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < batch:
            got = f"{int(index.min())}..{int(index.max())}"
            raise PromptError(f"image_index spans {got}; there are {batch} images; use 0..{batch - 1}")
        code = image_code(self.sam.shared_image_embedding.positional_embedding, (height, width))
        size = (height * self.spec.patch_size, width * self.spec.patch_size)
        decoder = self.sam.mask_decoder
        if len(prompts) == 0:  # kernels refuse an empty batch: decode one blank prompt, and drop it
            blank = (features.neck.new_zeros(1, 0, channels), features.neck.new_zeros(1, channels, height, width))
            first = index.new_zeros(1)
            logits, iou = decode_masks(decoder, features, blank, code, first, multimask=multimask, patch=patch)
            yield index, logits[:0], iou[:0]
            return
        if guidance is not None:
            guidance.check(len(prompts), (height, width), channels)
        plain = patch is None and guidance is None
        alone = plain and prompts.masks is None and prompts.dense is None and can_share(decoder)
        for rows, image in _groups(index, batch, SHARED_FROM if alone else None):
            tokens = DECODE_TOKENS if image is None else SHARED_TOKENS
            shared = None
            for few in rows.split(max(1, chunk or tokens // (height * width))):
                some = prompts.select(few)
                sparse, dense = self.embed(some, size)
                if image is None:
                    found = decode_masks(
                        decoder,
                        features,
                        (sparse, dense),
                        code,
                        some.image_index,
                        multimask=multimask,
                        patch=patch,
                        guidance=None if guidance is None else guidance.select(few),
                    )
                else:
                    shared = shared or SharedImage(decoder, features.neck[image] + dense[0], code)
                    found = shared.decode(sparse, multimask=multimask)
                yield few, *found

    def weights_hash(self) -> str:
        """SHA-256 (hex) of the frozen tensors as they were loaded; grafts, merging and casts do not change it.

        Raises:
            CheckpointError: the model was built on the meta device and has no bytes.
        """
        if not self._hash:
            raise CheckpointError(
                f"backbone {self.spec.name!r} is on the meta device; it has no weights to hash; load real ones"
            )
        return self._hash

    def _sites(self, block: int) -> BlockSites:
        return cast(BlockSites, self.block_sites[block])

    def _normalise(self, image: Tensor) -> Tensor:
        self._check_image(image)
        weight = self.sam.vision_encoder.patch_embed.projection.weight
        wide = image.to(torch.promote_types(image.dtype, torch.float32))
        mean, std = wide.new_tensor(self.spec.mean), wide.new_tensor(self.spec.std)
        normalised = (wide - mean[:, None, None]) / std[:, None, None]
        layout = torch.channels_last if weight.is_cuda else torch.preserve_format  # tokens come out in order there
        return normalised.to(weight.dtype, memory_format=layout)

    def _check_image(self, image: Tensor) -> None:
        if image.ndim != 4 or image.shape[1] != 3:
            raise ShapeError(f"image has shape {tuple(image.shape)}; expected (B, 3, H, W); repeat gray to 3 channels")
        if not image.is_floating_point():
            raise InputError(f"image has dtype {image.dtype}; expected floating point in [0, 1]; 8 bit: divide by 255")
        patch = self.spec.patch_size
        height, width = image.shape[-2:]
        fit = (max(1, -(-height // patch)) * patch, max(1, -(-width // patch)) * patch)
        if fit != (height, width):
            raise ShapeError(
                f"image is {height} x {width} pixels (H x W); {self.spec.name!r} needs multiples of {patch}; "
                f"pad it at the bottom and right to {fit[0]} x {fit[1]}"
            )

    def _check_taps(self, taps: Sequence[int], run: range) -> None:
        wrong = [tap for tap in taps if tap not in run]
        if wrong:
            raise NoMatchError(f"taps {wrong} name no block that is run; expected {run.start}..{run.stop - 1}")


def _groups(index: Tensor, batch: int, enough: int | None) -> Iterator[tuple[Tensor, int | None]]:
    """Rows of ``index`` (n,) with the image that at least ``enough`` of them share; the others together, with None."""
    left = torch.ones_like(index, dtype=torch.bool)
    for image in range(batch if enough is not None and len(index) >= enough else 0):
        own = index == image
        if int(own.sum()) >= (enough or 0):
            left &= ~own
            yield own.nonzero().flatten(), image
    if bool(left.any()):
        yield left.nonzero().flatten(), None


def _frozen(*modules: nn.Module) -> bool:
    """Whether all there is came with the backbone, and none of it is trained."""
    parts = [part for module in modules for part in module.modules()]
    trained = any(parameter.requires_grad for module in modules for parameter in module.parameters())
    return not trained and all(FROZEN_MARK in part.__dict__ for part in parts)


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """SHA-256 (hex) over name, dtype, shape and bytes of each tensor, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _make_spec(
    sam: SamModel, name: str, mean: Sequence[float], std: Sequence[float], licence: str, source: str
) -> BackboneSpec:
    config = sam.config.vision_config
    if not isinstance(config.image_size, int) or not isinstance(config.patch_size, int) or config.num_channels != 3:
        raise CheckpointError(
            f"image encoder of {name!r} has image_size {config.image_size}, patch_size {config.patch_size}, "
            f"num_channels {config.num_channels}; expected whole numbers (square) and 3 channels"
        )
    return BackboneSpec(
        name=name,
        patch_size=config.patch_size,
        native_size=config.image_size,
        embed_dim=config.hidden_size,
        num_blocks=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        window_size=config.window_size,
        global_blocks=tuple(sorted(config.global_attn_indexes)),
        neck_channels=config.output_channels,
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
        licence=licence,
        source=source,
    )
