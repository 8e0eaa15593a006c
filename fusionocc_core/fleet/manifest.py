"""The list of everything that a finished run has made, and whether it is all there.

OUT/manifest.jsonl     a line a keyframe, in the order of the logs: token, files with checksums, or the error
OUT/manifest.sha256    the same files for `sha256sum -c manifest.sha256`
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from fusionocc_core.fleet.store import KeyframeRecord, Store, WrittenFile, sha256_of
from fusionocc_core.fleet.units import DataSet, Unit

MANIFEST, SUMS = "manifest.jsonl", "manifest.sha256"

SHOWN = 5
"""Files named in an error before the rest is only counted."""


def write_manifest(store: Store, data: Sequence[DataSet], units: Sequence[Unit]) -> list[KeyframeRecord]:
    """Hold the records of a finished run against the logs, and write what they say.

    Returns:
        Every keyframe, in the order of the logs.

    Raises:
        ValueError: a unit is not done, a record is of other keyframes, two have the same file, or a file is missing.
    """
    keyframes = [keyframe for unit in units for keyframe in _keyframes_of(store, data[unit.data], unit)]
    files = [file for keyframe in keyframes for file in keyframe.files]
    if len({file.path for file in files}) != len(files):
        raise ValueError(f"{store.out}: two keyframes have the same scene and stamp, so that one's file is the other's")
    _refuse_missing(store.out, [file for file in files if not store.has(file)], "missing or of another size")
    _write(store.out / MANIFEST, (json.dumps(asdict(keyframe)) for keyframe in keyframes))
    _write(store.out / SUMS, (f"{file.sha256}  {file.path}" for file in files))
    return keyframes


def check_manifest(out: Path) -> int:
    """Read every file that a finished run has made and compare its checksum.

    Returns:
        How many files there are.

    Raises:
        FileNotFoundError: there is no manifest: the run is not finished.
        ValueError: files are missing or have changed; the message names some.
    """
    path = out / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file: no run with --engine has been finished here")
    keyframes = [json.loads(line) for line in path.read_text().splitlines()]
    files = [WrittenFile(**file) for keyframe in keyframes for file in keyframe["files"]]
    bad = [f for f in files if not (out / f.path).is_file() or sha256_of(out / f.path) != f.sha256]
    _refuse_missing(out, bad, "missing or changed")
    return len(files)


def _keyframes_of(store: Store, data: DataSet, unit: Unit) -> tuple[KeyframeRecord, ...]:
    try:
        keyframes = store.record(unit.name).keyframes
    except FileNotFoundError:
        raise ValueError(f"{store.out}: unit {unit.name} is not done; start the same command again") from None
    wanted = [data.frames.keyframe(index).token for index in range(unit.first, unit.stop)]
    if [keyframe.token for keyframe in keyframes] != wanted:
        raise ValueError(f"{store.out}: the record of {unit.name} is of other keyframes; --overwrite begins anew")
    for keyframe in keyframes:
        if bool(keyframe.files) == bool(keyframe.error):
            raise ValueError(f"{store.out}: {unit.name}: keyframe {keyframe.token} has neither results nor an error")
    return keyframes


def _refuse_missing(out: Path, files: Sequence[WrittenFile], what: str) -> None:
    if files:
        names = ", ".join(file.path for file in files[:SHOWN])
        more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
        raise ValueError(
            f"{out}: {len(files)} files are {what}: {names}{more}; the same command makes missing ones again"
        )


def _write(path: Path, lines: Iterable[str]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
