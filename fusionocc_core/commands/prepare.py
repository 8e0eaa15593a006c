"""`fusionocc prepare`: make what training needs beyond the downloads, and check that everything is there."""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from fusionocc_core.commands.prepare_check import (
    KINDS,
    RECIPE_KINDS,
    check,
    report_missing_lidarseg,
)
from fusionocc_core.commands.progress import make_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from fusionocc_core.data.imgseg import ImgsegJob
    from fusionocc_core.data.nuscenes import NuScenesFrames

logger = logging.getLogger(__name__)

_CHUNK = 8
"""Keyframes that a worker process takes at a time."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "prepare",
        help="label maps of pictures from lidarseg, an index of the tables; --check: is everything there?",
        description="Write an index of the tables (ROOT/cache), with which the data set opens quickly, and paint the "
        "label maps of pictures that FusionOcc trains on (ROOT/imgseg) from the labelled LiDAR points of "
        "nuScenes-lidarseg. A run that was stopped goes on where it was. With --check nothing is written: every file "
        "that training needs is looked at, and what is missing is listed with the place to get it from.",
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="the data set: the folder with samples/ and v1.0-*/")
    parser.add_argument("--version", help="folder of tables, such as v1.0-mini; not needed where there is only one")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--split", help="only the scenes of this split, such as train or mini_val")
    chosen.add_argument("--scene", action="append", metavar="NAME", help="only this scene; may be given several times")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (with --check: threads); default: one a core"
    )
    parser.add_argument("--overwrite", action="store_true", help="paint maps that are there already anew")
    parser.add_argument("--check", action="store_true", help="look at every file instead; exit 1 if not whole")
    parser.add_argument(
        "--need",
        nargs="+",
        choices=KINDS,
        default=list(RECIPE_KINDS),
        metavar="KIND",
        help=f"with --check: which files, of {', '.join(KINDS)} (default: {' '.join(RECIPE_KINDS)})",
    )
    parser.add_argument("--deep", action="store_true", help="with --check: read files whole instead of their ends")
    parser.add_argument("--list", type=Path, metavar="FILE", help="with --check: write all missing and damaged files")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the index and paint, or check, and print a table."""
    from rich.console import Console

    from fusionocc_core.data.imgseg import LIDARSEG_DOWNLOAD
    from fusionocc_core.data.nuscenes import NuScenesFrames
    from fusionocc_core.data.nuscenes_tables import find_version

    workers = (os.cpu_count() or 1) if args.workers is None else args.workers
    if workers < 1:
        raise ValueError(f"--workers {workers}: expected 1 or more")
    console = Console()
    version = find_version(args.root, args.version)
    missing = missing_lidarseg(args.root, version)
    if missing and args.check:
        return report_missing_lidarseg(args.root / version, missing, listing=args.list, console=console)
    if missing:
        raise FileNotFoundError(
            f"lidarseg: {len(missing)} files that {args.root / version / 'lidarseg.json'} lists are missing, such as "
            f"{missing[0]}; get {LIDARSEG_DOWNLOAD}, or remove lidarseg.json to do without"
        )
    with Console(stderr=True).status("reading the tables"):
        frames = NuScenesFrames(args.root, version=version, split=args.split, scenes=args.scene)
    if args.check:
        return check(frames, args.need, workers=workers, deep=args.deep, listing=args.list, console=console)
    index(frames, console)
    return paint(frames, workers=workers, overwrite=args.overwrite, console=console)


def index(frames: NuScenesFrames, console: Console) -> None:
    """Write the index of the tables unless it was there; a data set that cannot have one is used without."""
    from fusionocc_core.data.index_cache import read_boxes

    if not (frames.has_index and read_boxes(frames.root, frames.version)):
        try:
            path = frames.write_index()
        except (OSError, ValueError) as error:
            logger.warning("no index of the tables, the data set opens slowly but works: %s", error)
            return
        console.print(f"index of the tables: {path.resolve()}", highlight=False, soft_wrap=True)


def missing_lidarseg(root: Path, version: str) -> list[Path]:
    """Files of point labels that the data set lists and does not hold.

    nuscenes-devkit refuses such a data set without saying which they are, so this is looked up before it is opened.
    """
    from fusionocc_core.data.imgseg import lidarseg_files

    if not (root / version / "lidarseg.json").is_file():
        return []
    return [path for path in lidarseg_files(root, version).values() if not path.is_file()]


@dataclass(frozen=True, kw_only=True)
class Painted:
    """What became of some keyframes."""

    keyframes: int
    maps: int
    errors: tuple[str, ...]


def paint(frames: NuScenesFrames, *, workers: int, overwrite: bool, console: Console) -> int:
    """Paint what is not there yet; 0 if all of it is there in the end, else 1.

    A damaged cloud is reported at the end and stops nothing else.
    """
    from fusionocc_core.data.imgseg import class_table, imgseg_jobs, is_painted

    jobs = imgseg_jobs(frames)
    table = class_table(frames.root, frames.version)
    todo = [
        job
        for job in jobs
        if overwrite or not all(is_painted(p, c) for p, c in zip(job.outputs, job.cameras, strict=True))
    ]
    began = time.perf_counter()
    painted = list(_in_processes(todo, table, workers))
    took = time.perf_counter() - began
    errors = [error for part in painted for error in part.errors]
    rows = {
        "keyframes": len(jobs),
        "there already": len(jobs) - len(todo),
        "painted": len(todo) - len(errors),
        "label maps written": sum(part.maps for part in painted),
        "failed": len(errors),
        "keyframes a second": f"{len(todo) / took:.0f}" if todo else "-",
    }
    _print_rows(console, rows)
    console.print(f"label maps: {(frames.root / 'imgseg').resolve()}", highlight=False, soft_wrap=True)
    for error in errors:
        console.print(f"failed: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    return 1 if errors else 0


def _in_processes(jobs: Sequence[ImgsegJob], table: NDArray[np.uint8], workers: int) -> Iterator[Painted]:
    chunks = [jobs[start : start + _CHUNK] for start in range(0, len(jobs), _CHUNK)]
    with make_progress() as progress:
        bar = progress.add_task("painting keyframes", total=len(jobs))
        if workers == 1 or len(chunks) < 2:
            results: Iterable[Painted] = (paint_chunk(chunk, table) for chunk in chunks)
            yield from _advance(progress, bar, results)
            return
        # Fresh processes: a fork of a process with threads may hang.
        with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=get_context("spawn")) as pool:
            yield from _advance(progress, bar, _finished(pool, chunks, table))


def _advance(progress: Progress, bar: TaskID, results: Iterable[Painted]) -> Iterator[Painted]:
    for result in results:
        progress.advance(bar, result.keyframes)
        yield result


def _finished(
    pool: ProcessPoolExecutor, chunks: Sequence[Sequence[ImgsegJob]], table: NDArray[np.uint8]
) -> Iterator[Painted]:
    """Results as they come; whatever stops the caller leaves the rest undone."""
    try:
        for future in as_completed([pool.submit(paint_chunk, chunk, table) for chunk in chunks]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def paint_chunk(jobs: Sequence[ImgsegJob], table: NDArray[np.uint8]) -> Painted:
    """Paint some keyframes, in a worker process or in this one."""
    from fusionocc_core.data.imgseg import run_job

    maps, errors = 0, []
    for job in jobs:
        try:
            maps += run_job(job, table)
        except (ValueError, FileNotFoundError) as error:
            errors.append(str(error))
    return Painted(keyframes=len(jobs), maps=maps, errors=tuple(errors))


def _print_rows(console: Console, rows: dict[str, object]) -> None:
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, str(value))
    console.print(table)
