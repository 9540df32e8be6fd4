"""Tiny labelled data sets of each layout, written with plain libraries."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import Affine


def disc(height: int, width: int, row: float, col: float, radius: float) -> np.ndarray:
    """Boolean (height, width) disc."""
    y, x = np.ogrid[:height, :width]
    return (y - row) ** 2 + (x - col) ** 2 <= radius**2


def write_volumes(root: Path, *, cases: int = 4, modality: str = "MRI", seed: int = 0) -> Path:
    """nnU-Net layout: (i, j, k) = (40, 36, 6), spacing 1 x 1 x 4 mm, two classes, the last case validates."""
    rng = np.random.default_rng(seed)
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    affine[:3, 3] = (3.0, -7.0, 11.0)
    ids = [f"case_{i:02d}" for i in range(cases)]
    for index, name in enumerate(ids):
        label = np.zeros((40, 36, 6), dtype=np.uint8)
        for k in range(1, 5):
            label[disc(40, 36, 15 + index, 14, 7), k] = 1
            label[disc(40, 36, 28, 25, 5), k] = 2
        image = 200.0 * (label == 1) + 400.0 * (label == 2) + rng.normal(100, 10, label.shape)
        image = image - (1000 if modality == "CT" else 0) * (label == 0)
        nib.save(nib.Nifti1Image(image.astype(np.float32), affine), root / "imagesTr" / f"{name}_0000.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), root / "labelsTr" / f"{name}.nii.gz")
    header = {
        "channel_names": {"0": modality},
        "labels": {"background": 0, "left": 1, "right": 2},
        "file_ending": ".nii.gz",
    }
    header |= {"numTraining": cases, "name": "tiny"}
    (root / "dataset.json").write_text(json.dumps(header))
    (root / "splits.json").write_text(json.dumps([{"train": ids[:-1], "val": ids[-1:]}]))
    return root


def write_pictures(root: Path, *, cases: int = 6, instances: bool = False, classes: int = 1, seed: int = 0) -> Path:
    """images/ and masks/ (0/255 for one class) or instances/ of 60 x 70 pixels; two pictures per patient."""
    rng = np.random.default_rng(seed)
    folder = "instances" if instances else "masks"
    for name in ("images", folder):
        (root / name).mkdir(parents=True)
    for index in range(cases):
        label = np.zeros((60, 70), dtype=np.uint16 if instances else np.uint8)
        label[disc(60, 70, 20, 20 + index, 9)] = 1
        label[disc(60, 70, 40, 50, 8)] = 2 if instances or classes > 1 else 1
        image = np.clip((label > 0) * 120 + rng.normal(60, 12, label.shape), 0, 255).astype(np.uint8)
        name = f"P{index // 2}-{index:03d}.png"
        Image.fromarray(np.repeat(image[..., None], 3, axis=-1)).save(root / "images" / name)
        values = label if instances or classes > 1 else label * 255
        Image.fromarray(values).save(root / folder / name)
    patients = [f"P{i}" for i in range((cases + 1) // 2)]
    (root / "splits.json").write_text(json.dumps([{"train": patients[:-1], "val": patients[-1:]}]))
    return root


def write_rasters(root: Path, *, cases: int = 3, seed: int = 0) -> Path:
    """images/*.tif (3 bands, EPSG:32645, 0.5 m, nodata corner) and labels/*.geojson with three buildings."""
    rng = np.random.default_rng(seed)
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for index in range(cases):
        left, top = 300000.0 + 50 * index, 3000000.0
        image = rng.integers(40, 90, (3, 96, 96)).astype(np.uint8)
        features = []
        for number, (row, col) in enumerate([(10, 12), (50, 20), (30, 60)]):
            image[:, row : row + 20, col : col + 24] += 120
            corners = [(col, row), (col + 24, row), (col + 24, row + 20), (col, row + 20), (col, row)]
            ring = [[left + 0.5 * x, top - 0.5 * y] for x, y in corners]
            features.append(
                {
                    "type": "Feature",
                    "properties": {"id": number},
                    "geometry": {"type": "Polygon", "coordinates": [ring]},
                }
            )
        image[:, :6, :6] = 0
        profile = {
            "driver": "GTiff",
            "height": 96,
            "width": 96,
            "count": 3,
            "dtype": "uint8",
            "nodata": 0,
            "crs": "EPSG:32645",
        }
        with rasterio.open(
            root / "images" / f"tile-{index}.tif", "w", transform=Affine(0.5, 0, left, 0, -0.5, top), **profile
        ) as file:
            file.write(image)
        crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32645"}}
        content = {"type": "FeatureCollection", "crs": crs, "features": features}
        (root / "labels" / f"tile-{index}.geojson").write_text(json.dumps(content))
    return root
