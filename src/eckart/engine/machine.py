"""What this machine has, on any platform: processor cores, memory, functions of its C library."""

import ctypes
import os
import sys
from typing import Any


def core_count() -> int:
    """Processor cores that this process may use."""
    import psutil

    try:
        return len(psutil.Process().cpu_affinity() or ()) or 1
    except AttributeError:  # macOS does not bind processes to cores
        return os.cpu_count() or 1


def available_bytes() -> int:
    """Memory of this machine that programs can still take."""
    import psutil

    return psutil.virtual_memory().available


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
    try:
        import resource
    except ImportError:
        import psutil

        usage = psutil.Process().memory_info()
        return getattr(usage, "peak_wset", usage.rss)  # of all platforms without `resource`, Windows has a peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in kibibytes


def c_library_function(name: str) -> Any | None:
    """A function of the C library that this process runs on, such as `malloc_trim`; None where there is none."""
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except TypeError:  # Windows has no library without a name
        return None
