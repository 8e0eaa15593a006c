"""What a run keeps on disk, so that it survives being killed at any moment.

    OUT/run.json                    the recipe, the command, versions
    OUT/log.jsonl                   one line a logged step or evaluation
    OUT/checkpoints/step-*.pt       everything needed to go on: the newest few and the best
    OUT/best.safetensors            weights to use (load_model reads them), from the best evaluation
    OUT/last.safetensors            weights after the last step
    OUT/failures/                   what was in the batch when a loss was not finite
    OUT/tensorboard/                where asked for

A file appears under its name only when it is whole and on the disk.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

CHECKPOINT_FORMAT = "fusionocc-training-1"
"""Value of the key "format" in training checkpoints."""

_NAME = re.compile(r"step-(\d+)\.pt")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often to save, and what to keep."""

    every_steps: int = 1000
    """Optimizer steps between checkpoints; one is written at every evaluation and at the end, too."""
    keep: int = 3
    """The newest ones kept; the best one is kept besides."""

    def __post_init__(self) -> None:
        """Refuse to keep nothing."""
        if self.every_steps < 1 or self.keep < 1:
            raise ValueError(
                f"CheckpointConfig: every_steps={self.every_steps} and keep={self.keep} must be at least 1"
            )


class RunFolder:
    """The folder of one run; only the main process makes one.

    Raises:
        ValueError: another process is training into the folder.
        OSError: it cannot be created or written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._lock = (path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed by the kernel, also after kill -9
        except BlockingIOError:
            raise ValueError(f"{path}: another process is training into this folder; choose another --out") from None
        self.remove_partial_files()

    def close(self) -> None:
        """Let others train into the folder."""
        self._lock.close()

    def remove_partial_files(self) -> None:
        """Remove what a killed process left half-written."""
        for folder in (self.path, self.checkpoints):
            for partial in folder.glob(".*.part"):
                partial.unlink(missing_ok=True)

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, oldest first."""
        return sorted(int(match[1]) for file in self.checkpoints.iterdir() if (match := _NAME.fullmatch(file.name)))

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.checkpoints / f"step-{step:08d}.pt"

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        with whole_file(self.checkpoint_path(step)) as file:
            _save({"format": CHECKPOINT_FORMAT, **state}, file)

    def load_newest(self) -> dict[str, Any] | None:
        """The newest checkpoint on the CPU, or None where there is none.

        Raises:
            ValueError: it is damaged, or not one of ours.
        """
        steps = self.steps()
        return load_checkpoint(self.checkpoint_path(steps[-1])) if steps else None

    def prune(self, keep: int, best_step: int | None) -> None:
        """Remove all but the newest ``keep`` checkpoints and the best."""
        for step in self.steps()[:-keep]:
            if step != best_step:
                self.checkpoint_path(step).unlink()

    def write_json(self, name: str, content: Any) -> None:
        """Write a small JSON file, whole or not at all; folders in the name are made."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not one of ours.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path}: damaged ({str(error).splitlines()[0]}). Checkpoints appear whole or not at all, so the disk or a "
            "copy is at fault: delete this file to go on from the one before it"
        ) from error
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise ValueError(f"{path}: not a training checkpoint of this version ({CHECKPOINT_FORMAT})")
    return state


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under ``path`` only after it is written completely and has reached the disk.

    Raises:
        OSError: naming the path and the space left where the disk is full.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _explain(error, path) from error
    finally:
        partial.unlink(missing_ok=True)


def publish(path: Path, write: Callable[[Path], None]) -> None:
    """Let a function write a file under a temporary name, and give it its own when it is on the disk.

    Raises:
        OSError: as ``whole_file``.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _explain(error, path) from error
    finally:
        partial.unlink(missing_ok=True)


def check_space(path: Path, needed: int) -> None:
    """Say before the training starts that its checkpoints will not fit.

    Raises:
        OSError: fewer than ``needed`` bytes are free.
    """
    free = shutil.disk_usage(path).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{path}: {free / 1e9:.1f} GB free, but the checkpoints of this run take up to {needed / 1e9:.1f} GB; "
            "choose another --out or keep fewer (--set train.checkpoints.keep=1)",
        )


def _save(state: Mapping[str, Any], file: IO[bytes]) -> None:
    try:
        torch.save(dict(state), file)
    except RuntimeError as error:
        # PyTorch's writer covers the error of the file below it with one of its own.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explain(error: OSError, path: Path) -> OSError:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error
    free = shutil.disk_usage(path.parent).free
    return OSError(
        error.errno,
        f"{path} could not be written: {os.strerror(error.errno or 0)} ({free / 1e6:.0f} MB free). Nothing was lost: "
        "make space and start the same command again; it goes on from the last checkpoint",
    )
