"""Workers as the processes that torchrun started, on one machine or several that share the output folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from fusionocc_core.engine.stopping import StopRequest
from fusionocc_core.fleet.worker import Job, Stopped, Worker, predictor_of

PATIENCE = timedelta(minutes=30)
"""How long processes wait for the first to make the output folder ready: opening large tables fits in."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """This process among those that torchrun started."""

    rank: int
    size: int
    local_rank: int
    restarts: int
    """How often torchrun has started all of them again (--max-restarts)."""


def place_under_torchrun() -> Place:
    """What torchrun has told this process.

    Raises:
        ValueError: torchrun did not start it.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "--engine torchrun: this process was not started by torchrun; start it as `torchrun --nproc-per-node 4 -m "
            "fusionocc_core.cli predict --engine torchrun ...`, or take --engine local"
        )
    return Place(
        rank=int(os.environ["RANK"]),
        size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        restarts=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
    )


def wait_for_the_first(place: Place) -> None:
    """Until the first process is here too. Afterwards the processes need each other no more: units say what is left."""
    if place.size > 1:
        dist.init_process_group("gloo", timeout=PATIENCE)
        dist.barrier()
        dist.destroy_process_group()


def run_under_torchrun(job: Job, place: Place) -> int:
    """Do this process's part of a job.

    Returns:
        0, or the number of the signal by which the run was stopped.
    """
    with StopRequest() as stop:
        worker = Worker(
            job,
            predictor_of(job, place.local_rank),
            place=(place.rank, place.size),
            asked_to_stop=lambda: bool(stop.signal_number),
        )
        try:
            worker.run()
        except Stopped:
            return stop.signal_number
    return 0
