"""Results and records of a fleet's run: each file appears once, whole, and never changes afterwards.

    OUT/[DATA/]SCENE/STAMP.npz, .png, .ply    as `fusionocc predict` writes them
    OUT/.fleet/records/UNIT.json              a unit that is done: its keyframes with the files' checksums, or errors
    OUT/.fleet/claims/UNIT/N                  who works on it, see claims.py
    OUT/.fleet/partial/                       files in the making
    OUT/manifest.jsonl, manifest.sha256       when everything is done, see manifest.py

A file is written under another name, brought to the disk, and linked to its own name. A hard link fails where the name
exists: of two workers that made the same file the first one's stays.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fusionocc_core.fleet.owner import this_process
from fusionocc_core.structures import Occupancy, SensorFrame
from fusionocc_core.viz.export import ResultPaths, result_paths, write_result

STATE = ".fleet"
"""Folder under the output folder that holds what runs have to know of each other."""

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


@dataclass(frozen=True, kw_only=True)
class WrittenFile:
    """A result on the disk."""

    path: str
    """Below the output folder, with slashes."""
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class KeyframeRecord:
    """What became of a keyframe: files, or an error."""

    token: str
    data: str
    scene: str
    stamp_ns: int
    files: tuple[WrittenFile, ...] = ()
    error: str = ""
    """Why there are no results; "" where there are."""
    earlier: bool = False
    """The results were there before the unit was worked on: left by a worker that died, or by a run without workers."""


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """A unit that is done."""

    unit: str
    worker: str
    began_unix_s: float
    ended_unix_s: float
    cpu_s: float
    """Of the worker's process, between these."""
    keyframes: tuple[KeyframeRecord, ...]


class Store:
    """The output folder of a run; any number of processes may have one at a time.

    Args:
        out: the folder, made if absent.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.claims = out / STATE / "claims"
        self._records = out / STATE / "records"
        self._partial = out / STATE / "partial" / this_process().key
        self._records.mkdir(parents=True, exist_ok=True)

    def check_links(self) -> None:
        """See that the file system has hard links, which everything here rests on.

        Raises:
            OSError: it has none.
        """
        self._partial.mkdir(parents=True, exist_ok=True)
        probe, other = self._partial / "probe", self._partial / "probe.link"
        probe.write_text("")
        try:
            os.link(probe, other)
            other.unlink()
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise OSError(
                error.errno,
                f"--out {self.out}: this file system has no hard links ({error.strerror}), by which workers agree; "
                "write to another one (local disks, NFS, Lustre do), or leave --engine and --workers out",
            ) from error
        finally:
            probe.unlink()

    def paths(self, data: str, scene: str, stamp_ns: int) -> ResultPaths:
        """Where the results of a keyframe belong."""
        return result_paths(self.out / data, scene, stamp_ns)

    def publish(self, data: str, frame: SensorFrame, occupancy: Occupancy, *, pictures: bool) -> None:
        """Write what is not there yet of a keyframe's results; the volume comes last.

        Raises:
            OSError: the folder cannot be written.
        """
        made = write_result(self._partial, frame, occupancy, pictures=pictures)
        wanted = self.paths(data, frame.scene, frame.stamp_ns)
        wanted.volume.parent.mkdir(parents=True, exist_ok=True)
        for name in ("gaussians", "picture", "volume"):
            if getattr(made, name).is_file():
                _link(getattr(made, name), getattr(wanted, name))

    def written(self, data: str, scene: str, stamp_ns: int, *, pictures: bool) -> tuple[WrittenFile, ...]:
        """The results of a keyframe with their checksums, read from the disk."""
        paths = self.paths(data, scene, stamp_ns)
        wanted = [paths.volume, *([paths.picture] if pictures else []), paths.gaussians]
        return tuple(self._written(path) for path in wanted if path.is_file())

    def _written(self, path: Path) -> WrittenFile:
        return WrittenFile(
            path=path.relative_to(self.out).as_posix(), bytes=path.stat().st_size, sha256=sha256_of(path)
        )

    def done(self) -> set[str]:
        """Names of the units that are done."""
        return {name.removesuffix(".json") for name in os.listdir(self._records) if not name.startswith(".")}

    def is_done(self, unit: str) -> bool:
        """Whether a unit is done."""
        return self._record_path(unit).is_file()

    def add(self, record: UnitRecord) -> None:
        """Say that a unit is done. What another worker has said before stays.

        Raises:
            OSError: it cannot be written.
        """
        self._partial.mkdir(parents=True, exist_ok=True)
        partial = self._partial / f"{record.unit}.json"
        partial.write_text(json.dumps(asdict(record)) + "\n")
        _link(partial, self._record_path(record.unit))

    def record(self, unit: str) -> UnitRecord:
        """What was said of a unit.

        Raises:
            FileNotFoundError: it is not done.
        """
        return _decode(json.loads(self._record_path(unit).read_text()))

    def reopen(self, unit: str) -> None:
        """Make a unit undone; the results that it has stay."""
        self._record_path(unit).unlink(missing_ok=True)

    def is_whole(self, record: UnitRecord) -> bool:
        """Whether every file of a unit is there, in the size that it had, and no keyframe failed."""
        return all(
            not keyframe.error and all(self.has(file) for file in keyframe.files) for keyframe in record.keyframes
        )

    def has(self, file: WrittenFile) -> bool:
        """Whether a result is there, in the size that it had."""
        try:
            return (self.out / file.path).stat().st_size == file.bytes
        except FileNotFoundError:
            return False

    def forget(self) -> None:
        """Take away all claims and records."""
        shutil.rmtree(self.out / STATE, ignore_errors=True)
        self._records.mkdir(parents=True)

    def tidy(self) -> None:
        """Take away what this process, and processes of this machine that died, left unfinished."""
        shutil.rmtree(self._partial, ignore_errors=True)
        mine, parent = this_process(), self._partial.parent
        for folder in parent.iterdir() if parent.is_dir() else ():
            _, pid, started = folder.name.split("-")
            other = replace(mine, pid=int(pid), started=started)
            if folder.name == other.key and other.is_known_to_be_dead():
                shutil.rmtree(folder, ignore_errors=True)

    def _record_path(self, unit: str) -> Path:
        return self._records / f"{unit}.json"


def sha256_of(path: Path) -> str:
    """The checksum of a file, as ``sha256sum`` prints it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _link(partial: Path, path: Path) -> None:
    """Give a file that is written its name, unless something has it already."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    try:
        os.link(partial, path)
    except FileExistsError:
        return
    finally:
        partial.unlink()


def _decode(content: dict[str, Any]) -> UnitRecord:
    keyframes = [
        KeyframeRecord(**{**keyframe, "files": tuple(WrittenFile(**file) for file in keyframe["files"])})
        for keyframe in content["keyframes"]
    ]
    return UnitRecord(**{**content, "keyframes": tuple(keyframes)})
