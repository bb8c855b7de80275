"""Keep freed memory in the process: glibc gives large blocks back to the system, and then page faults dominate."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
KEEP = 2**30


def keep_memory() -> bool:
    """Set glibc's thresholds once for the whole process; False where the C library has no `mallopt`."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((M_MMAP_THRESHOLD, KEEP), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26))
    return mallopt is not None and all(mallopt(option, value) == 1 for option, value in settings)
