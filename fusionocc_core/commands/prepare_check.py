"""`fusionocc prepare --check`: which files of a data set are missing or damaged, and where to get them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fusionocc_core.commands.progress import make_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

    from fusionocc_core.data.nuscenes import NuScenesFrames
    from fusionocc_core.data.nuscenes_tables import Keyframe, SensorRecord

KINDS = ("pictures", "clouds", "occ3d", "imgseg", "lidarseg", "surroundocc")
RECIPE_KINDS = KINDS[:4]
"""What the official FusionOcc recipe reads."""

_NUSCENES = "https://www.nuscenes.org/nuscenes#download"
SOURCES = {
    "pictures": f"{_NUSCENES}: v1.0-mini.tgz, or v1.0-trainval01_blobs.tgz to 10; extract over ROOT",
    "clouds": f"{_NUSCENES}: v1.0-mini.tgz, or v1.0-trainval01_blobs.tgz to 10; extract over ROOT",
    "occ3d": "https://github.com/Tsinghua-MARS-Lab/Occ3D: gts.tar.gz of Occ3D-nuScenes; extract to ROOT/gts",
    "imgseg": "fusionocc prepare ROOT (needs lidarseg)",
    "lidarseg": f"{_NUSCENES}: nuScenes-lidarseg-all-v1.0.tar.bz2, or -mini-; extract over ROOT",
    "surroundocc": "https://github.com/weiyithu/SurroundOcc: occupancy labels; put samples/ under ROOT/surroundocc",
}

_MOST_LISTED = 5


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A file that must be there, and how to look at it."""

    kind: str
    path: Path
    look: Callable[[], None]
    """Raises ValueError or FileNotFoundError where it is not whole."""


@dataclass(kw_only=True)
class Tally:
    """How the files of one kind are."""

    wanted: int = 0
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def check(
    frames: NuScenesFrames, kinds: Sequence[str], *, workers: int, deep: bool, listing: Path | None, console: Console
) -> int:
    """Look at every file and print what is missing or damaged, and where to get it; 0 if nothing is."""
    wanted = [item for kind in KINDS if kind in kinds for item in wanted_files(frames, kind, deep=deep)]
    tallies = {kind: Tally() for kind in KINDS if kind in kinds}
    with make_progress() as progress, ThreadPoolExecutor(workers) as pool:
        bar = progress.add_task("checking files", total=len(wanted))
        for item, error in zip(wanted, pool.map(_problem, wanted), strict=True):
            tally = tallies[item.kind]
            tally.wanted += 1
            if error is not None:
                (tally.damaged if item.path.is_file() else tally.missing).append(error)
            progress.advance(bar)
    title = f"{frames.root / frames.version}: keyframes: {len(frames)}, scenes: {len(frames.scenes)}"
    return _report(tallies, title, listing=listing, console=console)


def report_missing_lidarseg(folder: Path, missing: Sequence[Path], *, listing: Path | None, console: Console) -> int:
    """All that can be said of a data set that nuscenes-devkit does not open for want of these files; 1."""
    lost = [f"missing: {path}" for path in missing]
    from fusionocc_core.data.imgseg import lidarseg_files

    wanted = len(lidarseg_files(folder.parent, folder.name))
    code = _report({"lidarseg": Tally(wanted=wanted, missing=lost)}, str(folder), listing=listing, console=console)
    console.print("  nothing else can be checked before these are there, or lidarseg.json is removed", highlight=False)
    return code


def _report(tallies: dict[str, Tally], title: str, *, listing: Path | None, console: Console) -> int:
    _print_tallies(console, title, tallies)
    problems = [text for tally in tallies.values() for text in (*tally.missing, *tally.damaged)]
    if listing is not None:
        listing.write_text("".join(f"{text}\n" for text in problems))
        console.print(f"{len(problems)} lines in {listing}", highlight=False)
    return 1 if problems else 0


def _problem(item: Wanted) -> str | None:
    if not item.path.is_file():
        return f"missing: {item.path}"
    try:
        item.look()
    except (ValueError, FileNotFoundError) as error:
        return f"damaged: {error}"
    return None


def wanted_files(frames: NuScenesFrames, kind: str, *, deep: bool) -> Iterator[Wanted]:
    """Every file of a kind that the keyframes need."""
    from fusionocc_core.data.imgseg import class_table, imgseg_jobs, imgseg_path

    keyframes = [frames.keyframe(index) for index in range(len(frames))]
    if kind == "lidarseg":
        table = class_table(frames.root, frames.version)
        for job in imgseg_jobs(frames):
            yield Wanted(kind=kind, path=job.lidarseg, look=partial(_look_at_lidarseg, job.lidarseg, job.lidar, table))
        return
    for keyframe in keyframes:
        for record in keyframe.records.values():
            if record.modality == "camera" and kind == "pictures":
                yield Wanted(kind=kind, path=record.path, look=partial(_look_at_picture, record, deep))
            elif record.modality == "camera" and kind == "imgseg":
                path = imgseg_path(frames.root, record)
                yield Wanted(kind=kind, path=path, look=partial(_look_at_map, path, record))
            elif record.modality == "lidar" and kind == "clouds":
                yield Wanted(kind=kind, path=record.path, look=partial(_look_at_cloud, record, deep))
        if kind in ("occ3d", "surroundocc"):
            yield from _wanted_labels(frames, keyframe, kind, deep)


def _wanted_labels(frames: NuScenesFrames, keyframe: Keyframe, kind: str, deep: bool) -> Iterator[Wanted]:
    from fusionocc_core.data.occ3d import occ3d_path
    from fusionocc_core.data.surroundocc import read_surroundocc, surroundocc_path

    if kind == "occ3d":
        path = occ3d_path(frames.root, keyframe.scene, keyframe.token)
        yield Wanted(kind=kind, path=path, look=partial(_look_at_occ3d, path, deep))
    elif frames.lidar in keyframe.records:
        path = surroundocc_path(frames.root, keyframe.records[frames.lidar].path)
        yield Wanted(kind=kind, path=path, look=partial(_discard, read_surroundocc, path))


def _discard(read: Callable[[Path], object], path: Path) -> None:
    read(path)


def _look_at_picture(record: SensorRecord, deep: bool) -> None:
    from fusionocc_core.data.nuscenes import read_camera

    if deep:
        read_camera(record)
        return
    with record.path.open("rb") as file:
        head = file.read(4)
        file.seek(0, os.SEEK_END)
        file.seek(-min(file.tell(), 1024), os.SEEK_END)
        tail = file.read()
    whole = (head.startswith(b"\xff\xd8") and b"\xff\xd9" in tail) or (head == b"\x89PNG" and b"IEND" in tail)
    if not whole:
        raise ValueError(f"{record.path} is no whole JPEG or PNG file (start or end mark missing)")


def _look_at_cloud(record: SensorRecord, deep: bool) -> None:
    from fusionocc_core.data.files import POINT_BYTES
    from fusionocc_core.data.nuscenes import read_sweep

    if deep:
        read_sweep(record)
    elif not (size := record.path.stat().st_size) or size % POINT_BYTES:
        raise ValueError(f"{record.path} has {size} bytes; expected a positive multiple of {POINT_BYTES}")


def _look_at_lidarseg(path: Path, lidar: SensorRecord, table: NDArray[np.uint8]) -> None:
    from fusionocc_core.data.files import POINT_BYTES
    from fusionocc_core.data.imgseg import read_lidarseg

    if lidar.path.is_file():
        read_lidarseg(path, table, lidar.path.stat().st_size // POINT_BYTES)


def _look_at_map(path: Path, camera: SensorRecord) -> None:
    from fusionocc_core.data.imgseg import is_painted, map_shape

    if not is_painted(path, camera):
        raise ValueError(f"{path} is no whole .npy file of uint8 {map_shape(camera)}")


def _look_at_occ3d(path: Path, deep: bool) -> None:
    from zipfile import BadZipFile, ZipFile

    from fusionocc_core.data.occ3d import read_occ3d

    if deep:
        read_occ3d(path)
        return
    try:
        with ZipFile(path) as archive:
            names = set(archive.namelist())
    except BadZipFile as error:
        raise ValueError(f"{path} is no whole .npz file ({error})") from error
    missing = {"semantics.npy", "mask_lidar.npy", "mask_camera.npy"} - names
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}")


def _print_tallies(console: Console, title: str, tallies: dict[str, Tally]) -> None:
    from rich.table import Table

    console.print(title, markup=False, highlight=False, soft_wrap=True)
    table = Table()
    for heading in ("files", "wanted", "missing", "damaged"):
        table.add_column(heading, justify="left" if heading == "files" else "right")
    for kind, tally in tallies.items():
        style = "red" if tally.missing or tally.damaged else "green"
        table.add_row(kind, str(tally.wanted), str(len(tally.missing)), str(len(tally.damaged)), style=style)
    console.print(table)
    for kind, tally in tallies.items():
        problems = [*tally.missing, *tally.damaged]
        for text in problems[:_MOST_LISTED]:
            console.print(f"  {text}", markup=False, highlight=False, soft_wrap=True)
        if len(problems) > _MOST_LISTED:
            console.print(
                f"  and {len(problems) - _MOST_LISTED} more of {kind} (--list FILE writes all)", highlight=False
            )
        if problems:
            console.print(f"  get {kind}: {SOURCES[kind]}", markup=False, highlight=False, soft_wrap=True)
