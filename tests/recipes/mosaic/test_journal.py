"""The journal: what is finished stays, what changed is named, and nothing is taken for whole that is not."""

import os
import sqlite3
from pathlib import Path

import pytest

from samgraft.errors import ConfigError, OutputError
from samgraft.recipes.mosaic.fingerprint import ENDS, fingerprint
from samgraft.recipes.mosaic.journal import Journal, Outcome, work_folder

FACTS = {"plan": {"side": 64, "overlap": 8}, "adapter": "a1"}


def found(number: int, content: bytes) -> Outcome:
    return Outcome(number=number, state="found", content=content)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_finished_tiles_are_there_the_next_time(tmp_path: Path) -> None:
    folder = work_folder(tmp_path / "out.gpkg")
    assert folder == tmp_path / "out.gpkg.samgraft"
    with Journal(folder, FACTS) as journal:
        journal.record(found(3, b"three"))
        journal.record(Outcome(number=1, state="empty"))
        journal.record(Outcome(number=7, state="bad", note="block 4"))
        assert journal.count() == 3 and list(journal.bad()) == [(7, "block 4")]
    with Journal(folder, dict(reversed(FACTS.items()))) as journal:  # the order of facts is none
        assert journal.verify() == 2  # a bad tile is tried again: the file may have been repaired
        assert list(journal.finished()) == [1, 3]
        assert (journal.state(1), journal.state(3), journal.state(7)) == ("empty", "found", None)
        assert journal.content(3) == b"three" and journal.content(1) is None


def test_equal_contents_are_one_file_named_by_hash(tmp_path: Path) -> None:
    with Journal(tmp_path / "w", {}) as journal:
        for number in range(4):
            journal.record(found(number, b"same"))
        journal.record(found(4, b"other"))
        assert len(files(tmp_path / "w" / "tiles")) == 2
        assert journal.content(2) == b"same"


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_damaged_artifact_is_computed_again(tmp_path: Path, damage: str) -> None:
    with Journal(tmp_path / "w", FACTS) as journal:
        journal.record(found(0, b"first"))
        journal.record(found(1, b"second"))
    path = next(p for p in (tmp_path / "w" / "tiles").rglob("*.npz") if p.read_bytes() == b"second")
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"seco" if damage == "cut" else b"sEcond")
    with Journal(tmp_path / "w", FACTS) as journal:
        assert journal.verify() == 1
        assert list(journal.finished()) == [0]
        journal.record(found(1, b"second"))
        assert journal.content(1) == b"second"


def test_an_artifact_that_changes_under_way_is_named(tmp_path: Path) -> None:
    with Journal(tmp_path / "w", FACTS) as journal:
        journal.record(found(0, b"first"))
        path = next((tmp_path / "w" / "tiles").rglob("*.npz"))
        path.write_bytes(b"forst")
        with pytest.raises(OutputError, match="changed while the run was going on"):
            journal.content(0)


def test_other_facts_are_refused_by_name_and_restart_throws_away(tmp_path: Path) -> None:
    with Journal(tmp_path / "w", FACTS) as journal:
        journal.record(found(0, b"old"))
    changed = FACTS | {"plan": {"side": 96, "overlap": 8}}
    with pytest.raises(ConfigError, match=r"1 finished tiles .* another plan \(side: 64 then, 96 now\); add --restart"):
        Journal(tmp_path / "w", changed)
    with Journal(tmp_path / "w", FACTS) as journal:  # the refusal changed nothing
        assert journal.content(0) == b"old"
    with Journal(tmp_path / "w", changed, restart=True) as journal:
        assert journal.count() == 0
    assert files(tmp_path / "w") == ["journal.sqlite"]


def test_a_fact_that_is_new_is_another_run(tmp_path: Path) -> None:
    Journal(tmp_path / "w", FACTS).close()
    with pytest.raises(ConfigError, match=r"another area \(null then, \"x\" now\)"):
        Journal(tmp_path / "w", FACTS | {"area": "x"})


def test_two_runs_cannot_share_an_output(tmp_path: Path) -> None:
    with Journal(tmp_path / "w", FACTS):
        with pytest.raises(OutputError, match="another run works in"):
            Journal(tmp_path / "w", FACTS)
    Journal(tmp_path / "w", FACTS).close()


def test_rubbish_without_a_journal_is_cleared(tmp_path: Path) -> None:
    folder = tmp_path / "w"
    (folder / "tiles" / "ab").mkdir(parents=True)
    (folder / "tiles" / "ab" / "abc.npz").write_bytes(b"x")
    (folder / "left.part.gpkg").write_bytes(b"x")
    Journal(folder, FACTS).close()
    assert files(folder) == ["journal.sqlite"]


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    Journal(tmp_path / "w", FACTS).close()
    (tmp_path / "w" / "journal.sqlite").write_bytes(b"no database at all, but long enough to be looked at" * 40)
    with pytest.raises(OutputError, match="journal.sqlite is damaged .* remove the folder to begin again"):
        Journal(tmp_path / "w", FACTS)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be opened: No such file"):
        Journal(tmp_path / "nowhere" / "w", FACTS)


def test_removed_after_the_commit(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "w", FACTS)
    journal.record(found(0, b"x"))
    journal.remove()
    assert not (tmp_path / "w").exists()


def test_rows_never_name_a_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path / "w", FACTS) as journal:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left on device; finished tiles stay there"):
            journal.record(found(5, b"five"))
    base = sqlite3.connect(tmp_path / "w" / "journal.sqlite")
    assert base.execute("select count(*) from tiles").fetchone() == (0,)
    base.close()
    assert files(tmp_path / "w" / "tiles") == []


def test_fingerprint_notices_size_time_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    content = bytearray(range(256)) * 8192  # 2 MiB
    path.write_bytes(content)
    os.utime(path, ns=(10**18, 10**18))
    first = fingerprint([path])
    assert first["a.tif"]["size"] == 2**21 and first["a.tif"]["changed"] == 10**18
    os.utime(path, ns=(10**18, 10**18 + 1))
    assert fingerprint([path]) != first and fingerprint([path], times=False) == fingerprint([path], times=False)
    os.utime(path, ns=(10**18, 10**18))
    assert fingerprint([path]) == first
    for place in (0, ENDS - 1, 2**21 // 33 * 16 + 1000, 2**21 - 1):  # both ends, and the 16th piece
        other = bytearray(content)
        other[place] ^= 1
        path.write_bytes(other)
        os.utime(path, ns=(10**18, 10**18))
        assert fingerprint([path], times=False)["a.tif"]["bytes"] != first["a.tif"]["bytes"], place


def test_files_of_one_name_and_addresses_count_each(tmp_path: Path) -> None:
    paths = []
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / "a.tif")
        paths[-1].write_bytes(name.encode())
    found = fingerprint([*paths, Path("/vsicurl/https/far.tif")])
    assert sorted(found) == ["a.tif", "a.tif'", "far.tif"] and found["far.tif"] == "no local file"
    assert found["a.tif"]["bytes"] != found["a.tif'"]["bytes"]
