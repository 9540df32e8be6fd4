"""Memory of this process, and what is free on this machine."""

import os
from pathlib import Path

import torch


def resident_bytes(key: str = "VmRSS") -> int:
    """Memory of this process now ("VmRSS"), or the most it ever had ("VmHWM").

    ``ru_maxrss`` is the fallback on other systems than Linux; on Linux it survives exec, and so tells of the parent.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource
    import sys

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def free_memory(device: str = "cpu") -> int:
    """Bytes that can be taken: of the GPU; or of the host, within the limit of this container if it has one."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())  # "max" is no number: no limit
        free = min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(free, 0)
