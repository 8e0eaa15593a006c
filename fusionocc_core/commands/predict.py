"""`fusionocc predict`: occupancy for every keyframe of a data set, without ROS."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionocc_core import DEFAULT_PRESET
from fusionocc_core.commands.predict_fleet import add_fleet_arguments, run_fleet, wants_fleet

if TYPE_CHECKING:
    from fusionocc_core.data.nuscenes import NuScenesFrames
    from fusionocc_core.predictor import OccupancyModel
    from fusionocc_core.structures import Occupancy, SensorFrame
    from fusionocc_core.viz.export import ResultPaths
    from fusionocc_core.viz.summary import Summary


SETTINGS = "predict.json"
"""In the output folder: what its results were made with, so that a later run continues the same or refuses."""


SKIPPED = 1
"""Exit code of a run that went to the end without some keyframes."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "predict",
        help="occupancy for every keyframe of a data set, as .npz and pictures",
        description="Predict the occupancy of every keyframe of a data set in nuScenes format. Writes "
        "OUT/<scene>/<stamp in nanoseconds>.npz (labels, confidence, origin, voxel_size) and .png, and .ply where the "
        "network has Gaussians. "
        "An interrupted run goes on where it was. With --workers or --engine many processes share the work.",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="ROOT",
        help="the data set: the folder with samples/ and v1.0-*/; several, also as NAME=ROOT, go to OUT/<name>/",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--preset", help=f"network, see `fusionocc presets` (default: {DEFAULT_PRESET})")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="weights: a file, official or ours, or the folder of an exported network; none: what ships, or fresh",
    )
    parser.add_argument("--version", help="folder of tables, such as v1.0-mini; not needed where there is only one")
    parser.add_argument("--scene", action="append", metavar="NAME", help="only this scene; may be given several times")
    parser.add_argument(
        "--cameras", nargs="+", metavar="NAME", help="only these cameras, such as CAM_FRONT (default: all)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--no-pictures", action="store_true", help="write the .npz only")
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="go on where a keyframe cannot be read or predicted; they are listed at the end, with exit code 1 "
        "(workers always do)",
    )
    add_fleet_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Predict and print a table."""
    if args.checkpoint is not None:
        _refuse_absent(args.checkpoint)
    return run_fleet(args) if wants_fleet(args) else _run_alone(args)


def _refuse_absent(checkpoint: Path) -> None:
    from fusionocc_core.export.artefact import is_artefact

    if not (checkpoint.is_file() or is_artefact(checkpoint)):
        raise FileNotFoundError(f"--checkpoint {checkpoint}: no such file")


def _run_alone(args: argparse.Namespace) -> int:
    """In this process, one keyframe after the other."""
    from rich.console import Console

    from fusionocc_core.data.nuscenes import NuScenesFrames
    from fusionocc_core.predictor import Predictor
    from fusionocc_core.structures import UNTRAINED

    frames = NuScenesFrames(args.data[0], version=args.version, scenes=args.scene, cameras=args.cameras)
    model = make_seeded_model(args.preset, args.checkpoint)
    frames = fitted(frames, model)
    predictor = Predictor(model, device=args.device, confidence=True)
    claim_folder(args.out, settings_of(args, frames), overwrite=args.overwrite)
    console = Console()
    if model.card.trained_on == UNTRAINED:
        console.print(f"{UNTRAINED}: without --checkpoint the labels mean nothing yet", style="bold red")
    summary = predict_frames(
        frames,
        predictor,
        args.out,
        blank=blank_occupancy(model),
        pictures=not args.no_pictures,
        overwrite=args.overwrite,
        skip_bad=args.skip_bad,
    )
    console.print(summary.render())
    for reason in summary.skipped:
        console.print(f"skipped {reason}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"voxels and pictures: {args.out.resolve()}", highlight=False, soft_wrap=True)
    return SKIPPED if summary.skipped else 0


def make_model(preset: str | None, checkpoint: Path | None) -> OccupancyModel:
    """The network of a preset, of a file of ours, or of a preset with the weights of a file; or an exported one."""
    from fusionocc_core.export.artefact import is_artefact
    from fusionocc_core.export.model import load_exported
    from fusionocc_core.presets import load_model

    if checkpoint is not None and is_artefact(checkpoint):
        if preset is not None:
            raise ValueError(f"--preset {preset}: leave it out; the exported network in {checkpoint} says what it is")
        return load_exported(checkpoint)
    if preset is None and checkpoint is not None:
        return load_model(checkpoint)
    return load_model(preset or DEFAULT_PRESET, checkpoint=checkpoint)


def make_seeded_model(preset: str | None, checkpoint: Path | None) -> OccupancyModel:
    """As ``make_model``; fresh weights are the same in every process."""
    import torch

    from fusionocc_core.presets import FRESH_SEED

    torch.manual_seed(FRESH_SEED)
    return make_model(preset, checkpoint)


def fitted(frames: NuScenesFrames, model: OccupancyModel) -> NuScenesFrames:
    """The same keyframes with the history that a network wants.

    Raises:
        ValueError: it takes fewer cameras, or was exported for another number of them.
    """
    from fusionocc_core.data.remembered import history_of
    from fusionocc_core.export.model import ExportedModel

    if isinstance(model, ExportedModel):
        model.check_rig(len(frames.cameras))
    inputs = model.config.inputs
    refuse_too_many_cameras(frames.cameras, inputs.num_cameras)
    history = history_of(inputs)
    return frames.with_history(cameras=history.cameras, lidar=history.lidar)


def refuse_too_many_cameras(cameras: Sequence[str], most: int) -> None:
    """Check that a network takes so many cameras.

    Raises:
        ValueError: it takes fewer.
    """
    if len(cameras) > most:
        raise ValueError(
            f"the data set has {len(cameras)} cameras ({', '.join(cameras)}), the network takes at most {most}; "
            "choose some with --cameras NAME ..."
        )


def blank_occupancy(model: OccupancyModel) -> Occupancy:
    """An empty answer of a network: its grid, label set and origin, for volumes that are read back from disk."""
    import numpy as np

    from fusionocc_core.structures import Occupancy

    grid, label_set = model.config.grid, model.config.label_set
    return Occupancy(
        labels=np.full(grid.shape, label_set.free, np.uint8),
        grid=grid,
        label_set=label_set,
        stamp_ns=0,
        model=model.card.preset,
        trained_on=model.card.trained_on,
    )


def predict_frames(
    frames: NuScenesFrames,
    predictor: Callable[[SensorFrame], Occupancy],
    out: Path,
    *,
    blank: Occupancy,
    pictures: bool = True,
    overwrite: bool = False,
    skip_bad: bool = False,
) -> Summary:
    """Predict every frame that has no result in ``out`` yet, with a progress bar, and count all of them.

    Args:
        frames: The keyframes.
        predictor: SensorFrame -> Occupancy with confidence.
        out: Where results go, see viz.export.
        blank: See ``blank_occupancy``.
        pictures: Write an overview of each frame.
        overwrite: Predict frames that have results as well.
        skip_bad: Note a frame that cannot be read or predicted in Summary.skipped, and go on.

    Raises:
        FileNotFoundError, ValueError: without ``skip_bad``: a file is missing or damaged, or the network refuses.
    """
    from rich.console import Console
    from rich.progress import track

    from fusionocc_core.viz.export import result_paths, write_result
    from fusionocc_core.viz.summary import Summary

    summary = Summary(frames_in=len(frames))
    console = Console(stderr=True)
    indices = range(len(frames))
    for index in track(indices, "predicting", console=console, transient=True, disable=not console.is_terminal):
        paths = result_paths(out, frames.keyframe(index).scene, frames.stamp_ns(index))
        if not overwrite and paths.complete(pictures=pictures):
            summary.add(_read_back(paths, blank), earlier=True)
            continue
        try:
            frame = frames[index]
            occupancy = predictor(frame)
        except (ValueError, FileNotFoundError) as error:
            if not skip_bad:
                raise
            summary.skipped.append(f"{frames.keyframe(index).scene} {frames.stamp_ns(index)}: {error}")
            continue
        write_result(out, frame, occupancy, pictures=pictures)
        summary.add(occupancy, None if occupancy.timings is None else occupancy.timings.total_s)
    return summary


def _read_back(paths: ResultPaths, blank: Occupancy) -> Occupancy:
    import numpy as np

    with np.load(paths.volume) as volume:
        return replace(blank, labels=volume["labels"])


def settings_of(args: argparse.Namespace, frames: NuScenesFrames) -> dict[str, Any]:
    """What decides the results, in words that fit into a file."""
    settings = {
        "data": str(frames.root.resolve()),
        "version": frames.version,
        "tables": _state_of_tables(frames.root / frames.version),
        "cameras": list(frames.cameras),
        "preset": args.preset or (None if args.checkpoint else DEFAULT_PRESET),
        "checkpoint": None,
    }
    if args.checkpoint is not None:
        status = args.checkpoint.stat()
        settings["checkpoint"] = [str(args.checkpoint.resolve()), status.st_size, status.st_mtime_ns]
    return settings


def _state_of_tables(folder: Path) -> str:
    """Size and time of the last change: new pictures or corrected poses come with new tables."""
    found = [path.stat() for path in folder.glob("*.json")]
    changed = datetime.fromtimestamp(max(status.st_mtime for status in found), timezone.utc)
    return f"{sum(status.st_size for status in found)} bytes of {changed.isoformat(sep=' ')}"


def claim_folder(out: Path, settings: dict[str, Any], *, overwrite: bool) -> None:
    """Note in the output folder what its results are made with.

    A note without results, as a run leaves that failed early, counts for nothing.

    Args:
        out: the folder.
        settings: what decides the results.
        overwrite: take away results that were made with something else, before the note changes: were they replaced one
            by one, an interrupted run would leave those of two networks side by side.

    Raises:
        ValueError: it holds results that were made with something else.
    """
    from fusionocc_core.viz.export import make_output_folder, remove_results, results_in

    note = out / SETTINGS
    scenes = {path.parent for path in results_in(out)}
    if scenes and (changed := _changes(note, settings)):
        if not overwrite:
            raise ValueError(f"{out} holds results of another run ({changed}); choose another --out, or --overwrite")
        for scene in scenes:
            remove_results(scene)
    make_output_folder(out)
    unfinished = note.with_name(f".{note.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(settings, indent=2) + "\n")
    unfinished.replace(note)


def _changes(note: Path, settings: dict[str, Any]) -> str:
    """What differs between a note and the settings, in words; "" for nothing."""
    if not note.is_file():
        return f"there is no {note.name} that says of which"
    try:
        earlier = json.loads(note.read_text())
    except ValueError as error:
        return f"{note.name} is damaged: {error}"
    return "; ".join(
        f"{key} was {earlier.get(key)}, is {new}" for key, new in settings.items() if earlier.get(key) != new
    )
