"""Workers as actors of Ray Data, on this machine or on a cluster whose nodes share the output folder.

Ray hands out the units, starts actors again that died, and hands their units out again; what each writes, and that
nothing is doubled, is the same as with every engine.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

from fusionocc_core.fleet.worker import Job, Worker, predictor_of
from fusionocc_core.process import arrange_process

_QUIET = ("ray", "ray.data")


class RayWorker:
    """A callable of Ray Data: batches of places in ``job.units`` in, places out when the units are done."""

    def __init__(self, job: Job) -> None:
        arrange_process()
        self._job = job
        # Ray shows each actor its own GPUs alone, so that every one of them begins to count at 0.
        self._worker = Worker(job, predictor_of(job, 0))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do some units."""
        for place in batch["place"].tolist():
            self._worker.do(self._job.units[place])
        return batch


def run_on_ray(job: Job, workers: int, *, address: str | None = None) -> int:
    """Do a job with Ray Data.

    Args:
        job: what is to be done.
        workers: actors; each takes ``job.threads`` CPUs, and a GPU where the job's device is one.
        address: of a cluster that runs; None takes that of RAY_ADDRESS, or starts one on this machine for the run.

    Returns:
        0.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ValueError: fewer than one worker.
        ConnectionError: there is no cluster at the address.
    """
    if workers < 1:
        raise ValueError(f"--workers {workers}: expected at least one")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("--engine ray: Ray is not installed: pip install 'fusionocc_ros[ray]'") from error
    _begin(ray, address or os.environ.get("RAY_ADDRESS"), workers * job.threads)
    try:
        for name in _QUIET:
            logging.getLogger(name).setLevel(logging.WARNING)
        ray.data.DataContext.get_current().enable_progress_bars = False
        places = [{"place": place} for place in range(len(job.units))]
        done = ray.data.from_items(places, override_num_blocks=len(places)).map_batches(
            RayWorker,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=job.threads,
            num_gpus=int(_wants_gpu(job.device)),
        )
        for _ in done.iter_rows():
            pass
    finally:
        ray.shutdown()
    return 0


def _begin(ray: Any, address: str | None, cpus: int) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        ray.init(address=address, **quiet)
    else:
        ray.init(num_cpus=cpus, include_dashboard=False, **quiet)


def _wants_gpu(device: str) -> bool:
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
