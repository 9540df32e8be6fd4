"""Boxes from words: geometry and text with stand-ins whose answers are known, then tiny random models of each kind."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertTokenizerFast,
    CLIPTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    OwlViTConfig,
    OwlViTForObjectDetection,
    SwinConfig,
)
from transformers.models.sam3.configuration_sam3 import Sam3Config
from transformers.models.sam3.modeling_sam3 import Sam3Model

from samgraft.adapters.graft import attach
from samgraft.adapters.prompts.text_boxes import TextBoxes, TextBoxesConfig, pixel_edges
from samgraft.adapters.prompts.text_detectors import FAMILIES, HALF, TextDetector, normalised, shortest_longest
from samgraft.errors import CheckpointError, ConfigError
from tests.adapters.toy import toy_backbone, toy_image

WORDS = ("roof", "red", "tank", "a")


def bert_tokenizer() -> BertTokenizerFast:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]
    return BertTokenizerFast(vocab={token: number for number, token in enumerate(vocabulary)})


def clip_tokenizer() -> CLIPTokenizerFast:
    letters = sorted(set("".join(WORDS)))
    vocabulary = ["!", *letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizerFast(vocab={token: number for number, token in enumerate(vocabulary)}, merges=[], pad_token="!")


def grounding() -> tuple[Any, Any]:
    swin = SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_indices=[2, 3, 4])
    bert = BertConfig(vocab_size=10, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config=bert,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=12,
        max_text_len=32,
    )
    return GroundingDinoForObjectDetection(config), bert_tokenizer()


def owl(version: int) -> tuple[Any, Any]:
    tokenizer = clip_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = sizes | {"vocab_size": len(tokenizer), "max_position_embeddings": 12}
    vision = sizes | {"image_size": 32, "patch_size": 8}
    config_class, model = (
        (Owlv2Config, Owlv2ForObjectDetection) if version == 2 else (OwlViTConfig, OwlViTForObjectDetection)
    )
    return model(config_class(text_config=text, vision_config=vision, projection_dim=16)), tokenizer


def sam3() -> tuple[Any, Any]:
    tokenizer = clip_tokenizer()
    part = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    backbone = part | {
        "num_hidden_layers": 2,
        "image_size": 56,
        "patch_size": 14,
        "pretrain_image_size": 28,
        "window_size": 2,
        "global_attn_indexes": [1],
        "model_type": "sam3_vit_model",
    }
    text = part | {
        "vocab_size": len(tokenizer),
        "projection_dim": 16,
        "num_hidden_layers": 1,
        "max_position_embeddings": 12,
        "model_type": "clip_text_model",
    }
    config = Sam3Config(
        vision_config={
            "backbone_config": backbone,
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config=text,
        geometry_encoder_config=part | {"num_layers": 1},
        detr_encoder_config=part | {"num_layers": 1},
        detr_decoder_config=part | {"num_layers": 1, "num_queries": 5},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    return Sam3Model(config), tokenizer


MODELS = {
    "grounding-dino": grounding,
    "owlvit": lambda: owl(1),
    "owlv2": lambda: owl(2),
    "sam3": sam3,
}


@pytest.mark.parametrize("kind", MODELS)
def test_tiny_random_models_write_prompts_from_a_folder(kind: str, tmp_path: Path) -> None:
    model, tokenizer = MODELS[kind]()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    backbone, image = toy_backbone(), toy_image(64, 96)
    config = TextBoxesConfig(
        model=str(folder), phrases=("roof", "red tank"), threshold=0.0, nms=1.0, most=4, masks=kind == "sam3"
    )
    grafted = attach(backbone, prompter=config)
    assert grafted.trainable_parameters() == [] and grafted.graft_state() == {}
    features = backbone.encode(image)
    prompts = grafted.prompt(features, image)
    assert 1 <= len(prompts) <= 8 and not prompts.from_ground_truth
    assert prompts.boxes is not None and prompts.scores is not None and prompts.class_logits is not None
    assert prompts.class_logits.shape == (len(prompts), 2)
    torch.testing.assert_close(prompts.scores, prompts.class_logits.amax(dim=1).sigmoid())
    assert bool((prompts.boxes[:, 2:] >= prompts.boxes[:, :2]).all()) and prompts.boxes.min() >= 0
    assert prompts.boxes[:, [0, 2]].max() <= 95 and prompts.boxes[:, [1, 3]].max() <= 63
    for number in (0, 1):
        own = prompts.scores[prompts.image_index == number]
        assert own.tolist() == sorted(own.tolist(), reverse=True)
    assert (prompts.masks is not None) == (kind == "sam3")
    logits, _ = backbone.decode(features, prompts)
    assert logits.shape == (len(prompts), 1, 32, 48) and bool(logits.isfinite().all())
    # the same boxes as the model gives for the same pixels and tokens
    again = TextBoxes(config, TextDetector(model, tokenizer))(features, image, {})
    torch.testing.assert_close(again.boxes, prompts.boxes)
    assert grafted.prompter is not None and grafted.graft_state() == {}


def test_phrases_of_the_text_are_told_apart_by_their_tokens() -> None:
    tokenizer = bert_tokenizer()
    asked = {}

    class Model:
        config = SimpleNamespace(model_type="grounding-dino", max_text_len=32)
        dtype = torch.float32

        def eval(self) -> "Model":
            return self

        def requires_grad_(self, wanted: bool) -> "Model":
            return self

        def to(self, device: object) -> "Model":
            return self

        def __call__(self, **given: torch.Tensor) -> SimpleNamespace:
            asked.update(given)
            logits = torch.full((1, 2, 32), -9.0)
            logits[0, 0, 4], logits[0, 1, 1], logits[0, 1, 2] = 2.0, 1.0, 3.0  # "tank"; "red" and "roof"
            return SimpleNamespace(
                logits=logits, pred_boxes=torch.tensor([[[0.5, 0.25, 0.5, 0.1], [0.2, 0.5, 0.2, 1.0]]])
            )

    detector = TextDetector(Model(), tokenizer)
    seen = detector(torch.rand(1, 3, 40, 80), ["Red roof", "tank"])
    # [CLS] red roof . tank . [SEP]
    assert asked["input_ids"].tolist() == [[2, 7, 6, 5, 8, 5, 3]]
    assert asked["pixel_values"].shape == (1, 3, 666, 1332) or asked["pixel_values"].shape == (1, 3, 666, 1333)
    assert seen.logits.tolist() == [[[-9.0, 2.0], [3.0, -9.0]]]
    prompts = TextBoxes(TextBoxesConfig(phrases=("Red roof", "tank"), threshold=0.5), detector)(
        SimpleNamespace(neck=torch.zeros(1, 4, 5, 10)),
        torch.rand(1, 3, 40, 80),
        {},  # type: ignore[arg-type]
    )
    assert prompts.boxes is not None and prompts.scores is not None and prompts.class_logits is not None
    torch.testing.assert_close(prompts.boxes, torch.tensor([[8.0, 0, 23, 39], [20, 8, 59, 11]]))
    assert prompts.class_logits.argmax(dim=1).tolist() == [0, 1]
    with pytest.raises(ConfigError, match=r"\['a.b'\] hold a dot"):
        detector(torch.rand(1, 3, 8, 8), ["a.b"])
    with pytest.raises(ConfigError, match="are 34 tokens; this detector reads 32"):
        detector(torch.rand(1, 3, 8, 8), ["a"] * 16)


def test_owlv2_boxes_are_shares_of_the_padded_square() -> None:
    model, tokenizer = owl(2)
    seen: dict[str, torch.Tensor] = {}

    def answer(**given: torch.Tensor) -> SimpleNamespace:
        seen.update(given)
        return SimpleNamespace(logits=torch.zeros(1, 1, 1), pred_boxes=torch.tensor([[[0.5, 0.25, 0.2, 0.1]]]))

    model.forward = answer
    found = TextDetector(model, tokenizer)(torch.ones(1, 3, 32, 64), ["roof"])
    torch.testing.assert_close(pixel_edges(found.boxes[0], (32, 64)), torch.tensor([[25.6, 12.8, 38.4, 19.2]]))
    top, bottom = seen["pixel_values"][0, 0, 4].mean(), seen["pixel_values"][0, 0, 28].mean()
    assert top > 1.5 and bottom < -1.5  # ones above, zeros below, both normalised
    with pytest.raises(ConfigError, match="phrase 'roof roof roof' has 14 tokens; this detector reads 12"):
        TextDetector(model, tokenizer)(torch.ones(1, 3, 32, 64), ["roof", "roof roof roof"])


def test_sizes_and_edges() -> None:
    assert shortest_longest((400, 600)) == (800, 1200) and shortest_longest((400, 1000)) == (533, 1333)
    assert float(normalised(torch.ones(1, 3, 4, 6), (4, 6), HALF).mean()) == 1
    assert pixel_edges(torch.tensor([[-0.1, 0.5, 1.5, 0.75]]), (40, 80)).tolist() == [[0, 20, 80, 30]]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    backbone, image = toy_backbone(), toy_image()
    features = backbone.encode(image)
    with pytest.raises(ConfigError, match="no detector is named; give model="):
        TextBoxesConfig(phrases=("a",)).build(backbone)(features, image, {})
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        TextBoxesConfig(model=str(tmp_path), phrases=("a",)).build(backbone)(features, image, {})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="type 'bert' cannot be asked by text here; known: grounding-dino"):
        TextDetector.load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "owlv2"}))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        TextDetector.load(str(tmp_path))
    model, tokenizer = owl(1)
    with pytest.raises(ConfigError, match="name what to look for"):
        TextDetector(model, tokenizer)(image, [])
    for options, message in (
        ({"threshold": 1.0}, "threshold is 1.0"),
        ({"nms": 0.0}, "nms is 0"),
        ({"most": 0}, "most is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            TextBoxesConfig(**options)  # type: ignore[arg-type]
    assert set(MODELS) <= set(FAMILIES)


def test_nothing_found_is_no_prompt() -> None:
    model, tokenizer = owl(1)
    nothing = SimpleNamespace(logits=torch.full((2, 16, 1), -20.0), pred_boxes=torch.full((2, 16, 4), 0.5))
    model.forward = lambda **given: nothing
    backbone, image = toy_backbone(), toy_image(64, 96)
    features = backbone.encode(image)
    prompts = TextBoxes(TextBoxesConfig(phrases=("a",)), TextDetector(model, tokenizer))(features, image, {})
    assert len(prompts) == 0 and prompts.boxes is not None and prompts.boxes.shape == (0, 4)
    assert [len(logits) for _, logits, _ in backbone.decode_parts(features, prompts)] in ([], [0])
