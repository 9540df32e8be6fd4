"""Tile results as files: equal contents are equal bytes, damage is noticed."""

from pathlib import Path

import numpy as np
import pytest

from samgraft.errors import InputError, ShapeError
from samgraft.recipes.mosaic.found import TileClasses, TileObjects


def _objects() -> TileObjects:
    labels = np.zeros((30, 40), dtype=np.int32)
    labels[3:9, 5:20], labels[12:20, 30:] = 1, 2
    return TileObjects(labels, np.array([2, 1], np.int32), np.array([0.25, 0.75], np.float32))


def test_objects_come_back_and_equal_contents_are_equal_bytes(tmp_path: Path) -> None:
    found = _objects()
    one, two = found.save(tmp_path / "a.npz"), _objects().save(tmp_path / "b.npz")
    assert one.read_bytes() == two.read_bytes()
    back = TileObjects.load(one)
    assert np.array_equal(back.labels, found.labels)
    assert back.classes.tolist() == [2, 1]
    assert back.scores.tolist() == [0.25, 0.75]
    assert back.content_hash() == found.content_hash()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_the_hash_sees_every_part() -> None:
    base = _objects()
    moved = base.labels.copy()
    moved[0, 0] = 1
    others = [
        TileObjects(moved, base.classes, base.scores),
        TileObjects(base.labels, base.classes[::-1], base.scores),
        TileObjects(base.labels, base.classes, base.scores[::-1]),
        TileObjects(base.labels.reshape(40, 30), base.classes, base.scores),
    ]
    assert len({one.content_hash() for one in (base, *others)}) == 5


def test_classes_come_back_with_and_without_scores(tmp_path: Path) -> None:
    labels = np.arange(12, dtype=np.uint16).reshape(3, 4)
    plain, scored = TileClasses(labels), TileClasses(labels, np.full((3, 4), 200, np.uint8))
    back = TileClasses.load(plain.save(tmp_path / "plain.npz"))
    assert back.scores is None
    assert back.labels.dtype == np.uint16
    assert np.array_equal(back.labels, labels)
    again = TileClasses.load(scored.save(tmp_path / "scored.npz"))
    assert again.scores is not None
    assert (again.scores == 200).all()
    assert plain.content_hash() != scored.content_hash()


@pytest.mark.parametrize("keep", [0, 10, 100, -1])
def test_a_cut_file_is_named(tmp_path: Path, keep: int) -> None:
    path = _objects().save(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="a.npz.*delete it to have it made again"):
        TileObjects.load(path)


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = _objects().save(tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    content[60] ^= 1  # inside the compressed labels
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match="damaged"):
        TileObjects.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read .*absent.npz"):
        TileObjects.load(tmp_path / "absent.npz")
    classes = TileClasses(np.zeros((2, 2), np.uint8)).save(tmp_path / "c.npz")
    with pytest.raises(InputError, match=r"it has \['labels'\] but lacks \['classes', 'scores'\]"):
        TileObjects.load(classes)
    objects = np.zeros(1, dtype=object)
    np.savez(tmp_path / "evil.npz", labels=objects, classes=objects, scores=objects)
    with pytest.raises(InputError, match="evil.npz"):
        TileObjects.load(tmp_path / "evil.npz")


def test_what_does_not_belong_together_is_refused() -> None:
    labels = np.array([[0, 1], [2, 3]], np.int32)
    with pytest.raises(ShapeError, match="labels go from 0 to 3, but 2 objects are described"):
        TileObjects(labels, np.ones(2, np.int32), np.ones(2, np.float32))
    with pytest.raises(ShapeError, match=r"scores \(2,\)"):
        TileObjects(labels, np.ones(3, np.int32), np.ones(2, np.float32))
    with pytest.raises(ShapeError, match="scores are float64"):
        TileClasses(labels, np.ones((2, 2)))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="labels are float64"):
        TileClasses(np.ones((2, 2)))  # type: ignore[arg-type]
