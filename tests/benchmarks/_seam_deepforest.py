"""DeepForest's merging of the boxes of the masks in a folder; run by ``seams`` in an interpreter that has deepforest.

Usage: python _seam_deepforest.py FOLDER WAY SIDE. Reads FOLDER/plan.npz (side, overlap) and FOLDER/tile*.npz (labels
(h, w), corner), writes FOLDER/WAY.npz (boxes (n, 4): top, left, bottom, right, the last two exclusive). Windows are cut
and boxes merged by ``deepforest.predict_tile`` with its own threshold; only the network is replaced. It reads where a
window lies from the pixels: their values are their places.
"""

import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from deepforest.main import deepforest
from scipy import ndimage

PLACES = 65536  # a power of two, so that a place over it is exact


class Oracle(torch.nn.Module):
    """Boxes of the objects of each window, by its corner; the larger an object, the better its score."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.windows = {}
        for path in sorted(folder.glob("tile*.npz")):
            with np.load(path) as file:
                labels, (top, left) = file["labels"], file["corner"].tolist()
            boxes = [
                [cols.start, rows.start, cols.stop, rows.stop]
                for rows, cols in (box for box in ndimage.find_objects(labels) if box is not None)
            ]
            areas = np.bincount(labels.ravel())[1:]
            scores = 0.5 + 0.5 * np.minimum(1.0, areas[areas > 0] / 400_000)
            self.windows[top, left, *labels.shape] = {
                "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                "labels": torch.zeros(len(boxes), dtype=torch.int64),
                "scores": torch.tensor(scores, dtype=torch.float32),
            }
        self.asked: set[tuple[int, ...]] = set()

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        keys = [
            (*(int(round(float(image[channel, 0, 0]) * PLACES)) for channel in (0, 1)), *image.shape[1:])
            for image in images
        ]
        self.asked.update(keys)
        return [self.windows[key] for key in keys]


def main(name: str, way: str, side: int) -> None:
    warnings.filterwarnings("ignore")
    folder = Path(name)
    with np.load(folder / "plan.npz") as plan:
        size, overlap = int(plan["side"]), int(plan["overlap"])
    image = np.zeros((3, side, side), dtype=np.float32)
    image[0], image[1] = np.arange(side)[:, None] / PLACES, np.arange(side) / PLACES
    network = Oracle(folder)
    model = deepforest(model=network, config_args={"log_root": name, "accelerator": "cpu"})
    model.numeric_to_label_dict = {0: "object"}
    start = time.perf_counter()
    merged = model.predict_tile(image=image, patch_size=size, patch_overlap=overlap / size)
    seconds = time.perf_counter() - start
    if len(network.asked) != len(network.windows):
        raise SystemExit("DeepForest's windows are not those in the folder")
    boxes = merged[["ymin", "xmin", "ymax", "xmax"]].to_numpy().astype(np.int64)
    np.savez(folder / f"{way}.npz", boxes=boxes, seconds=seconds)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
