"""Settings of a whole process that runs networks on a CPU: its memory, and threads that nobody needs.

Programs make them in their first lines; libraries do not.
"""

from __future__ import annotations

import ctypes
import logging
import sys

logger = logging.getLogger(__name__)

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
"""Names of mallopt's settings, from glibc's malloc.h."""

KEPT_BYTES = 1 << 30
"""Free memory above this goes back to the system."""
STEP_BYTES = 64 << 20
"""By which the heap grows."""
LARGE_BYTES = 256 << 20
"""Blocks from here on come from the system and go back at once: networks of that size are slow anyway."""


def arrange_process() -> None:
    """``keep_freed_memory`` and ``calm_numpy_threads``."""
    keep_freed_memory()
    calm_numpy_threads()


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for the next frame; where the C library is not glibc, nothing happens.

    By itself the C library hands large blocks back to the system at once, and every new one costs page faults. Threads
    share one heap from then on, since the heaps of other threads would give their memory back all the same.

    Returns:
        Whether the C library took the settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {
        _ARENA_MAX: 1,
        _TRIM_THRESHOLD: KEPT_BYTES,
        _TOP_PAD: STEP_BYTES,
        _MMAP_THRESHOLD: LARGE_BYTES,
    }
    taken = [bool(mallopt(ctypes.c_int(name), ctypes.c_int(value))) for name, value in settings.items()]
    logger.debug("allocator: settings %s", "taken" if all(taken) else f"taken in part: {taken}")
    return all(taken)


def calm_numpy_threads() -> int:
    """Let NumPy's linear algebra (OpenBLAS) compute in the thread that asks; returns how many libraries were told.

    After a product its threads wait for the next one by spinning: a program that transforms a cloud twenty times a
    second loses a whole core to them. PyTorch's threads are not touched.
    """
    import numpy as np
    from threadpoolctl import ThreadpoolController

    np.zeros(0)  # what is not loaded yet would not be found
    found = ThreadpoolController().select(internal_api="openblas")
    found.limit(limits=1)
    return len(found)
