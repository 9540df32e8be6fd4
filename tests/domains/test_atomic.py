"""Temporary files and folders of writers: hidden beside the result, gone afterwards, found after a kill."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from samgraft.domains.atomic import atomic_path, drop, remove_leftovers, work_folder
from samgraft.errors import OutputError


def test_work_folder_is_hidden_and_goes(tmp_path: Path) -> None:
    with work_folder(tmp_path / "out.gpkg") as folder:
        assert folder.parent == tmp_path and folder.name.startswith(".out.") and folder.is_dir()
        (folder / "spool").write_text("x")
    with pytest.raises(RuntimeError, match="stop"), work_folder(tmp_path / "out.gpkg"):
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="choose a folder that exists"), work_folder(tmp_path / "no" / "out.gpkg"):
        pass


def test_dropped_contexts_leave_nothing(tmp_path: Path) -> None:
    stack = ExitStack()
    temp = stack.enter_context(atomic_path(tmp_path / "out.tif"))
    temp.write_text("half")
    temp.with_name(temp.name + ".aux.xml").write_text("half")
    stack.enter_context(work_folder(tmp_path / "out.tif"))
    assert len(list(tmp_path.iterdir())) == 3
    drop(stack)
    drop(stack)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_one_result_only(tmp_path: Path) -> None:
    names = [".out.0123456789ab.part.tif", ".out.0123456789ab.part.tif.ovr.tmp", ".out.tif.ba9876543210.work"]
    others = [
        "out.tif",
        ".out.part.tif",
        ".out.0123456789ab.part.gpkg",
        ".out2.0123456789ab.part.tif",
        ".out.gpkg.ba9876543210.work",
        ".out.tif",
    ]
    for name in names[:2] + others:
        (tmp_path / name).write_text("x")
    (tmp_path / names[2]).mkdir()
    assert [p.name for p in remove_leftovers(tmp_path / "out.tif")] == names
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(others)
    assert remove_leftovers(tmp_path / "no" / "out.tif") == []
