"""Write a file so that it is either complete under its final name, or absent.

Takes the final path, gives a temporary path in the same folder; used by every writer of samgraft.domains.
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from samgraft.errors import OutputError

_MAX_STEM = 60


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
    temp = final.with_name(f"{_hidden(final)}.{secrets.token_hex(6)}.part{full_suffix(final)}")
    try:
        yield temp
        if not temp.is_file():
            raise OSError("the writer produced no file")
        _sync(temp)
        _move(temp, final)
    except OutputError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write {final}: {reason}; nothing was left behind, check space and rights") from error
    finally:
        for leftover in _with_sidecars(temp):
            with suppress(OSError):
                leftover.unlink()


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
    with suppress(OSError):
        folder = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
