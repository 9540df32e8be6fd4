"""What a mosaic run has finished, kept so that a run that was killed goes on where it was.

Beside the output lies the folder ``<output>.samgraft``: ``journal.sqlite`` says which tiles are finished, ``tiles``
holds what was found in them, one file per content, named by its SHA-256. A tile is written in this order: file under a
temporary name, the same renamed, row in the journal. So a row never names a file that is not there, whenever the
process is killed; at most the rows of the last half second are lost, and their tiles are computed again.

The journal also holds what decided the results (input, adapter, plan, scale, options), each under its name. A run with
other facts is refused by name: two halves of a map must not come from two models.

SQLite keeps its rollback journal rather than a write-ahead log, since the latter needs shared memory, which network
disks lack; the lock is exclusive, so two runs cannot work on one output, and it vanishes with the process.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from samgraft.errors import ConfigError, OutputError

State = Literal["found", "blank", "empty", "bad"]
COMMIT_SECONDS = 0.5
"""Rows are committed at most this often."""
_TABLES = """
create table if not exists facts (name text primary key, value text not null);
create table if not exists tiles (
  number integer primary key, state text not null, digest text not null, note text not null
);
"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one tile."""

    number: int
    """Of the tile in its plan."""
    state: State
    """"found": ``content`` holds it; "blank": there is data, but nothing was found in it; "empty": no data in the
    area; "bad": it could not be read."""
    content: bytes = b""
    """The bytes of its artifact."""
    note: str = ""
    """Why it is bad."""


class Journal:
    """The folder of one run; use it as a context manager.

    Args:
        folder: Made if it is not there.
        facts: What decides the results, by name; values are of JSON.
        restart: Throw away what an earlier run left.

    Raises:
        ConfigError: an earlier run had other facts; the message names them.
        OutputError: another process works in the folder, or it cannot be written.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], *, restart: bool = False) -> None:
        """Open or make the folder, and check what lies in it."""
        self.folder = folder
        self._tiles = folder / "tiles"
        self._since = time.monotonic()
        with self._disk("be opened"):
            folder.mkdir(exist_ok=True)
            self._base = self._connect()
        try:
            with self._disk("be opened"):
                if restart or not self._started():
                    self._clear()
                self._tiles.mkdir(exist_ok=True)
                for stale in self._tiles.glob("*.part"):
                    stale.unlink()
                self._agree({name: json.dumps(value, sort_keys=True) for name, value in facts.items()})
        except BaseException:
            self._base.close()
            raise

    def __enter__(self) -> "Journal":
        """The journal itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Keep what is finished, whatever ended the run."""
        self.close()

    def record(self, outcome: Outcome) -> None:
        """Keep what became of a tile; what was known of it before is replaced.

        Raises:
            OutputError: the disk is full or gone; what was finished before stays.
        """
        with self._disk("be written"):
            digest = self._store(outcome.content) if outcome.state == "found" else ""
            row = (outcome.number, outcome.state, digest, outcome.note)
            self._base.execute("insert or replace into tiles values (?, ?, ?, ?)", row)
            if time.monotonic() - self._since >= COMMIT_SECONDS:
                self._commit()

    def verify(self) -> int:
        """Read every artifact, and forget the tiles whose file is missing or damaged.

        Returns:
            Tiles that are finished.
        """
        with self._disk("be read"):
            rows = self._base.execute("select number, digest from tiles where state = 'found'").fetchall()
            gone = [(number,) for number, digest in rows if not self._intact(digest)]
            self._base.executemany("delete from tiles where number = ?", gone)
            self._base.execute("delete from tiles where state = 'bad'")  # the file may have been repaired
            self._commit()
            return int(self._base.execute("select count(*) from tiles").fetchone()[0])

    def finished(self) -> Iterator[int]:
        """Numbers of the tiles that are finished, ascending."""
        for (number,) in self._base.execute("select number from tiles order by number"):
            yield number

    def state(self, number: int) -> State | None:
        """What became of a tile, or None if it is not finished."""
        row = self._base.execute("select state from tiles where number = ?", (number,)).fetchone()
        return None if row is None else row[0]

    def content(self, number: int) -> bytes | None:
        """Bytes of the artifact of a finished tile; None if nothing was found in it.

        Raises:
            OutputError: the file is gone or was changed while the run was going on.
        """
        row = self._base.execute("select state, digest from tiles where number = ?", (number,)).fetchone()
        if row is None or row[0] != "found":
            return None
        path = self._path(row[1])
        with self._disk("be read"):
            content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != row[1]:
            raise OutputError(f"{path} changed while the run was going on; run the same command again")
        return content

    def bad(self) -> Iterator[tuple[int, str]]:
        """Number and reason of the tiles that could not be read."""
        yield from self._base.execute("select number, note from tiles where state = 'bad' order by number")

    def count(self, state: State | None = None) -> int:
        """Tiles that are finished, or those in one state."""
        wanted = (
            ("select count(*) from tiles", ())
            if state is None
            else (
                "select count(*) from tiles where state = ?",
                (state,),
            )
        )
        return int(self._base.execute(*wanted).fetchone()[0])

    def close(self) -> None:
        """Commit and let go of the lock."""
        with contextlib.suppress(sqlite3.Error):
            self._base.commit()
        self._base.close()

    def remove(self) -> None:
        """Remove the folder, once the results are in place: the journal first, since files without one are rubbish."""
        self._base.close()
        for name in ("journal.sqlite", "journal.sqlite-journal"):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _connect(self) -> sqlite3.Connection:
        base = sqlite3.connect(self.folder / "journal.sqlite", timeout=0.5)
        try:
            for line in ("locking_mode = exclusive", "journal_mode = delete", "synchronous = normal"):
                base.execute(f"pragma {line}")
            base.executescript(_TABLES)
            base.execute("begin exclusive")  # takes the lock now; it is kept until the connection closes
            base.commit()
        except BaseException:
            base.close()
            raise
        return base

    def _started(self) -> bool:
        return bool(self._base.execute("select count(*) from facts").fetchone()[0])

    def _clear(self) -> None:
        self._base.execute("delete from tiles")
        self._base.execute("delete from facts")
        self._base.commit()
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif not path.name.startswith("journal.sqlite"):
                path.unlink()

    def _agree(self, facts: Mapping[str, str]) -> None:
        """Write the facts of a new run, or compare with those of the old one."""
        known = dict(self._base.execute("select name, value from facts").fetchall())
        changed = sorted(name for name in known.keys() | facts.keys() if known.get(name) != facts.get(name))
        if known and changed:
            count = self.count()
            raise ConfigError(
                f"{self.folder} holds {count} finished tiles of a run with another {', '.join(changed)} "
                f"({_difference(known.get(changed[0]), facts.get(changed[0]))}); add --restart to throw them away, or "
                "run with what was given before"
            )
        self._base.executemany("insert or replace into facts values (?, ?)", facts.items())
        self._base.commit()

    def _store(self, content: bytes) -> str:
        """Write an artifact unless it is there; its name is its hash."""
        digest = hashlib.sha256(content).hexdigest()
        path = self._path(digest)
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            temporary = self._tiles / f"{digest}.part"
            try:
                with temporary.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)  # a full disk needs the room
                raise
        return digest

    def _path(self, digest: str) -> Path:
        return self._tiles / digest[:2] / f"{digest}.npz"

    def _intact(self, digest: str) -> bool:
        path = self._path(digest)
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            return True
        path.unlink(missing_ok=True)
        return False

    def _commit(self) -> None:
        self._base.commit()
        self._since = time.monotonic()

    @contextlib.contextmanager
    def _disk(self, what: str) -> Iterator[None]:
        """Say what the disk or SQLite complains about as an OutputError."""
        try:
            yield
        except sqlite3.Error as error:
            if "locked" in str(error):
                message = f"another run works in {self.folder}; wait for it, or name another output"
            elif (
                isinstance(error, sqlite3.DatabaseError) and "malformed" in str(error) or "not a database" in str(error)
            ):
                message = f"{self.folder / 'journal.sqlite'} is damaged ({error}); remove the folder to begin again"
            else:
                message = f"{self.folder} cannot {what}: {error}; {_STAYS}"
            raise OutputError(message) from error
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"{self.folder} cannot {what}: {error.strerror or error}; {_STAYS}") from error


_STAYS = "finished tiles stay there, so make room and run the same command again"


def work_folder(output: Path) -> Path:
    """Where a run that writes ``output`` keeps its journal: beside it, so that results move within one disk."""
    return output.with_name(output.name + ".samgraft")


def _difference(old: str | None, new: str | None) -> str:
    """First difference of two values, short."""
    before, after = (None if text is None else json.loads(text) for text in (old, new))
    if isinstance(before, dict) and isinstance(after, dict):
        names = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
        return f"{names[0]}: {_short(before.get(names[0]))} then, {_short(after.get(names[0]))} now"
    return f"{_short(before)} then, {_short(after)} now"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
