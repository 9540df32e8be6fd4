"""Give freed memory back to the system at once, or keep it: settings of glibc, changed while a program runs.

glibc serves blocks below a threshold from its heap, and raises that threshold to 32 MB as large blocks are freed. What
is freed in the middle of the heap stays with the process, cut into pieces by whatever lives longer. A training step
allocates and frees hundreds of tensors of 1 to 30 MB between others that live until the backward pass, so its peak
contains hundreds of megabytes of holes. With a fixed threshold such tensors get a mapping of their own, which vanishes
when they are freed; every new mapping costs the time to clear its pages.

Inference has the opposite need: the same tensors come and go for every image, nothing lives long, and a tenth of the
time goes into pages that are handed back and fetched again. There everything is kept.

Source:
    mallopt(3) of the Linux manual: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, and how the threshold moves unless it is set;
    M_MMAP_MAX, M_ARENA_MAX.
"""

import ctypes
import logging

THRESHOLD = 4 * 2**20
"""Bytes from which a block gets a mapping of its own. Smaller blocks are many, and a mapping costs a system call."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
_log = logging.getLogger(__name__)


def return_memory(threshold: int = THRESHOLD) -> bool:
    """Make this process return freed blocks of ``threshold`` bytes or more at once; for all that comes, until it ends.

    Args:
        threshold: Bytes; glibc takes up to 32 MiB on 64 bit.

    Returns:
        Whether it took effect. On other C libraries (macOS, musl) nothing is changed, and a log line says so.
    """
    libc = _glibc()
    if libc is None:
        _log.info("train.return_memory: the C library is not glibc; memory is handled as always")
        return False
    libc.mallopt(_M_MMAP_MAX, 2**16)  # glibc's own value; keep_memory may have changed it
    done = [libc.mallopt(option, threshold) for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)]
    if done != [1, 1]:
        _log.info("train.return_memory: glibc refused a threshold of %d bytes (at most 32 MiB)", threshold)
        return False
    libc.malloc_trim(0)
    return True


def keep_memory() -> bool:
    """Make this process keep what it frees, for the next tensor, instead of returning it; until the process ends.

    Commands that only predict do so on CPUs. A later :func:`return_memory` takes precedence.

    Returns:
        Whether it took effect; never on C libraries other than glibc.
    """
    libc = _glibc()
    if libc is None:
        return False
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1))
    return all([libc.mallopt(option, value) == 1 for option, value in wanted])


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process if it is glibc."""
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # TypeError: Windows wants a name
        return None
    wanted = ("gnu_get_libc_version", "mallopt", "malloc_trim")
    return libc if all(hasattr(libc, name) for name in wanted) else None
