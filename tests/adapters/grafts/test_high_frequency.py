"""SAM-Adapter's prompt generator: the high pass, the patch embedding folded into one convolution, what is shared."""

import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from samgraft.adapters.backbones.sites import SiteContext
from samgraft.adapters.graft import attach
from samgraft.adapters.grafts import FullConfig, HighFrequencyConfig
from samgraft.adapters.grafts import high_frequency as module
from samgraft.adapters.grafts.high_frequency import KEPT, HighFrequencyGraft, high_pass, kept_high_pass
from samgraft.errors import NoMatchError
from tests.adapters.toy import toy_backbone, toy_image
from tests.contract import perturb


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_high_pass(image: Tensor, removed: float) -> Tensor:
    """With the whole spectrum, shifted, and a mask that is written cell by cell."""
    height, width = image.shape[-2:]
    half = int((height * width * removed) ** 0.5 / 2)
    spectrum = torch.fft.fftshift(torch.fft.fft2(image), dim=(-2, -1))
    for i in range(max(0, height // 2 - half), min(height, height // 2 + half)):
        for j in range(max(0, width // 2 - half), min(width, width // 2 + half)):
            spectrum[..., i, j] = 0
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real.abs()


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (15, 9), (8, 40), (1, 6)])
@pytest.mark.parametrize("removed", [0.25, 0.1, 0.9])
def test_half_spectrum_equals_the_whole(size: tuple[int, int], removed: float) -> None:
    image = noise(2, 3, *size)
    torch.testing.assert_close(high_pass(image, removed), plain_high_pass(image, removed), atol=1e-12, rtol=0)


def test_high_pass_keeps_edges_and_drops_what_is_flat() -> None:
    flat = torch.full((1, 3, 32, 32), 2.0)
    assert float(high_pass(flat, 0.25).max()) < 1e-5
    image = torch.zeros(1, 1, 32, 32, dtype=torch.bfloat16)
    image[..., 10:] = 1
    found = high_pass(image, 0.25)
    assert found.dtype == torch.bfloat16
    assert float(found[0, 0, 16, 9]) > 10 * float(found[0, 0, 16, 22]) > 0


def generator_of(grafted: Any) -> HighFrequencyGraft:
    graft = grafted.grafts["high_frequency"]
    assert isinstance(graft, HighFrequencyGraft)
    return graft


def test_prompt_equals_the_formula_with_the_patch_embedding_written_out() -> None:
    backbone = toy_backbone().double()
    grafted = attach(backbone, HighFrequencyConfig(scale_factor=8))
    perturb(grafted)
    graft, image = generator_of(grafted), noise(2, 3, 24, 40)
    x = noise(2, 3, 5, 32, seed=1)
    patches = backbone.sam.vision_encoder.patch_embed.projection(image).permute(0, 2, 3, 1)
    fine = functional.conv2d(plain_high_pass(image, 0.25), graft.conv.weight, graft.conv.bias, stride=8)
    features = graft.embedding(patches) + fine.permute(0, 2, 3, 1)
    for block in range(3):
        part = backbone.block_sites[block].block_input[0]
        expected = functional.gelu(features @ part.tune.weight.T + part.tune.bias) @ graft.up.weight.T + graft.up.bias
        found = part(x, SiteContext(grid_size=(3, 5), image=image))
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_up_is_shared_and_every_tensor_has_one_key() -> None:
    grafted = attach(toy_backbone(), HighFrequencyConfig(blocks="last:2"))
    shared = {f"{name}.{kind}" for name in ("embedding", "conv", "up") for kind in ("weight", "bias")}
    own = {f"blocks.{block}.block_input.tune.{kind}" for block in (1, 2) for kind in ("weight", "bias")}
    assert set(generator_of(grafted).state_dict()) == shared | own
    assert len(grafted.trainable_parameters()) == len(shared | own)
    assert grafted.frozen_blocks() == 1


def test_published_start() -> None:
    torch.manual_seed(0)
    backbone = toy_backbone()
    published = generator_of(attach(backbone, HighFrequencyConfig(scale_factor=1, init="published")))
    for linear in (published.embedding, published.up, backbone.block_sites[0].block_input[0].tune):
        assert float(linear.weight.detach().std()) == pytest.approx(0.02, rel=0.15) and not linear.bias.any()
    assert float(published.conv.weight.detach().std()) == pytest.approx((2 / (64 * 32)) ** 0.5, rel=0.05)
    identity = generator_of(attach(toy_backbone(), HighFrequencyConfig(scale_factor=1)))
    assert not identity.up.weight.any() and not identity.up.bias.any() and identity.embedding.weight.any()


@pytest.fixture
def transforms(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Images that were high-passed."""
    seen: list[Tensor] = []
    original = module.high_pass

    def counted(image: Tensor, removed: float) -> Tensor:
        seen.append(image)
        return original(image, removed)

    monkeypatch.setattr(module, "high_pass", counted)
    return seen


@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_transform_per_image_also_with_checkpointing(transforms: list[Tensor], checkpointing: bool) -> None:
    backbone = toy_backbone()
    grafted = attach(backbone, HighFrequencyConfig())
    backbone.checkpointing = checkpointing
    for _ in range(2):
        grafted.encode(toy_image()).neck.square().mean().backward()
    assert len(transforms) == 2
    with torch.inference_mode():
        grafted.encode(toy_image())
    assert len(transforms) == 3
    grafted.encode(toy_image().requires_grad_(True)).neck.mean().backward()
    assert len(transforms) == (9 if checkpointing else 6), "an image with a gradient gets it in every block"


def test_what_is_kept_follows_the_image_and_dies_with_it(transforms: list[Tensor]) -> None:
    image = noise(1, 3, 8, 8)
    first = kept_high_pass(image, 0.25)
    assert kept_high_pass(image, 0.25) is first
    assert not torch.equal(kept_high_pass(image, 0.7), first)
    with torch.no_grad():
        image[0, 0, 0, 0] += 1
    assert torch.equal(kept_high_pass(image, 0.25), high_pass(image, 0.25))
    assert len(transforms) == 3 and not kept_high_pass(image, 0.25).requires_grad
    kept = weakref.ref(image.__dict__[KEPT][0.25][1])
    transforms.clear()
    del image
    gc.collect()
    assert kept() is None


def test_gradient_reaches_an_image_that_asks_for_one() -> None:
    grafted = attach(toy_backbone().double(), HighFrequencyConfig(scale_factor=8, blocks=(0,)))
    perturb(grafted)
    graft, image = generator_of(grafted), noise(1, 3, 8, 16).requires_grad_(True)
    with torch.no_grad():
        graft.features(image)
    assert torch.autograd.gradcheck(graft.features, (image,))


def test_threads_do_not_mix_images() -> None:
    grafted = attach(toy_backbone(), HighFrequencyConfig(scale_factor=8)).eval()
    perturb(grafted)
    images = [toy_image(seed=seed) for seed in range(4)]
    with torch.no_grad():
        expected = [grafted.encode(image).neck for image in images]
    found: dict[int, list[Tensor]] = {index: [] for index in range(len(images))}

    def work(index: int) -> None:
        with torch.no_grad():
            found[index] += [grafted.encode(images[index]).neck for _ in range(3)]

    threads = [threading.Thread(target=work, args=(index,)) for index in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, necks in found.items():
        assert len(necks) == 3 and all(torch.equal(neck, expected[index]) for neck in necks)


def test_a_trained_patch_embedding_is_the_one_that_is_read() -> None:
    """Beside "full", the copy that is trained takes the place of the frozen convolution."""
    backbone, image = toy_backbone(), toy_image()
    grafted = attach(backbone, [FullConfig(), HighFrequencyConfig()])
    perturb(grafted)
    projection = backbone.sam.vision_encoder.patch_embed.projection
    graft, normalised = generator_of(grafted), image - 0.5
    fine = graft.conv(high_pass(normalised, 0.25)).permute(0, 2, 3, 1)
    expected = fine + graft.embedding(projection(normalised).permute(0, 2, 3, 1))
    torch.testing.assert_close(graft.features(normalised), expected, atol=1e-4, rtol=1e-4)
    assert projection.weight.requires_grad
    grafted.detach()
    assert not backbone.sam.vision_encoder.patch_embed.projection.weight.requires_grad


def test_a_backbone_without_patch_convolution_is_refused() -> None:
    backbone = toy_backbone()
    backbone.sam.vision_encoder.patch_embed.projection = torch.nn.Identity()
    with pytest.raises(NoMatchError, match="no patch convolution of SAM's kind"):
        attach(backbone, HighFrequencyConfig())
