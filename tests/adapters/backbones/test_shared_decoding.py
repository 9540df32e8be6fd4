"""Many prompts on one image: the function of SamModel's decoder, with the shared part computed once."""

import pytest
import torch
from torch import Tensor

from samgraft.adapters.backbones import Features, HFSamBackbone, hf, shared_decoding
from samgraft.adapters.backbones.shared_decoding import can_share
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import DecoderLoraConfig
from samgraft.adapters.prompts.base import Prompts
from tests.data.checkpoints import toy_sam

NUMBER = 22


@pytest.fixture
def backbone() -> HFSamBackbone:
    return HFSamBackbone(toy_sam())


def prompts(kind: str, dtype: torch.dtype = torch.float32) -> Prompts:
    """Prompts on images 0 and 2 (in turn) and one on image 1."""
    generator = torch.Generator().manual_seed(3)
    index = torch.arange(NUMBER) % 2 * 2
    index[5] = 1
    corner = torch.rand(NUMBER, 2, generator=generator) * 20
    points = torch.rand(NUMBER, 2, 2, generator=generator) * 60
    labels = torch.tensor([1, 0]).expand(NUMBER, 2)
    boxes = torch.cat([corner, corner + 25], dim=1)
    given = {
        "boxes": {"boxes": boxes.to(dtype)},
        "points": {"points": points.to(dtype), "labels": labels},
        "both": {"boxes": boxes.to(dtype), "points": points.to(dtype), "labels": labels},
    }
    return Prompts(image_index=index, **given[kind])


def neck(dtype: torch.dtype = torch.float32) -> Features:
    return Features(neck=torch.randn(3, 32, 8, 6, generator=torch.Generator().manual_seed(4), dtype=dtype))


def one_by_one(backbone: HFSamBackbone, given: Prompts, multimask: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The plain decoder, which takes what is fewer than SHARED_FROM."""
    rows = [given.select(torch.tensor([i])) for i in range(len(given))]
    found = [backbone.decode(neck(dtype), row, multimask=multimask) for row in rows]
    return torch.cat([logits for logits, _ in found]), torch.cat([iou for _, iou in found])


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("kind", ["boxes", "points", "both"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 5e-5)])
def test_equals_the_plain_decoder(
    backbone: HFSamBackbone,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    multimask: bool,
    dtype: torch.dtype,
    atol: float,
) -> None:
    backbone.to(dtype)
    monkeypatch.setattr(shared_decoding, "UPSCALE_TOKENS", 20 if multimask else 100)  # parts of an image, two images
    seen: list[int] = []
    decode = hf.SharedImage.decode

    def counted(self: hf.SharedImage, sparse: Tensor, *, multimask: bool) -> tuple[Tensor, Tensor]:
        seen.append(len(sparse))
        return decode(self, sparse, multimask=multimask)

    expected = one_by_one(backbone, prompts(kind, dtype), multimask, dtype)
    monkeypatch.setattr(hf.SharedImage, "decode", counted)
    found = backbone.decode(neck(dtype), prompts(kind, dtype), multimask=multimask)
    assert sum(seen) == NUMBER - 1  # all but the lonely one
    for mine, other in zip(found, expected, strict=True):
        assert other.std() > 1e-3
        torch.testing.assert_close(mine, other, rtol=0, atol=atol)


def test_parts_are_small_and_cover_every_prompt_once(backbone: HFSamBackbone) -> None:
    given = prompts("boxes")
    parts = list(backbone.decode_parts(neck(), given, chunk=4))
    assert max(len(rows) for rows, _, _ in parts) == 4
    assert sorted(int(row) for rows, _, _ in parts for row in rows) == list(range(NUMBER))
    whole = backbone.decode(neck(), given)[0]
    for rows, logits, _ in parts:
        torch.testing.assert_close(logits, whole[rows], rtol=0, atol=5e-5)


def test_what_differs_per_prompt_or_is_wrapped_takes_the_plain_decoder(backbone: HFSamBackbone) -> None:
    assert can_share(backbone.sam.mask_decoder)
    given = prompts("boxes")
    masks = torch.randn(NUMBER, 1, 32, 24)
    masked = Prompts(image_index=given.image_index, boxes=given.boxes, masks=masks)
    expected = torch.cat([backbone.decode(neck(), masked.select(torch.tensor([i])))[0] for i in range(NUMBER)])
    torch.testing.assert_close(backbone.decode(neck(), masked)[0], expected, rtol=0, atol=1e-5)
    plain = backbone.decode(neck(), given)[0]
    attach(backbone, DecoderLoraConfig())
    assert not can_share(backbone.sam.mask_decoder)
    torch.testing.assert_close(backbone.decode(neck(), given)[0], plain, rtol=0, atol=5e-5)
