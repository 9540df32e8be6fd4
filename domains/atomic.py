"""Write a file so that it is either complete under its final name, or absent.

Takes the final path, gives a temporary path in the same folder; used by every writer of samgraft.domains.
"""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from samgraft.errors import OutputError

_MAX_STEM = 60
_TOGETHER: ContextVar[list[tuple[Path, Path]] | None] = ContextVar("files_of_all_or_none", default=None)
"""Complete files of an :func:`all_or_none` block that wait for their names: temporary and final path."""


def full_suffix(path: Path) -> str:
    """The suffix of a path in lower case; ".nii.gz" and the like count as one."""
    suffixes = [s.lower() for s in path.suffixes[-2:]]
    return "".join(suffixes) if suffixes and suffixes[-1] in (".gz", ".bz2", ".zst") else "".join(suffixes[-1:])


@contextmanager
def atomic_path(final: Path | str) -> Iterator[Path]:
    """Give a temporary path beside ``final``; move it there when the block ends, delete it when the block fails.

    The temporary name keeps the suffix, so that libraries which choose a format by name work. Sidecars that a library
    writes next to the temporary file (its name plus something, such as ``.aux.xml``) move and vanish with it.

    Args:
        final: the file to write. Its folder must exist; an existing file is replaced only after success.

    Yields:
        A path that does not exist yet, in the same folder.

    Raises:
        OutputError: the folder is missing or not writable, the disk is full, or nothing was written. Errors of other
            kinds pass through after the clean-up.
    """
    final = Path(final)
    require_folder(final)
    temp, waits = _temporary(final), False
    try:
        yield temp
        if not temp.is_file():
            raise OSError("the writer produced no file")
        _sync(temp)
        together = _TOGETHER.get()
        waits = together is not None
        if together is None:
            _move(temp, final)
        else:
            together.append((temp, final))
    except OutputError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write {final}: {reason}; nothing was left behind, check space and rights") from error
    finally:
        if not waits:
            _forget(temp)


@contextmanager
def all_or_none() -> Iterator[None]:
    """Files that :func:`atomic_path` completes in this block get their names together when it ends: all, or none.

    Until then they wait under their temporary names. If the block fails, they are deleted; if one of them cannot get
    its name, those that have theirs give them back, and what lay there before is there again. A file system cannot
    rename several files at once: a process that is killed between two renames leaves some files new and some old, each
    of them complete, and :func:`remove_leftovers` deletes what else it left. A block inside another one belongs to it.

    Raises:
        OutputError: a file cannot get its name.
    """
    if _TOGETHER.get() is not None:
        yield
        return
    waiting: list[tuple[Path, Path]] = []
    token = _TOGETHER.set(waiting)
    try:
        yield
        _move_together(waiting)
    finally:
        _TOGETHER.reset(token)
        for temp, _ in waiting:
            _forget(temp)


def _move_together(waiting: Sequence[tuple[Path, Path]]) -> None:
    """Give all files their final names, or none."""
    done: list[tuple[Path, Path | None]] = []
    try:
        for temp, final in waiting:
            for path in _with_sidecars(temp):
                target = final.with_name(final.name + path.name[len(temp.name) :])
                done.append((target, _kept_aside(target, final)))
                path.replace(target)
    except BaseException as error:
        for target, before in reversed(done):
            _put_back(target, before)
        if not isinstance(error, OSError):
            raise
        names = ", ".join(final.name for _, final in waiting)
        raise OutputError(
            f"cannot give {error.filename2 or error.filename} its name: {error.strerror}; none of {names} was written, "
            "and what was there before is there again; check rights, and what lies there"
        ) from error
    for _, before in done:
        if before is not None:
            with suppress(OSError):
                before.unlink()
    for folder in {final.parent for _, final in waiting}:
        _sync_folder(folder)


def _kept_aside(target: Path, final: Path) -> Path | None:
    """Another name for what lies at ``target``, under which it can be brought back; None if there is nothing."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if not target.exists():
        return None
    aside = _temporary(final)
    aside = aside.with_name(f"{aside.name}.old")
    try:
        os.link(target, aside)  # a second name: the target is there all the time
    except OSError:  # a file system without links
        target.replace(aside)
    return aside


def _put_back(target: Path, before: Path | None) -> None:
    with suppress(OSError):
        if before is None:
            target.unlink(missing_ok=True)
        else:
            before.replace(target)  # does nothing where both are names of one file
            before.unlink(missing_ok=True)


def require_folder(final: Path) -> None:
    """Raise if there is no folder for a file to lie in.

    Raises:
        OutputError: the folder is missing, or the file itself is a folder.
    """
    if final.is_dir():
        raise OutputError(f"{final} is a folder; name a file to write to")
    if not final.parent.is_dir():
        raise OutputError(f"cannot write {final}: folder {final.parent} does not exist; create it first")


@contextmanager
def work_folder(final: Path | str) -> Iterator[Path]:
    """Give an empty hidden folder beside ``final`` for what a writer needs on the way; it is deleted at the end.

    Raises:
        OutputError: the folder of ``final`` is missing or not writable.
    """
    final = Path(final)
    folder = final.with_name(f"{_hidden(final)}{full_suffix(final)}.{secrets.token_hex(6)}.work")
    try:
        folder.mkdir()
    except OSError as error:
        raise OutputError(f"cannot write {final}: {error.strerror}; choose a folder that exists and is writable") from (
            error
        )
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(final: Path | str) -> list[Path]:
    """Delete the temporary files and folders that a killed writer of ``final`` left beside it.

    Call it only where no other process may be writing the same file. Returns what was deleted.
    """
    final = Path(final)
    stem, suffix, mark = re.escape(_hidden(final)), re.escape(full_suffix(final)), r"\.[0-9a-f]{12}\."
    shape = re.compile(f"{stem}{mark}part{suffix}.*|{stem}{suffix}{mark}work")
    found = sorted(p for p in final.parent.iterdir() if shape.fullmatch(p.name)) if final.parent.is_dir() else []
    for path in found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return found


def _temporary(final: Path) -> Path:
    """A new temporary name for ``final``, in the same folder and with the same suffix."""
    return final.with_name(f"{_hidden(final)}.{secrets.token_hex(6)}.part{full_suffix(final)}")


def _forget(temp: Path) -> None:
    """Delete a temporary file with its sidecars, as far as they are there."""
    for leftover in _with_sidecars(temp):
        with suppress(OSError):
            leftover.unlink()


class _Abandoned(Exception):
    """Thrown into the contexts of a file that is given up, so that they delete it."""


def drop(stack: ExitStack) -> None:
    """Leave contexts such as :func:`atomic_path` as after a failure, so that nothing stays behind."""
    with suppress(_Abandoned):
        stack.__exit__(_Abandoned, _Abandoned(), None)
    stack.pop_all()


def _hidden(final: Path) -> str:
    """How the names of temporary files of ``final`` begin."""
    return f".{final.name[: len(final.name) - len(full_suffix(final))][:_MAX_STEM]}"


def _with_sidecars(temp: Path) -> list[Path]:
    """The temporary file and everything that was written beside it under its name."""
    with suppress(OSError):
        return sorted(p for p in temp.parent.iterdir() if p.name.startswith(temp.name))
    return [temp]


def _sync(path: Path) -> None:
    """Ask the disk to keep what was written, so that a full disk shows here and not later."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _move(temp: Path, final: Path) -> None:
    """Give the file, and then its sidecars, their final names."""
    for path in _with_sidecars(temp):
        path.replace(final.with_name(final.name + path.name[len(temp.name) :]))
    _sync_folder(final.parent)


def _sync_folder(path: Path) -> None:
    """Ask the disk to keep the names in a folder."""
    with suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
