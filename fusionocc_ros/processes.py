"""Child processes that leave nothing behind: a log file and a process group each, stopped together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

TAIL_LINES = 25
"""Of a log, in an error."""

PATIENCE_S = 10.0
"""After an interrupt, and again after a termination, before a process is killed."""


@dataclass(frozen=True, kw_only=True)
class Child:
    """One process with its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self, count: int = TAIL_LINES) -> str:
        """The last lines of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-count:]
        return "\n".join(lines) if lines else "(it wrote nothing)"


class Processes:
    """Starts processes and, at the end of the ``with``, stops those that still run, whatever happened.

    Args:
        environment: of every process.
        logs: folder for their logs, ``<name>.log``.
    """

    def __init__(self, environment: Mapping[str, str], logs: Path) -> None:
        self._environment, self._logs = dict(environment), logs
        self._children: list[Child] = []

    def __enter__(self) -> Processes:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, name: str, command: Sequence[str]) -> Child:
        """Start a process in a group of its own, so that an interrupt at the terminal reaches only us."""
        log = self._logs / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        child = Child(name=name, process=process, log=log)
        self._children.append(child)
        return child

    def stop(self) -> None:
        """Interrupt what still runs, the last started first; then terminate, then kill.

        An interrupt meanwhile makes it harsher, and is passed on when nothing runs any more.
        """
        interrupted = False
        for child in reversed(self._children):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
                try:
                    if not _group_lives(child.process):
                        break
                    _signal_group(child.process, number)
                    _wait_for_group(child.process, PATIENCE_S)
                except KeyboardInterrupt:
                    interrupted = True
        self._children.clear()
        if interrupted:
            raise KeyboardInterrupt


def failure(child: Child, what: str) -> ChildProcessError:
    """An error about a child, with the end of its log."""
    return ChildProcessError(f"the {child.name} {what}; the end of {child.log}:\n{child.tail()}")


def describe(status: int | None) -> str:
    """An exit status in words."""
    if status is not None and status < 0:
        return f"signal {signal.Signals(-status).name}"
    return f"exit code {status}"


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    """Whether any process of the group still runs; reaps the child itself."""
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_for_group(process: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while _group_lives(process) and time.monotonic() < deadline:
        time.sleep(0.05)
