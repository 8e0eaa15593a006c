"""Shared memory of processes that crashed: Fast DDS leaves it there, 134 MiB for each with our profile."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from pathlib import Path

FOLDER = Path("/dev/shm")
YOUNG_S = 60.0
"""Segments that are younger are left alone: their process may just be making them."""
_SEGMENT = re.compile(r"(fastrtps|fastdds)_[0-9a-f]{16}")


def remove_dead_segments(folder: Path = FOLDER, *, young_s: float = YOUNG_S) -> tuple[int, int]:
    """Remove the segments of Fast DDS whose process is gone.

    A living process holds a lock on the file beside its segment that ends in ``_el``; the lock dies with the process.
    This is how ``fastdds shm clean`` tells them apart, too.

    Args:
        folder: where they lie.
        young_s: age up to which they are left alone, seconds.

    Returns:
        How many were removed, and their size in bytes.
    """
    count = size = 0
    for path in folder.glob("fast*_*") if folder.is_dir() else ():
        if _SEGMENT.fullmatch(path.name) is None:
            continue
        with contextlib.suppress(OSError):  # gone meanwhile, or of another user
            status = path.stat()
            if time.time() - status.st_mtime > young_s and _is_dead(path):
                path.unlink()
                path.with_name(f"{path.name}_el").unlink(missing_ok=True)
                count, size = count + 1, size + status.st_blocks * 512
    return count, size


def _is_dead(segment: Path) -> bool:
    lock = os.open(segment.with_name(f"{segment.name}_el"), os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True
