"""How a program's allocator treats the large blocks of memory that networks take and give back in every frame.

The C library hands blocks above a threshold back to the system at once, and every new one costs page faults: a quarter
of the time of a frame of flashfusion-mini (docs/performance.md). A process that runs networks keeps them instead.
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


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for the next frame; where the C library is not glibc, nothing happens.

    A setting of the whole process, for its first lines: programs call it, libraries do not. Threads share one heap from
    then on, since the heaps of other threads would give their memory back all the same.

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
