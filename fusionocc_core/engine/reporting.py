"""What a run says: a live line, a JSONL log, TensorBoard where asked for."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fusionocc_core.engine.run_folder import whole_file

SMOOTHING = 0.9
"""Share of the past in the rate from which the remaining time is told."""


class JsonLines:
    """A log with one JSON object a line, which a resumed run continues without gaps or repeats."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a line, in one write."""
        with self.path.open("ab", buffering=0) as file:
            file.write((json.dumps(_plain(entry)) + "\n").encode())

    def entries(self) -> list[dict[str, Any]]:
        """Every complete line."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                found.append(json.loads(line))
        return found

    def cut_after(self, step: int) -> None:
        """Drop what was logged after a checkpoint, and a line that was cut off: the resumed run writes it again."""
        kept = [entry for entry in self.entries() if entry["step"] <= step]
        with whole_file(self.path) as file:
            for entry in kept:
                file.write((json.dumps(entry) + "\n").encode())


class TensorBoard:
    """Scalars for TensorBoard; the package is needed only here."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "--tensorboard needs the tensorboard package: pip install tensorboard (or fusionocc_ros[train])"
            ) from error
        self.writer = SummaryWriter(str(folder), purge_step=first_step)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is buffered."""
        self.writer.close()


class ProgressLine:
    """One live line with loss, rate, time left and memory; plain lines now and then where there is no terminal.

    Args:
        steps: of the whole run.
        done: steps that earlier runs did.
        plain_every: seconds between plain lines.
    """

    def __init__(self, *, steps: int, done: int, console: Console | None = None, plain_every: float = 30.0) -> None:
        self.steps = steps
        self.console = console or Console()
        self.plain_every = plain_every
        self._seconds, self._shown = 0.0, 0
        self._last_plain = -math.inf
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("training", total=steps, completed=done, told="first step ...")

    def start(self) -> None:
        """Show the line."""
        self._progress.start()

    def stop(self) -> None:
        """Remove the line."""
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print something that stays, above the line."""
        self._progress.console.print(text, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Show something else than a step: an evaluation in between."""
        self._progress.update(self._task, told=text)

    def step(self, step: int, *, epoch: float, loss: float, seconds: float, samples: int) -> None:
        """Tell of a finished optimizer step that took ``seconds`` for ``samples`` samples."""
        # The first step of a process takes longer than all others: it is shown, but does not count further on.
        self._seconds = seconds if self._shown < 2 else SMOOTHING * self._seconds + (1 - SMOOTHING) * seconds
        self._shown += 1
        told = (
            f"epoch {epoch:.2f}  loss {loss:.4f}  {samples / self._seconds:.2f} samples/s  "
            f"{duration((self.steps - step) * self._seconds)} left  {memory_text()}"
        )
        self._progress.update(self._task, completed=step, told=told)
        now = time.monotonic()
        if not self.console.is_terminal and (now - self._last_plain >= self.plain_every or step == self.steps):
            self._last_plain = now
            self.console.print(f"step {step}/{self.steps}  {told}", highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def resident_bytes() -> int:
    """Main memory that this process occupies; outside Linux the most that it ever did."""
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def memory() -> dict[str, float]:
    """MB of main memory now, and of GPU memory at most so far where there is a GPU."""
    told = {"ram_mb": resident_bytes() / 1e6}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        told["gpu_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return told


def memory_text() -> str:
    """The same in words."""
    now = memory()
    gpu = f"  GPU {now['gpu_mb'] / 1e3:.1f} GB" if "gpu_mb" in now else ""
    return f"RAM {now['ram_mb'] / 1e3:.1f} GB{gpu}"


def _plain(value: Any) -> Any:
    """JSON has no NaN: such numbers become text."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
