"""A toy backbone: SAM's shape at 64 pixels and width 32, with weights that are random but not degenerate."""

import torch
from torch import Tensor

from samgraft.adapters.backbones.hf import HFSamBackbone
from samgraft.adapters.backbones.tiny import build_graft_tiny, tiny_config
from samgraft.adapters.prompts.base import Prompts


def toy_backbone(*, num_blocks: int = 3, seed: int = 0, patch_size: int = 8) -> HFSamBackbone:
    """A frozen backbone of ``num_blocks`` blocks, width 32, 8 x 8 tokens at its native side, 32 neck channels.

    Windows are 3 tokens wide, so that 8 tokens need padding; the last block of three attends globally.
    """
    config = tiny_config(embed_dim=32, num_blocks=num_blocks, num_heads=2, neck_channels=32, native_size=8 * patch_size)
    for part in ("vision_config", "prompt_encoder_config"):
        config[part]["patch_size"] = patch_size
    config["vision_config"]["window_size"] = 3
    model = build_graft_tiny(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rel_pos" in name or name.endswith("pos_embed"):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return HFSamBackbone(model)


def toy_image(height: int = 64, width: int = 64, *, batch: int = 2, seed: int = 1) -> Tensor:
    """(batch, 3, height, width) in [0, 1]: noise with a bright disc that differs between images."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.3 * torch.rand(batch, 3, height, width, generator=generator)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for index in range(batch):
        disc = (y - height / 2) ** 2 + (x - width / (2 + index)) ** 2 < (height / 4) ** 2
        image[index, :, disc] += 0.6
    return image


def toy_prompts() -> Prompts:
    """Three instances, one in image 0 and two in image 1, each with a box and up to two points."""
    return Prompts(
        image_index=torch.tensor([0, 1, 1]),
        points=torch.tensor([[[20.0, 30.0], [0.0, 0.0]], [[5.0, 9.0], [40.0, 12.0]], [[50.0, 50.0], [1.0, 60.0]]]),
        labels=torch.tensor([[1, -10], [1, 0], [1, 1]]),
        boxes=torch.tensor([[5.0, 6.0, 40.0, 50.0], [0.0, 0.0, 20.0, 30.0], [30.0, 20.0, 63.0, 63.0]]),
    )
