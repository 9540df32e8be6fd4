"""docs/misquoted_figures.md: every number is counted on modules here, and has to stand on the page as it comes out."""

import pytest
import torch
from torch import nn
from transformers import SamConfig, SamModel

from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import BottleneckConfig, LoraConfig
from tests.adapters.sam_shapes import meta_backbone
from tests.adapters.toy import toy_backbone
from tests.reference.write import DOCS

PAGE = (DOCS / "misquoted_figures.md").read_text()
TOKENS_SAMED = 9
"""Eight classes and background."""
POSITION_CODE = 256
"""Values of the fixed position matrix, a parameter in transformers and a buffer in the original."""
FLOAT32 = 4


def numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def decoder(tokens: int) -> int:
    """Parameters of a mask decoder with that many mask tokens."""
    with torch.device("meta"):
        return numel(SamModel(SamConfig(mask_decoder_config={"num_multimask_outputs": tokens - 1})).mask_decoder)


def mib(parameters: int) -> str:
    return f"{parameters * FLOAT32 / 2**20:.2f} MiB"


def on_page(*texts: object) -> None:
    for text in texts:
        shown = f"{text:,}" if isinstance(text, int) else str(text)
        assert shown in PAGE, f"{shown} is what comes out; docs/misquoted_figures.md says something else"


@pytest.mark.parametrize("tokens", [1, 4, TOKENS_SAMED])
def test_decoder_formula(tokens: int) -> None:
    assert decoder(tokens) == 3_497_056 + 140_321 * tokens


def test_samed_is_18_74_mib() -> None:
    base = meta_backbone("b")
    lora, own = numel(LoraConfig(rank=4, targets=("q", "v")).build(base)), decoder(TOKENS_SAMED)
    prompts, total = numel(base.sam.prompt_encoder) - POSITION_CODE, numel(base) - POSITION_CODE
    assert (lora, own, prompts, total) == (147_456, 4_759_945, 6_220, 93_735_472)
    together = lora + own + prompts
    assert together == 4_913_621
    on_page(
        lora, own, prompts, together, total, total + POSITION_CODE, mib(together), f"{100 * together / total:.2f} %"
    )
    assert round(18.81 / 0.0525) == 358
    on_page("358 million", f"{total * FLOAT32 / 2**20:.1f} MiB", f"{100 * lora / total:.3f} %")


def test_samed_on_h_is_the_21() -> None:
    base = meta_backbone("h")
    together = numel(LoraConfig(rank=4).build(base)) + decoder(TOKENS_SAMED) + 6_220
    assert together == 5_421_525
    on_page(together, mib(together))


def test_med_sa_cannot_be_13_million_on_h() -> None:
    two = {size: numel(BottleneckConfig().build(meta_backbone(size))) for size in ("b", "h")}
    three = {size: 3 * count // 2 for size, count in two.items()}
    encoder = numel(meta_backbone("h").sam.vision_encoder)
    assert two == {"b": 7_100_928, "h": 52_531_200} and min(two["h"], three["h"]) > 4 * 13e6
    on_page(*two.values(), *three.values(), encoder, f"{100 * two['h'] / encoder:.1f} %")
    on_page(*(count["b"] + decoder(4) for count in (two, three)), decoder(4))


def test_a_table_counts_what_the_page_counts() -> None:
    backbone = toy_backbone()
    lora = attach(backbone, LoraConfig(rank=4))
    expected = 4 * 4 * backbone.spec.embed_dim * backbone.spec.num_blocks
    assert f" {expected:,} " in lora.trainable_table()
