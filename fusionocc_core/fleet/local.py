"""Workers as processes of this machine."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from fusionocc_core.engine.stopping import StopRequest
from fusionocc_core.fleet.store import Store
from fusionocc_core.fleet.worker import Job, Stopped, Worker, predictor_of
from fusionocc_core.process import arrange_process

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_local(job: Job, workers: int) -> int:
    """Do a job in processes of its own.

    A worker that is killed is not started again: what it had in work goes to the others at once.

    Returns:
        0, or the number of the signal by which the run was stopped; the workers end after their keyframes.

    Raises:
        ValueError: fewer than one worker, or all have ended and units are left.
    """
    if workers < 1:
        raise ValueError(f"--workers {workers}: expected at least one")
    # Spawned, since a fork of a process with threads can hang; a child with torch in it needs a clean start anyway.
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work, args=(job, n, workers), name=f"worker {n}") for n in range(workers)]
    with StopRequest() as stop:
        try:
            with _threads_of_children(job.threads), ThreadPoolExecutor(workers) as pool:
                # All at once: a job fills the pipe, so that each start waits until its child has imported everything.
                list(pool.map(BaseProcess.start, processes))
            _wait_for(processes, stop)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
    if stop.signal_number:
        return stop.signal_number
    left = len({unit.name for unit in job.units} - Store(job.out).done())
    if left:
        ends = ", ".join(f"{process.name} {_end_of(process)}" for process in processes)
        raise ValueError(f"{left} of {len(job.units)} units are left ({ends}); the same command goes on with them")
    return 0


def _wait_for(processes: Sequence[BaseProcess], stop: StopRequest) -> None:
    told = False
    running = list(processes)
    while running:
        wait([process.sentinel for process in running], timeout=LOOK_EVERY_S)
        for process in [one for one in running if not one.is_alive()]:
            running.remove(process)
            if process.exitcode and not stop.signal_number:
                logger.warning("%s %s; its unit goes to the others", process.name, _end_of(process))
        if stop.signal_number and not told:
            told = True
            for process in running:
                process.terminate()


def _end_of(process: BaseProcess) -> str:
    code = process.exitcode or 0
    return f"(process {process.pid}) " + (f"was killed by signal {-code}" if code < 0 else f"ended with code {code}")


def _work(job: Job, number: int, workers: int) -> None:
    """A worker's process; ends itself when its parent is gone."""
    arrange_process()
    logging.basicConfig(level=logging.WARNING, format=f"%(levelname)s worker {number}: %(message)s")
    parent = multiprocessing.parent_process()
    assert parent is not None
    with StopRequest() as stop:
        try:
            worker = Worker(
                job,
                predictor_of(job, number),
                place=(number, workers),
                asked_to_stop=lambda: bool(stop.signal_number) or not parent.is_alive(),
            )
            worker.run()
        except Stopped:
            sys.exit(128 + stop.signal_number)
        except (ValueError, OSError) as error:  # a mistake of the user's; a bug keeps its traceback
            logger.error("%s", error)
            sys.exit(2)


@contextmanager
def _threads_of_children(threads: int) -> Iterator[None]:
    """Libraries read their number of threads from the environment while they are loaded."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
