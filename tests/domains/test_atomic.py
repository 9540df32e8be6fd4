"""Temporary files and folders of writers: hidden beside the result, gone afterwards, found after a kill."""

import os
import signal
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

import pytest

from samgraft.domains.atomic import all_or_none, atomic_path, drop, remove_leftovers, work_folder
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


def write(path: Path, text: str) -> None:
    with atomic_path(path) as temp:
        temp.write_text(text)


def test_together_files_get_their_names_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("old")
    with all_or_none():
        write(tmp_path / "a.txt", "1")
        with all_or_none():
            write(tmp_path / "b.txt", "2")
        assert not (tmp_path / "a.txt").exists() and (tmp_path / "b.txt").read_text() == "old"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "1", "b.txt": "2"}
    write(tmp_path / "b.txt", "3")  # the block is over
    assert (tmp_path / "b.txt").read_text() == "3"


def test_a_block_that_fails_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), all_or_none():
        write(tmp_path / "a.txt", "1")
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_names_are_given_back_if_one_cannot_be_given(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError("not on this file system")

    if not links:
        monkeypatch.setattr("os.link", no_links)
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(OutputError, match=r"c\.txt its name: .*; none of a\.txt, b\.txt, c\.txt was written"):
        with all_or_none():
            for name in ("a.txt", "b.txt", "c.txt"):
                write(tmp_path / name, "new")
            (tmp_path / "c.txt").mkdir()
    (tmp_path / "c.txt").rmdir()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "old"}


def killed_at(folder: Path, number: int) -> None:
    """Write three files together and die before the rename ``number``."""
    rename, left = Path.replace, iter(range(number))

    def replace(self: Path, target: Path) -> Path:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.replace = replace  # type: ignore[method-assign]
    with all_or_none():
        for name in ("a.txt", "b.txt", "c.txt"):
            write(folder / name, "new" + name)


@pytest.mark.parametrize(("number", "new"), [(0, ""), (1, "a"), (2, "ab"), (3, "abc")])
def test_killed_between_two_renames_every_file_is_complete(tmp_path: Path, number: int, new: str) -> None:
    for name in ("b.txt", "c.txt"):
        (tmp_path / name).write_text("old" + name)
    child = get_context("fork").Process(target=killed_at, args=(tmp_path, number))
    child.start()
    child.join()
    assert child.exitcode == (0 if number == 3 else -signal.SIGKILL)
    for name in ("a.txt", "b.txt", "c.txt"):
        remove_leftovers(tmp_path / name)
    old = {"a": None, "b": "oldb.txt", "c": "oldc.txt"}
    expected = {f"{one}.txt": f"new{one}.txt" if one in new else old[one] for one in "abc"}
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {k: v for k, v in expected.items() if v}
