"""Give freed memory back to the system: two settings of glibc's allocator, changed while the program runs.

glibc serves blocks below a threshold from its heap, and raises that threshold to 32 MB as large blocks are freed. What
is freed in the middle of the heap stays with the process, cut into pieces by whatever lives longer. A training step
allocates and frees hundreds of tensors of 1 to 30 MB between others that live until the backward pass, so its peak
contains hundreds of megabytes of holes. With a fixed threshold such tensors get a mapping of their own, which vanishes
when they are freed; every new mapping costs the time to clear its pages.

Source:
    mallopt(3) of the Linux manual: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, and how the threshold moves unless it is set.
"""

import ctypes
import logging

THRESHOLD = 4 * 2**20
"""Bytes from which a block gets a mapping of its own. Smaller blocks are many, and a mapping costs a system call."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
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
    done = [libc.mallopt(option, threshold) for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)]
    if done != [1, 1]:
        _log.info("train.return_memory: glibc refused a threshold of %d bytes (at most 32 MiB)", threshold)
        return False
    libc.malloc_trim(0)
    return True


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process if it is glibc."""
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # TypeError: Windows wants a name
        return None
    wanted = ("gnu_get_libc_version", "mallopt", "malloc_trim")
    return libc if all(hasattr(libc, name) for name in wanted) else None
