"""SAHI's merging of the masks in a folder; run by ``seams`` in an interpreter that has sahi (and needs nothing else).

Usage: python _seam_sahi.py FOLDER WAY SIDE. Reads FOLDER/tile*.npz (labels (h, w), corner), writes FOLDER/WAY.npz.
"""

import sys
import time
from pathlib import Path

import cv2
import numpy as np
from sahi.postprocess import combine
from sahi.prediction import ObjectPrediction

WAYS = {
    "GREEDYNMM": combine.GreedyNMMPostprocess,
    "NMM": combine.NMMPostprocess,
    "NMS": combine.NMSPostprocess,
}


def outlines(mask: np.ndarray) -> list[list[int]]:
    """COCO polygons of a mask, through the centres of its border pixels."""
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [points.ravel().tolist() for points in found if len(points) >= 3]


def predictions(folder: Path, side: int) -> list[ObjectPrediction]:
    """Every object of every tile, shifted to its place; the larger, the better its score."""
    found = []
    for path in sorted(folder.glob("tile*.npz")):
        with np.load(path) as file:
            labels, (top, left) = file["labels"], file["corner"].tolist()
        for label in range(1, int(labels.max()) + 1):
            mask = labels == label
            polygons = outlines(mask)
            if polygons:
                y, x = np.nonzero(mask)
                one = ObjectPrediction(
                    bbox=[int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1],
                    category_id=0,
                    category_name="object",
                    score=float(0.5 + 0.5 * min(1.0, mask.sum() / 400_000)),
                    segmentation=polygons,
                    shift_amount=[left, top],
                    full_shape=[side, side],
                )
                found.append(one.get_shifted_object_prediction())
    return found


def main(name: str, way: str, side: int) -> None:
    folder = Path(name)
    post = WAYS[way](match_threshold=0.5, match_metric="IOS", class_agnostic=True)
    found = predictions(folder, side)
    start = time.perf_counter()
    merged = post(found)
    seconds = time.perf_counter() - start
    whole = np.zeros((side, side), dtype=np.int32)
    for number, one in enumerate(merged, start=1):
        for polygon in one.mask.segmentation:
            cv2.fillPoly(
                whole, [np.array(polygon, dtype=np.float64).round().astype(np.int32).reshape(-1, 1, 2)], number
            )
    np.savez(folder / f"{way}.npz", labels=whole, seconds=seconds)
    print(way, len(merged), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
