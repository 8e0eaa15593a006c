"""`fusionocc render`: what a network sees, as pictures of depth and classes from any camera."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fusionocc_core import DEFAULT_PRESET

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

    from fusionocc_core.data.nuscenes import NuScenesFrames
    from fusionocc_core.engine.rendered_views import DepthErrors
    from fusionocc_core.models.network import NetworkConfig, OccupancyNetwork
    from fusionocc_core.structures import CameraImage, Outputs, SensorFrame
    from fusionocc_core.viz.rendered import RenderedView

PANEL = 480
"""Pixels that each picture is wide in the file."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "render",
        help="depth and classes as a network sees them, from any camera",
        description="Render what a network predicts for keyframes of a data set: a PNG for each camera with the "
        "photograph, depth and classes, or one from any other pose. Depth is held against the LiDAR.",
    )
    parser.add_argument("--data", type=Path, required=True, help="the data set: the folder with samples/ and v1.0-*/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--preset", help=f"network, see `fusionocc presets` (default: {DEFAULT_PRESET})")
    parser.add_argument(
        "--checkpoint", type=Path, help="weights: a file, official (with --preset) or ours, or the folder of a run"
    )
    parser.add_argument("--version", help="folder of tables, such as v1.0-mini; not needed where there is only one")
    parser.add_argument("--split", help="only the scenes of this split, such as sim_val")
    parser.add_argument("--scene", action="append", metavar="NAME", help="only this scene; may be given several times")
    parser.add_argument("--keyframe", type=int, action="append", metavar="N", help="its number, from 0 (default: 0)")
    parser.add_argument("--every", type=int, metavar="N", help="every Nth keyframe instead")
    parser.add_argument("--cameras", nargs="+", metavar="NAME", help="render these (default: all of the data set)")
    parser.add_argument(
        "--pose",
        type=float,
        nargs=5,
        metavar=("X", "Y", "Z", "YAW", "PITCH"),
        help="render from here instead: metres in the ego frame, degrees to the left and downwards",
    )
    parser.add_argument("--fov", type=float, default=90.0, help="of --pose: horizontal, degrees (default: %(default)s)")
    parser.add_argument("--width", type=int, default=200, help="rays across a picture (default: %(default)s)")
    parser.add_argument(
        "--answer",
        action="store_true",
        help="render the labels that the network decides for, as solid as they are, and not its own density "
        "(networks that were not trained by rendering leave some of it in every free voxel; those without density are "
        "always rendered so)",
    )
    parser.add_argument("--no-pictures", action="store_true", help="only hold depth against the LiDAR")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Predict, render, write, compare."""
    import torch
    from rich.console import Console

    from fusionocc_core.data.nuscenes import NuScenesFrames
    from fusionocc_core.data.pipeline import key2global, prepare
    from fusionocc_core.data.remembered import history_of
    from fusionocc_core.predictor import pick_device

    if args.width < 1 or (args.every is not None and args.every < 1):
        raise ValueError(f"--width {args.width} and --every {args.every}: expected 1 or more")
    device, console = pick_device(args.device), Console()
    network = _network(args).to(device).eval()
    config: NetworkConfig = network.config
    history = history_of(config.inputs)
    frames = NuScenesFrames(
        args.data,
        version=args.version,
        split=args.split,
        scenes=args.scene,
        camera_history=history.cameras,
        lidar_history=history.lidar,
    )
    errors: dict[str, list[DepthErrors]] = {}
    for index in _keyframes(args, len(frames)):
        frame = frames[index]
        with torch.no_grad():
            outputs = network(prepare(frame, config.inputs, config.grid).to(device))
        outputs = replace(outputs, density=None) if args.answer else outputs
        keyego2global = key2global(frame, config.inputs)
        if args.pose:
            _render_pose(args, outputs, config, frame, keyego2global)
        else:
            _render_cameras(args, outputs, config, frame, keyego2global, errors)
    if errors:
        _tell(errors, frames, network, console)
    if not args.no_pictures:
        console.print(f"pictures: {args.out.resolve()}", highlight=False, soft_wrap=True)
    return 0


def _network(args: argparse.Namespace) -> OccupancyNetwork:
    from fusionocc_core.engine.weights import load_weights
    from fusionocc_core.presets import load_model

    if args.checkpoint is None:
        return load_model(args.preset)
    return load_weights(args.checkpoint, preset=args.preset)


def _keyframes(args: argparse.Namespace, count: int) -> list[int]:
    if args.every:
        return list(range(0, count, args.every))
    chosen = args.keyframe or [0]
    if any(not 0 <= index < count for index in chosen):
        raise ValueError(f"--keyframe {chosen}: the data set has keyframes 0 to {count - 1} in the chosen scenes")
    return list(chosen)


def _render_pose(
    args: argparse.Namespace,
    outputs: Outputs,
    config: NetworkConfig,
    frame: SensorFrame,
    keyego2global: NDArray[np.float64],
) -> None:
    from fusionocc_core.engine.rendered_views import render_view, view_camera

    x, y, z, yaw, pitch = args.pose
    camera = view_camera(
        keyego2global,
        position=(x, y, z),
        yaw_degrees=yaw,
        pitch_degrees=pitch,
        field_of_view=args.fov,
        image_size=(round(args.width * 9 / 16), args.width),
    )
    view = render_view(outputs, config, camera, keyego2global, width=args.width)
    _write(args.out, f"{frame.scene}_{frame.stamp_ns}_pose.png", view, config, None)


def _render_cameras(
    args: argparse.Namespace,
    outputs: Outputs,
    config: NetworkConfig,
    frame: SensorFrame,
    keyego2global: NDArray[np.float64],
    errors: dict[str, list[DepthErrors]],
) -> None:
    from fusionocc_core.engine.rendered_views import depth_errors, ray_camera, render_view

    known = {camera.name: camera for camera in frame.cameras}
    unknown = [name for name in args.cameras or () if name not in known]
    if unknown:
        raise ValueError(f"--cameras {' '.join(unknown)}: keyframe {frame.token} has {', '.join(known)}")
    for name in args.cameras or known:
        camera = ray_camera(known[name])
        if frame.lidar is not None:
            found = depth_errors(outputs, config, camera, frame.lidar, keyego2global)
            errors.setdefault(name, []).append(found)
        if not args.no_pictures:
            view = render_view(outputs, config, camera, keyego2global, width=args.width)
            _write(args.out, f"{frame.scene}_{frame.stamp_ns}_{name}.png", view, config, known[name])


def _write(folder: Path, name: str, view: RenderedView, config: NetworkConfig, camera: CameraImage | None) -> None:
    from PIL import Image

    from fusionocc_core.viz.rendered import class_picture, depth_picture, side_by_side

    parts = [("picture", camera.image)] if camera else []
    parts += [
        ("distance, 1 m red to 60 m blue", depth_picture(view.distance_HW)),
        ("classes", class_picture(view.labels_HW, config.label_set)),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(side_by_side(parts, width=PANEL)).save(folder / name)


def _tell(
    errors: dict[str, list[DepthErrors]], frames: NuScenesFrames, network: OccupancyNetwork, console: Console
) -> None:
    import numpy as np
    from rich.table import Table

    from fusionocc_core.engine.rendered_views import DepthErrors

    table = Table("camera", title="rendered distance less that of LiDAR points on the grid, metres")
    for column in ("rays", "see nothing", "median absolute", "median", "absolute below one voxel"):
        table.add_column(column, justify="right")
    edge = network.config.grid.voxel_size[0]
    rows = {**errors, "all": [one for some in errors.values() for one in some]}
    for name, parts in rows.items():
        both = DepthErrors(error_R=np.concatenate([p.error_R for p in parts]), blind=sum(p.blind for p in parts))
        rays, found = len(both.error_R) + both.blind, both.error_R
        if not rays:
            table.add_row(name, "0", "-", "-", "-", "-")
            continue
        below = (np.abs(found) < edge).sum() / rays
        middle = f"{np.median(found):+.2f}" if len(found) else "-"
        table.add_row(
            name, str(rays), f"{both.blind / rays:.1%}", f"{both.median_absolute:.2f}", middle, f"{below:.1%}"
        )
    console.print(table)
    seen = f"{network.card.preset or 'network'}, {network.card.trained_on}; {frames.version}"
    console.print(seen, highlight=False, soft_wrap=True)
