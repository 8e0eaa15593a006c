"""`fusionocc predict` with workers: --engine, --workers and several data sets; see docs/fleet.md."""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fusionocc_core.commands.progress import make_progress

if TYPE_CHECKING:
    from fusionocc_core.fleet.run import FleetSummary
    from fusionocc_core.fleet.worker import Job
    from fusionocc_core.predictor import Predictor

ENGINES = ("local", "torchrun", "ray")

FAILED = 1
"""Exit code of a run that went to the end without some keyframes."""


def add_fleet_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    group = parser.add_argument_group(
        "workers", "many processes, on one machine or several with a shared folder; each result exactly once"
    )
    group.add_argument(
        "--engine",
        choices=ENGINES,
        help="local: processes of this machine; torchrun: those that torchrun started; ray: actors of Ray Data "
        "(default: local where one of the options of this group, or more than one data set, is given)",
    )
    group.add_argument("--workers", type=int, metavar="N", help="how many (local, ray; default: 1)")
    group.add_argument("--threads", type=int, default=1, metavar="N", help="of each worker (default: %(default)s)")
    group.add_argument(
        "--chunk", type=int, metavar="N", help="most keyframes that a worker takes at a time (default: 20)"
    )
    group.add_argument(
        "--lease",
        type=float,
        metavar="SECONDS",
        help="silence after which a worker of another machine counts as dead (default: 60)",
    )
    group.add_argument(
        "--ray-address", metavar="ADDRESS", help="a cluster that runs (default: RAY_ADDRESS, or a new one)"
    )


def wants_fleet(args: argparse.Namespace) -> bool:
    """Whether the options ask for workers."""
    from fusionocc_core.fleet.units import named_roots

    options = (args.engine, args.workers, args.chunk, args.lease, args.ray_address)
    return any(option is not None for option in options) or args.threads != 1 or list(named_roots(args.data)) != [""]


def run_fleet(args: argparse.Namespace) -> int:
    """Predict with workers and print a table."""
    from fusionocc_core.fleet.run import finish
    from fusionocc_core.fleet.under_torchrun import place_under_torchrun, wait_for_the_first

    engine = args.engine or "local"
    refuse_options(args, engine)
    place = place_under_torchrun() if engine == "torchrun" else None
    job = make_job(args)
    began, is_first, before = time.monotonic(), place is None or place.rank == 0, 0
    if is_first:
        before = _prepare(args, job, overwrite=args.overwrite and not (place and place.restarts))
    if place is not None:
        wait_for_the_first(place)
    stopped_by = _run(args, engine, job) if is_first else _run_beside(job)
    if stopped_by:
        return 128 + stopped_by
    return tell(finish(job, seconds=time.monotonic() - began, done_before=before), args.out) if is_first else 0


def refuse_options(args: argparse.Namespace, engine: str) -> None:
    """Options that say nothing to an engine are mistakes.

    Raises:
        ValueError: one of them was given.
    """
    if engine == "torchrun" and args.workers is not None:
        raise ValueError(f"--workers {args.workers}: with --engine torchrun its --nproc-per-node and --nnodes say that")
    if engine != "ray" and args.ray_address is not None:
        raise ValueError(f"--ray-address {args.ray_address}: goes with --engine ray, not with {engine}")
    if args.threads < 1:
        raise ValueError(f"--threads {args.threads}: expected at least one")


def make_job(args: argparse.Namespace) -> Job:
    """What the options say, with the data sets opened and held against the network.

    Raises:
        FileNotFoundError, ValueError: data or network are not there, or do not fit together.
    """
    from fusionocc_core.commands.predict import fitted, make_seeded_model
    from fusionocc_core.data.nuscenes import NuScenesFrames
    from fusionocc_core.fleet.claims import LEASE_S
    from fusionocc_core.fleet.units import KEYFRAMES_A_UNIT, DataSet, cut, named_roots
    from fusionocc_core.fleet.worker import Job
    from fusionocc_core.predictor import pick_device

    pick_device(args.device)
    frames = {
        name: NuScenesFrames(root, version=args.version, scenes=args.scene, cameras=args.cameras, threads=args.threads)
        for name, root in named_roots(args.data).items()
    }
    model = make_seeded_model(args.preset, args.checkpoint)
    data = tuple(DataSet(name=name, frames=fitted(one, model)) for name, one in frames.items())
    return Job(
        out=args.out,
        data=data,
        units=cut(data, KEYFRAMES_A_UNIT if args.chunk is None else args.chunk),
        predictor=partial(make_predictor, args.preset, args.checkpoint),
        device=args.device,
        pictures=not args.no_pictures,
        threads=args.threads,
        lease_s=LEASE_S if args.lease is None else args.lease,
    )


def make_predictor(preset: str | None, checkpoint: Path | None, device: str) -> Predictor:
    """What a worker predicts with."""
    from fusionocc_core.commands.predict import make_seeded_model
    from fusionocc_core.predictor import Predictor

    return Predictor(make_seeded_model(preset, checkpoint), device=device, confidence=True)


def _prepare(args: argparse.Namespace, job: Job, *, overwrite: bool) -> int:
    """Make the output folder ready; gives the number of keyframes that are done already."""
    from fusionocc_core.commands.predict import claim_folder, settings_of
    from fusionocc_core.fleet.run import prepare
    from fusionocc_core.fleet.watch import Watch

    for data in job.data:
        claim_folder(job.out / data.name, settings_of(args, data.frames), overwrite=overwrite)
    prepare(job, overwrite=overwrite)
    return Watch(job, lambda done: None).keyframes_done()


def _run(args: argparse.Namespace, engine: str, job: Job) -> int:
    """The workers, with a bar; gives the number of the signal by which they were stopped."""
    from fusionocc_core.fleet.watch import Watch

    with make_progress() as progress:
        task = progress.add_task("predicting", total=job.keyframes)
        with Watch(job, lambda done: progress.update(task, completed=done)):
            if engine == "torchrun":
                return _run_beside(job)
            if engine == "ray":
                from fusionocc_core.fleet.on_ray import run_on_ray

                return run_on_ray(job, args.workers or 1, address=args.ray_address)
            from fusionocc_core.fleet.local import run_local

            return run_local(job, 1 if args.workers is None else args.workers)


def _run_beside(job: Job) -> int:
    from fusionocc_core.fleet.under_torchrun import place_under_torchrun, run_under_torchrun

    return run_under_torchrun(job, place_under_torchrun())


def tell(summary: FleetSummary, out: Path) -> int:
    """Print what became of the run; gives the exit code."""
    from rich.console import Console

    from fusionocc_core.fleet.manifest import MANIFEST

    console = Console()
    console.print(summary.render())
    for keyframe in summary.failed:
        where = "/".join(part for part in (keyframe.data, keyframe.scene) if part)
        line = f"failed {keyframe.token} ({where} {keyframe.stamp_ns}): {keyframe.error}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(f"voxels and pictures: {out.resolve()}, listed in {MANIFEST}", highlight=False, soft_wrap=True)
    return FAILED if summary.failed else 0
