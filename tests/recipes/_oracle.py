"""Backbones whose answers are known: bright pixels are objects. What the engine adds is then visible in the masks."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from samgraft.adapters.backbones.base import Backbone, BackboneSpec, Features, Prefix
from samgraft.adapters.decoders.base import SemanticOutput
from samgraft.adapters.prompts.base import Prompts


class Oracle(Backbone):
    """Answers with bright pixels: those inside the box, or the bright component under the first point."""

    def __init__(self, native: int = 64) -> None:
        super().__init__()
        self.spec = BackboneSpec(
            name="oracle",
            patch_size=8,
            native_size=native,
            embed_dim=4,
            num_blocks=1,
            num_heads=1,
            window_size=8,
            global_blocks=(0,),
            neck_channels=4,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        )
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.seen: list[Prompts] = []
        self.sizes: list[tuple[int, ...]] = []

    def encode(self, image: Tensor, taps: Sequence[int] = ()) -> Features:
        self.sizes.append(tuple(image.shape))
        return Features(neck=functional.avg_pool2d(image[:, :1], 2))

    def prefix(self, image: Tensor, stop: int, taps: Sequence[int] = ()) -> Prefix:
        raise NotImplementedError

    def resume(self, prefix: Prefix, image: Tensor, taps: Sequence[int] = ()) -> Features:
        raise NotImplementedError

    def untouched(self) -> tuple[int, bool]:
        return 0, False

    def embed(self, prompts: Prompts, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def decode(self, features: Features, prompts: Prompts, *, multimask: bool = False) -> tuple[Tensor, Tensor]:
        self.seen.append(prompts)
        bright = (features.neck[:, 0] - 0.5) * 20
        rows = []
        for number in range(len(prompts)):
            one = bright[prompts.image_index[number]].clone()
            if prompts.boxes is not None:
                one[~self._inside(prompts.boxes[number], one.shape)] = -10
            elif prompts.points is not None:
                x, y = ((prompts.points[number, 0] + 0.5) / 2 - 0.5).round().long().clamp(0, one.shape[-1] - 1).tolist()
                labels, _ = ndimage.label((one > 0).numpy())
                one[torch.from_numpy(labels != labels[y, x])] = -10
                if labels[y, x] == 0:
                    one[:] = -10
            rows.append(torch.stack([one - 4, one, one + 4]) if multimask else one[None])
        iou = torch.tensor([0.5, 0.9, 0.4]) if multimask else torch.tensor([0.8])
        return torch.stack(rows), iou.expand(len(prompts), -1)

    def weights_hash(self) -> str:
        return "oracle"

    @staticmethod
    def _inside(box: Tensor, shape: torch.Size) -> Tensor:
        """Centres of mask pixels (2 network pixels wide) within the outer edges of ``box``."""
        y, x = ((torch.arange(n) + 0.5) * 2 for n in shape)
        inside = (x > box[0] - 1e-3) & (x < box[2] + 1.001)
        return inside[None] & ((y > box[1] - 1e-3) & (y < box[3] + 1.001))[:, None]


class OracleGraft(nn.Module):
    """What the automatic mode needs of a Grafted: class 1 is bright, in softmax or sigmoid form."""

    def __init__(self, *, instance: bool = False, activation: str = "softmax") -> None:
        super().__init__()
        self.backbone, self.instance, self.activation = Oracle(), instance, activation
        self.calls = 0

    def encode(self, image: Tensor) -> Features:
        return self.backbone.encode(image)

    def predict(self, image: Tensor, *, features: Features) -> SemanticOutput:
        self.calls += len(image)
        bright = (features.neck - 0.5) * 20
        if self.activation == "sigmoid":
            return SemanticOutput(logits=bright, activation="sigmoid")
        layers = [-bright, bright, torch.full_like(bright, -20.0)] if self.instance else [-bright, bright]
        return SemanticOutput(logits=torch.cat(layers, dim=1), activation="softmax")


def squares(shape: tuple[int, int], boxes: Sequence[tuple[int, int, int, int]]) -> np.ndarray:
    """(H, W) uint8: 220 inside the boxes (x0, y0, x1, y1, inclusive), 20 elsewhere."""
    image = np.full(shape, 20, np.uint8)
    for x0, y0, x1, y1 in boxes:
        image[y0 : y1 + 1, x0 : x1 + 1] = 220
    return image
