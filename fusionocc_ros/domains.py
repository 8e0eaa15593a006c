"""A DDS domain that nobody else on this machine talks in."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

DOMAINS = range(1, 101)
"""Their ports lie below those that Linux hands out by itself; 0 is where everybody is by default."""


@contextlib.contextmanager
def claimed_domain() -> Iterator[int]:
    """A domain of :data:`DOMAINS`, ours until the end of the block; the claim dies with the process.

    Claims are locks on files in the directory for temporary files, so they hold between all programs of one machine
    that ask here. Nothing keeps others from using the number.

    Raises:
        RuntimeError: all of them are claimed.
    """
    for number in random.SystemRandom().sample(DOMAINS, len(DOMAINS)):
        file = _open(Path(tempfile.gettempdir()) / f"fusionocc-dds-domain-{number}.lock")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            continue
        try:
            yield number
        finally:
            os.close(file)
        return
    raise RuntimeError(f"all DDS domains from {DOMAINS[0]} to {DOMAINS[-1]} are claimed; end some of the programs")


def _open(path: Path) -> int:
    """Reading is enough for a lock, and all that the file of another user allows."""
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
