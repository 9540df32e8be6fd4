"""Text and an image in, boxes out: the zero-shot detectors of ``transformers`` behind one call, without torchvision.

Each family has its own way to see an image and to read text; the rest is common. Image processors of ``transformers``
want torchvision or pictures of PIL, so images are scaled and normalised here, on tensors.

    family           input                                    text                            box of an output row
    grounding-dino   shortest side 800, longest 1333 at most  all phrases, "a. b.", at once   middle and size
    owlvit           square, stretched                        one row per phrase              middle and size
    owlv2            square, zeros below and on the right     one row per phrase              the same, of the square
    sam3             square, stretched                        one phrase at a time            corners, and a mask

Source:
    Grounding DINO, arXiv:2303.05499 (a phrase scores as its best token); OWL-ViT, arXiv:2205.06230; OWLv2,
    arXiv:2306.09683; SAM 3, concept prompts (a row scores by its own logit times the presence of the concept).
Deviations:
    Images are resampled bilinearly with antialiasing; the processors of OWL-ViT and OWLv2 use other filters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from samgraft.errors import CheckpointError, ConfigError, MissingDependencyError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SHORTEST, LONGEST = 800, 1333
"""Sides in pixels of what Grounding DINO sees."""
ABSENT = -20.0
"""Logit of a phrase that a row does not stand for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """Rows of a detector for B images."""

    boxes: Tensor
    """(B, Q, 4) x0, y0, x1, y1 as shares of the image's width and height."""
    logits: Tensor
    """(B, Q, P) of P phrases; a sigmoid gives scores."""
    masks: Tensor | None = None
    """(B, Q, h, w) mask logits over the whole image, where the detector gives them."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one kind of detector is found and asked."""

    module: str
    """Below ``transformers.models``."""
    model: str
    threshold: float
    """Score that is enough by default."""
    ask: Callable[["TextDetector", Tensor, Sequence[str]], Seen]


class TextDetector:
    """A zero-shot detector with its tokeniser; not a module of its own, so nothing of it is trained or saved.

    Args:
        model: One of the ``transformers`` classes in ``FAMILIES``.
        tokenizer: Its tokeniser.

    Raises:
        ConfigError: a model of another family.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Freeze the model."""
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.family = family_of(str(model.config.model_type))

    @classmethod
    def load(cls, source: str) -> "TextDetector":
        """Load from a folder, or by name from the Hugging Face hub (downloads; safetensors only).

        Raises:
            CheckpointError: there is no such model, or it is damaged.
            ConfigError: a model of another family.
            MissingDependencyError: ``transformers`` is too old for this family.
        """
        from transformers import AutoConfig, AutoTokenizer

        try:
            kind = str(AutoConfig.from_pretrained(source).model_type)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"detector {source!r} cannot be loaded: {error}") from error
        family = family_of(kind)
        try:  # the class itself: `transformers.Sam3Model` is a stand-in where torchvision is missing
            chosen = getattr(import_module(f"transformers.models.{family.module}"), family.model)
        except (ImportError, AttributeError) as error:
            raise MissingDependencyError(
                f"transformers has no {family.model} here ({error}); pip install --upgrade transformers"
            ) from error
        try:
            model = chosen.from_pretrained(source, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"detector {source!r} cannot be loaded: {error}") from error
        return cls(model, tokenizer)

    @torch.no_grad()
    def __call__(self, image: Tensor, phrases: Sequence[str]) -> Seen:
        """Look for every phrase in every image.

        Args:
            image: (B, 3, H, W) in [0, 1].
            phrases: What to look for; not empty.

        Raises:
            ConfigError: no phrase, an empty one, or more text than the detector reads.
        """
        if not phrases or not all(phrase.strip() for phrase in phrases):
            raise ConfigError(f"phrases are {list(phrases)}; name what to look for, such as 'building'")
        self.model.to(image.device)
        return self.family.ask(self, image.to(self.model.dtype), [phrase.strip() for phrase in phrases])


def family_of(kind: str) -> Family:
    """How a model type is asked.

    Raises:
        ConfigError: nobody knows here.
    """
    if kind not in FAMILIES:
        raise ConfigError(f"a detector of type {kind!r} cannot be asked by text here; known: {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def normalised(image: Tensor, size: tuple[int, int], statistics: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """``image`` (B, 3, H, W) in [0, 1] scaled to ``size`` (H, W), minus mean, over deviation."""
    if tuple(image.shape[2:]) != size:
        image = functional.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)
    mean, deviation = (image.new_tensor(values)[:, None, None] for values in statistics)
    return (image - mean) / deviation


def corners(boxes: Tensor) -> Tensor:
    """(..., 4) x0, y0, x1, y1 of middle and size."""
    middle, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([middle - half, middle + half], dim=-1)


def shortest_longest(size: tuple[int, int], shortest: int = SHORTEST, longest: int = LONGEST) -> tuple[int, int]:
    """(H, W) with the shorter side ``shortest``, unless the longer one would pass ``longest``."""
    scale = min(shortest / min(size), longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _grounding(detector: TextDetector, image: Tensor, phrases: Sequence[str]) -> Seen:
    """All phrases in one text; a row's logit of a phrase is the largest of its tokens."""
    tokenizer, batch = detector.tokenizer, len(image)
    dotted = [phrase for phrase in phrases if "." in phrase]
    if dotted:
        raise ConfigError(f"phrases {dotted} hold a dot, which ends a phrase for this detector; leave dots out")
    dot = tokenizer.convert_tokens_to_ids(".")
    ids, spans = [tokenizer.cls_token_id], []
    for phrase in phrases:
        own = tokenizer(phrase.lower(), add_special_tokens=False)["input_ids"]
        spans.append(slice(len(ids), len(ids) + len(own)))
        ids += [*own, dot]
    ids.append(tokenizer.sep_token_id)
    longest = int(detector.model.config.max_text_len)
    if len(ids) > longest:
        raise ConfigError(f"{len(phrases)} phrases are {len(ids)} tokens; this detector reads {longest}; ask for fewer")
    text = torch.tensor([ids], device=image.device).expand(batch, -1)
    size = shortest_longest((image.shape[2], image.shape[3]))
    found = detector.model(
        pixel_values=normalised(image, size, IMAGENET),
        pixel_mask=torch.ones(batch, *size, dtype=torch.long, device=image.device),
        input_ids=text,
        token_type_ids=torch.zeros_like(text),
        attention_mask=torch.ones_like(text),
    )
    logits = torch.stack([found.logits[..., span].amax(dim=-1) for span in spans], dim=-1)
    return Seen(boxes=corners(found.pred_boxes), logits=logits)


def _owl(detector: TextDetector, image: Tensor, phrases: Sequence[str]) -> Seen:
    """One row of text per phrase and image; the second version pads to a square, the first one stretches."""
    side, batch = int(detector.model.config.vision_config.image_size), len(image)
    height, width = image.shape[2:]
    stretch = image.new_ones(4)
    if detector.model.config.model_type == "owlv2":
        longest = max(height, width)
        image = functional.pad(image, (0, longest - width, 0, longest - height))
        stretch = image.new_tensor([longest / width, longest / height] * 2)
    text = _padded(detector, phrases, int(detector.model.config.text_config.max_position_embeddings))
    found = detector.model(
        pixel_values=normalised(image, (side, side), CLIP),
        input_ids=text["input_ids"].to(image.device).repeat(batch, 1),
        attention_mask=text["attention_mask"].to(image.device).repeat(batch, 1),
    )
    return Seen(boxes=corners(found.pred_boxes) * stretch, logits=found.logits)


def _sam3(detector: TextDetector, image: Tensor, phrases: Sequence[str]) -> Seen:
    """Phrase by phrase on the same features; a row stands for the phrase that it was asked for."""
    side = detector.model.config.image_size
    text = _padded(detector, phrases, int(detector.model.config.text_config.max_position_embeddings))
    seen = detector.model.get_vision_features(pixel_values=normalised(image, (side, side), HALF))
    parts: list[Seen] = []
    for number in range(len(phrases)):
        asked = {key: text[key][number : number + 1].to(image.device).expand(len(image), -1) for key in text}
        found = detector.model(vision_embeds=seen, **asked)
        score = found.pred_logits.sigmoid() * found.presence_logits.sigmoid()
        logits = score.new_full((*score.shape, len(phrases)), ABSENT)
        logits[..., number] = torch.logit(score, eps=1e-6)
        parts.append(Seen(boxes=found.pred_boxes, logits=logits, masks=found.pred_masks))
    return Seen(
        boxes=torch.cat([part.boxes for part in parts], dim=1),
        logits=torch.cat([part.logits for part in parts], dim=1),
        masks=torch.cat([part.masks for part in parts if part.masks is not None], dim=1),
    )


def _padded(detector: TextDetector, phrases: Sequence[str], longest: int) -> dict[str, Tensor]:
    """Token ids and their mask, (P, longest), padded with the tokeniser's own token."""
    text = detector.tokenizer(
        list(phrases), padding="max_length", truncation=False, max_length=longest, return_tensors=None
    )
    counts = [len(ids) for ids in text["input_ids"]]
    if max(counts) > longest:
        worst = phrases[counts.index(max(counts))]
        raise ConfigError(f"phrase {worst!r} has {max(counts)} tokens; this detector reads {longest}; shorten it")
    return {key: torch.tensor(text[key]) for key in ("input_ids", "attention_mask")}


_GROUNDING = Family(
    module="grounding_dino.modeling_grounding_dino",
    model="GroundingDinoForObjectDetection",
    threshold=0.25,
    ask=_grounding,
)
_SAM3 = Family(module="sam3.modeling_sam3", model="Sam3Model", threshold=0.5, ask=_sam3)
FAMILIES = {
    "grounding-dino": _GROUNDING,
    "mm-grounding-dino": Family(
        module="mm_grounding_dino.modeling_mm_grounding_dino",
        model="MMGroundingDinoForObjectDetection",
        threshold=0.25,
        ask=_grounding,
    ),
    "owlvit": Family(module="owlvit.modeling_owlvit", model="OwlViTForObjectDetection", threshold=0.1, ask=_owl),
    "owlv2": Family(module="owlv2.modeling_owlv2", model="Owlv2ForObjectDetection", threshold=0.1, ask=_owl),
    "sam3": _SAM3,
    "sam3_video": _SAM3,
}
"""``model_type`` of a configuration -> how it is asked; a SAM 3 video model has the image model inside."""
