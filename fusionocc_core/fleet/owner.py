"""Which process is it, and is it still there? As far as the same machine can tell."""

from __future__ import annotations

import hashlib
import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PROC = Path("/proc")
_DEAD_STATES = "ZX"
"""Killed but not yet fetched by its parent, and gone."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process, told apart from all others that ever were: numbers of processes are used again."""

    host: str
    machine: str
    """Of the start of the machine and the container; "" where the system tells neither (it is not Linux)."""
    pid: int
    started: str
    """When the process was started, in the words of the system."""

    def is_known_to_be_dead(self) -> bool:
        """True only where this process can see it: same machine, same container. False says nothing."""
        if not self.machine or self.machine != _machine():
            return False
        return _start_of(self.pid) != self.started

    @property
    def key(self) -> str:
        """Fit for the name of a file; no two processes have the same."""
        machine = hashlib.sha256(f"{self.host} {self.machine}".encode()).hexdigest()[:16]
        return f"{machine}-{self.pid}-{self.started}"

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


def this_process() -> Owner:
    """The process that asks."""
    pid = os.getpid()
    return Owner(host=socket.gethostname(), machine=_machine(), pid=pid, started=_start_of(pid) or "")


@cache
def _machine() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """Ticks between the start of the machine and that of a process; None where there is no such process."""
    try:
        status = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *rest = status[status.rindex(")") + 2 :].split()  # the name before may hold anything, brackets too
    return None if state in _DEAD_STATES else rest[18]
