"""Weak labels of every kind of file in one form; masks are never opened."""

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from samgraft.errors import InputError
from samgraft.recipes.config import DataConfig
from samgraft.recipes.data.layouts import index_data
from samgraft.recipes.weak.simulate import simulate
from samgraft.recipes.weak_labels.labels import WeakLabels, WeakObject, nearest_cells, pixel_box
from tests.recipes._sets import write_pictures, write_rasters, write_volumes
from tests.recipes.weak._labels import write_coco, write_csv


def pictures(root: Path, supervision: str, **options: object) -> DataConfig:
    """60 x 70 pictures of two classes without masks."""
    write_pictures(root, classes=2)
    shutil.rmtree(root / "masks")
    return DataConfig(path=str(root), layout="image_mask", supervision=supervision, **options)  # type: ignore[arg-type]


def weak_of(config: DataConfig, case: str, kind: str = "semantic", names: tuple[str, ...] = ("a", "b")) -> WeakLabels:
    """The weak labels of a training case."""
    index = index_data(config, kind, names)  # type: ignore[arg-type]
    found = next(ref for ref in (*index.train, *index.val) if ref.id == case).read().weak
    assert found is not None
    return found


def test_boxes_of_one_table_for_all_pictures(tmp_path: Path) -> None:
    config = pictures(tmp_path / "p", "boxes")
    rows = [("P0-000.png", "b", 3, 4, 20, 9), ("P0-000.png", "a", 60, 50, 80, 70), ("P2-004.png", "a", 1, 2, 3, 4)]
    write_csv(tmp_path / "p" / "boxes.csv", "image class xmin ymin xmax ymax", *rows)
    index = index_data(config, "semantic", ("a", "b"))
    assert [r.id for r in index.train] == ["P0-000"] and [r.id for r in index.val] == ["P2-004"]
    weak = weak_of(config, "P0-000")
    assert [(o.label, o.box) for o in weak.objects] == [(2, (3, 4, 20, 9)), (1, (60, 50, 69, 59))]
    case = index.train[0].load()
    assert case.labels.shape == (1, 60, 70) and not case.labels.any()
    with pytest.raises(InputError, match="of class 'b'; known: a, c"):
        weak_of(config, "P0-000", names=("a", "c"))


def test_boxes_of_a_coco_file(tmp_path: Path) -> None:
    config = pictures(tmp_path / "p", "boxes")
    images = {name: (60, 70) for name in ("P0-001.png", "P1-002.png", "P2-005.png")}
    entries = [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [5, 6, 10, 3]}]
    write_coco(tmp_path / "p" / "boxes.json", images, entries)
    index = index_data(config, "semantic", ("a", "b"))
    assert [r.id for r in index.train] == ["P0-001", "P1-002"]  # a listed image without boxes shows nothing
    assert [(o.label, o.box) for o in weak_of(config, "P1-002").objects] == [(2, (5, 6, 14, 8))]
    assert weak_of(config, "P0-001").objects == ()


def test_points_per_case_and_their_discs(tmp_path: Path) -> None:
    config = pictures(tmp_path / "p", "points", weak="clicks")
    rows = [("a", 4, 2, 1, "one"), ("a", 9, 2, 0, "one"), ("b", 30, 40, 1, "two")]
    for case in ("P0-000", "P2-004"):
        write_csv(tmp_path / "p" / "clicks" / f"{case}.csv", "class x y positive object", *rows)
    weak = weak_of(config, "P0-000")
    assert [o.points for o in weak.objects] == [((4, 2, 1), (9, 2, 0)), ((30, 40, 1),)]
    seeds = weak.seeds((1, 60, 70), radius=1)
    assert (seeds == 1).sum() == 5 and seeds[0, 2, 4] == 1 and seeds[0, 3, 4] == 1
    assert seeds[0, 2, 9] == 0 and (seeds == 0).sum() == 5 and seeds[0, 40, 30] == 2 and (seeds >= 0).sum() == 15
    boxes = replace(config, supervision="boxes")
    with pytest.raises(InputError, match="has no box; data.supervision is 'boxes'; give boxes"):
        weak_of(boxes, "P0-000")


def test_scribbles_know_drawn_background_from_what_is_not_drawn(tmp_path: Path) -> None:
    config = pictures(tmp_path / "p", "scribbles", scribble_background=9)
    (tmp_path / "p" / "scribbles").mkdir()
    drawn = np.zeros((60, 70), np.uint8)
    drawn[5, 10:20], drawn[50, 3:9], drawn[30, 30:33] = 2, 9, 1
    for case in ("P0-000", "P2-004"):
        Image.fromarray(drawn).save(tmp_path / "p" / "scribbles" / f"{case}.png")
    found = weak_of(config, "P0-000").drawn
    assert found is not None
    assert [int((found == v).sum()) for v in (-1, 0, 1, 2)] == [60 * 70 - 19, 6, 3, 10]
    with pytest.raises(InputError, match=r"holds the values \[9\]; classes are"):
        weak_of(replace(config, scribble_background=8), "P0-000")


def test_a_volume_takes_slices(tmp_path: Path) -> None:
    root = write_volumes(tmp_path / "v")
    shutil.rmtree(root / "labelsTr")
    config = DataConfig(path=str(root), supervision="boxes")
    for case in ("case_00", "case_03"):
        write_csv(root / "boxes" / f"{case}.csv", "class slice xmin ymin xmax ymax", ("right", 2, 1, 3, 5, 8))
    (box,) = weak_of(config, "case_00").objects
    assert (box.label, box.slice, box.box) == (2, 2, (1, 3, 5, 8))
    write_csv(root / "boxes" / "case_00.csv", "class slice xmin ymin xmax ymax", ("right", 6, 1, 3, 5, 8))
    with pytest.raises(InputError, match="lies on slice 6; a volume needs a column 'slice' from 0 to 5"):
        weak_of(config, "case_00")
    scribbles = np.zeros((40, 36, 6), np.uint8)
    scribbles[7, 3, 4] = 1  # (i, j, k): column 7 and row 3 of slice 4
    image = nib.load(root / "imagesTr" / "case_00_0000.nii.gz")
    (root / "scribbles").mkdir()
    for case in ("case_00", "case_03"):
        nib.save(nib.Nifti1Image(scribbles, image.affine), root / "scribbles" / f"{case}.nii.gz")
    drawn = weak_of(replace(config, supervision="scribbles"), "case_00").drawn
    assert drawn is not None and np.argwhere(drawn == 1).tolist() == [[4, 3, 7]]


def test_polygons_of_rasters_are_coarse_areas(tmp_path: Path) -> None:
    root = write_rasters(tmp_path / "r")
    (root / "labels").rename(root / "coarse")
    config = DataConfig(path=str(root), layout="raster_vector", supervision="coarse")
    weak = weak_of(config, "tile-0", "instance")
    areas = sorted(o.around for o in weak.objects)
    assert areas == [(12, 10, 35, 29), (20, 50, 43, 69), (60, 30, 83, 49)]
    assert all(o.region is not None and o.region.inside.all() for o in weak.objects)
    case = index_data(config, "instance").train[0].load()
    assert (case.labels[0, :6, :6] == -1).all() and (case.labels == -1).sum() == 36
    boxes = weak_of(replace(config, supervision="boxes", weak="coarse"), "tile-0", "instance")
    assert sorted(o.box for o in boxes.objects if o.box) == areas


def test_coarse_polygons_of_a_coco_file(tmp_path: Path) -> None:
    config = pictures(tmp_path / "p", "coarse")
    entries = [
        {"id": 1, "image_id": 0, "category_id": 1, "bbox": [2, 3, 4, 2], "segmentation": [[2, 3, 6, 3, 6, 5, 2, 5]]}
    ]
    write_coco(tmp_path / "p" / "coarse.json", {"P0-000.png": (60, 70), "P2-004.png": (60, 70)}, entries)
    (one,) = weak_of(config, "P0-000").objects
    assert one.around == (2, 3, 5, 4) and one.region is not None and one.region.inside.shape == (2, 4)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    config = pictures(tmp_path / "p", "boxes")
    with pytest.raises(InputError, match=r"has none of boxes\.json, boxes\.csv"):
        index_data(config, "semantic", ("a",))
    with pytest.raises(InputError, match=r"data\.weak: .*elsewhere does not exist"):
        index_data(replace(config, weak="elsewhere"), "semantic", ("a",))
    write_csv(tmp_path / "p" / "boxes.csv", "image xmin ymin xmax ymax", ("other.png", 1, 2, 3, 4))
    with pytest.raises(InputError, match="labels none of the 6 cases"):
        index_data(config, "semantic", ("a",))


@pytest.mark.parametrize("supervision", ["boxes", "points", "scribbles", "coarse"])
@pytest.mark.parametrize("kind", ["semantic", "instance"])
def test_simulated_labels_are_read_back(tmp_path: Path, supervision: str, kind: str) -> None:
    root = write_pictures(tmp_path / "p", classes=2, instances=kind == "instance")
    config = DataConfig(path=str(root), layout="image_mask")
    options = {"class_names": ("a", "b"), "seed": 3}
    folder = simulate(config, kind, supervision, tmp_path / "w", **options)  # type: ignore[arg-type]
    truth = index_data(config, kind, ("a", "b")).train[0].load().labels[0]  # type: ignore[arg-type]
    shutil.rmtree(root / ("instances" if kind == "instance" else "masks"))
    weak = weak_of(replace(config, supervision=supervision, weak=str(folder)), "P0-000", kind)  # type: ignore[arg-type]
    if weak.drawn is not None:
        inside = weak.drawn[0] > 0
        assert 5 < inside.sum() < 0.4 * (truth > 0).sum() and (weak.drawn[0][inside] == truth[inside]).all()
        assert (truth[weak.drawn[0] == 0] == 0).all() and (weak.drawn == 0).sum() > 10
        return
    assert len(weak.objects) == 2
    for number, one in enumerate(sorted(weak.objects, key=lambda o: o.around[0]), start=1):
        own = truth == number
        rows, cols = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
        if supervision == "boxes":
            assert one.box == (cols[0], rows[0], cols[-1], rows[-1])
        elif supervision == "points":
            assert own[int(one.points[0][1]), int(one.points[0][0])]
        elif one.region is not None:
            (top, left), (height, width) = (one.region.top, one.region.left), one.region.inside.shape
            drawn = np.zeros_like(own)
            drawn[top : top + height, left : left + width] = one.region.inside
            assert 0.7 < (drawn & own).sum() / (drawn | own).sum() < 1.0


def test_geometry_of_labels() -> None:
    assert pixel_box((2.0, 1.0, 4.0, 6.0), (6, 9)) == (slice(1, 6), slice(2, 5))
    assert pixel_box((2.4, 1.6, 2.6, 1.7), (6, 9)) == (slice(2, 3), slice(3, 4))
    cells = nearest_cells([[(0, 0)], [(0, 4)], []], (2, 5))
    assert cells.tolist()[0] in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])
    assert (nearest_cells([[]], (2, 2)) == -1).all()
    assert WeakObject(label=1, points=((3, 1, 0), (5, 2, 1), (4, 7, 1))).around == (4, 2, 5, 7)
