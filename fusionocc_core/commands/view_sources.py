"""What `fusionocc view` and `fusionocc video` look at: a data set or a folder of predictions.

Bags and live topics come from packages that add them through the entry points ``fusionocc.view_sources``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fusionocc_core.data.nuscenes import NuScenesFrames
    from fusionocc_core.metrics import OccupancyTruth
    from fusionocc_core.predictor import OccupancyModel
    from fusionocc_core.structures import Occupancy
    from fusionocc_core.viz.view_frame import ViewFrame, ViewSource

EXPECTED = (
    "expected a data set in nuScenes format (a folder with samples/ and v1.0-*/), a folder that `fusionocc predict` or "
    "`fusionocc demo` wrote, a rosbag2 (a folder with metadata.yaml, an .mcap or a .db3 file), or ros for live topics"
)

GROUP = "fusionocc.view_sources"
"""Entry points of other packages' kinds of sources; each is a SourceOpener."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What the command line says about the source."""

    source: str
    data: Path | None = None
    version: str | None = None
    scenes: tuple[str, ...] | None = None
    cameras: tuple[str, ...] | None = None
    start: int = 0
    """Frames to leave out at the beginning."""
    limit: int | None = None
    """Most frames after that; None: all."""
    params: Path | None = None
    camera_history: int = 0
    """Earlier keyframes that the network wants, where one predicts as it goes."""
    lidar_history: int = 0


class SourceOpener(Protocol):
    """A kind of source that another package knows."""

    def accepts(self, source: str) -> bool:
        """Whether SOURCE looks like one of this kind."""

    def open(self, options: SourceOptions) -> ViewSource:
        """Open it, or say in an error what is wrong."""


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """What says which moments are shown, the same for every command."""
    parser.add_argument("source", metavar="SOURCE", help=EXPECTED.removeprefix("expected "))
    parser.add_argument("--data", type=Path, metavar="ROOT", help="data set behind a folder of predictions")
    parser.add_argument("--version", help="folder of tables, such as v1.0-mini; not needed where there is only one")
    parser.add_argument("--scene", action="append", metavar="NAME", help="only this scene; may be given several times")
    parser.add_argument("--cameras", nargs="+", metavar="NAME", help="only these cameras, such as CAM_FRONT")
    parser.add_argument("--start", type=int, default=0, metavar="N", help="leave out the first N frames")
    parser.add_argument("--limit", type=int, metavar="N", help="only N frames")
    parser.add_argument("--preset", help="predict with this network as it goes, see `fusionocc presets`")
    parser.add_argument("--checkpoint", type=Path, help="predict with these weights as it goes")
    parser.add_argument("--device", default="auto", help="of that network: auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--render", action="store_true", help="also show the prediction from each camera: its depth and classes"
    )
    parser.add_argument(
        "--render-width", type=int, default=120, metavar="N", help="for --render: rays across (default: %(default)s)"
    )
    parser.add_argument(
        "--palette",
        help="colours of the classes: fusionocc (default), flashocc, surroundocc, gaussianformer, nuscenes, "
        "semantickitti, colorblind",
    )
    parser.add_argument(
        "--params", type=Path, metavar="FILE", help="the node's parameters (.yaml), for bags and topics"
    )


def open_source(args: argparse.Namespace) -> ViewSource:
    """The source that the arguments name.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: what is there is none of the kinds of sources, or options do not go with it.
        ModuleNotFoundError: a package that the kind of source needs is not installed.
    """
    _check(args)
    model = _model(args)
    inputs = model.config.inputs if model is not None else None
    from fusionocc_core.data.remembered import history_of

    history = history_of(inputs) if inputs else None
    options = SourceOptions(
        source=args.source,
        data=args.data,
        version=args.version,
        scenes=None if args.scene is None else tuple(args.scene),
        cameras=None if args.cameras is None else tuple(args.cameras),
        start=args.start,
        limit=args.limit,
        params=args.params,
        camera_history=history.cameras if history else 0,
        lidar_history=history.lidar if history else 0,
    )
    source = open_kind(options)
    width = args.render_width if args.render else None
    if model is None and width is None:
        return source
    from fusionocc_core.commands.view_predicting import PredictingSource, RenderingSource

    if model is not None:
        return PredictingSource(source, model, args.device, render_width=width)
    return RenderingSource(source, args.render_width)


def _check(args: argparse.Namespace) -> None:
    from fusionocc_core.viz.palettes import PALETTES

    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit {args.limit}: expected at least 1 frame")
    if args.start < 0:
        raise ValueError(f"--start {args.start}: expected 0 or more frames to leave out")
    if args.render_width < 2:
        raise ValueError(f"--render-width {args.render_width}: expected at least 2 rays across a picture")
    if args.palette is not None and args.palette not in PALETTES:
        raise ValueError(f"--palette {args.palette}: expected one of {', '.join(PALETTES)}")


def _model(args: argparse.Namespace) -> OccupancyModel | None:
    from fusionocc_core.commands.predict import make_model

    if args.preset is None and args.checkpoint is None:
        return None
    return make_model(args.preset, args.checkpoint)


def open_kind(options: SourceOptions) -> ViewSource:
    """The source of whichever kind it is.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: as ``open_source``.
    """
    for entry_point in entry_points(group=GROUP):
        opener: SourceOpener = entry_point.load()
        if opener.accepts(options.source):
            return opener.open(options)
    path = Path(options.source)
    if not path.exists():
        raise FileNotFoundError(f"{options.source}: no such file or folder; {EXPECTED}")
    if path.is_dir() and any(path.glob("*/sample_data.json")):
        return DataSetSource(options, path)
    if path.is_dir() and volumes_in(path):
        return PredictionsSource(options, path)
    raise ValueError(f"{path}: cannot be shown; {EXPECTED}")


class DataSetSource:
    """Keyframes of a data set, with boxes, and labels where it has them.

    Raises:
        FileNotFoundError, ValueError: as NuScenesFrames.
    """

    def __init__(self, options: SourceOptions, root: Path) -> None:
        from fusionocc_core.data.nuscenes import NuScenesFrames

        frames = NuScenesFrames(root, version=options.version, scenes=options.scenes, cameras=options.cameras)
        self._frames = frames.with_history(cameras=options.camera_history, lidar=options.lidar_history)
        self.name = root.resolve().name
        self._indices = chosen_range(len(frames), options)
        self.total = len(self._indices)

    def __iter__(self) -> Iterator[ViewFrame]:
        """Read frame after frame."""
        for index in self._indices:
            yield sensor_view(self._frames, index)


class PredictionsSource:
    """Volumes that `fusionocc predict` or `fusionocc demo` wrote, beside the data that they were made from.

    Raises:
        FileNotFoundError: the data set that the results name is not there any more.
        ValueError: no volume is left to show, or the chosen scene has none.
    """

    def __init__(self, options: SourceOptions, folder: Path) -> None:
        paths = [p for p in volumes_in(folder) if options.scenes is None or p.parent.name in options.scenes]
        if not paths:
            raise ValueError(f"{folder}: no volume of scene {', '.join(options.scenes or ())}")
        chosen = chosen_range(len(paths), options)
        self._paths = [paths[k] for k in chosen]
        self._note = _read_note(folder)
        self._frames = self._open_data(options)
        self._at = {}
        if self._frames is not None:
            frames = self._frames
            self._at = {(frames.keyframe(i).scene, frames.stamp_ns(i)): i for i in range(len(frames))}
        self.name = folder.resolve().name
        self.total = len(self._paths)

    def __iter__(self) -> Iterator[ViewFrame]:
        """Read volume after volume, with the sensors of its moment where they are known."""
        for path in self._paths:
            scene, stamp_ns = path.parent.name, int(path.stem)
            occupancy = self._read(path, stamp_ns)
            index = self._at.get((scene, stamp_ns))
            if index is None or self._frames is None:
                import numpy as np

                from fusionocc_core.viz.view_frame import ViewFrame

                yield ViewFrame(stamp_ns=stamp_ns, ego2global=np.eye(4), scene=scene, prediction=occupancy)
            else:
                yield replace(sensor_view(self._frames, index), prediction=occupancy)

    def _read(self, path: Path, stamp_ns: int) -> Occupancy:
        """A volume, and the Gaussians beside it where there are some."""
        from fusionocc_core.viz.export import read_volume
        from fusionocc_core.viz.gaussian_files import read_ply

        occupancy = read_volume(path, stamp_ns=stamp_ns)
        ellipsoids = path.with_suffix(".ply")
        cloud = read_ply(ellipsoids) if ellipsoids.is_file() else None
        if cloud is not None and (cloud.labels_G >= occupancy.label_set.num).any():
            raise ValueError(f"{ellipsoids}: class {cloud.labels_G.max()} is none of {occupancy.label_set.name!r}")
        return replace(occupancy, gaussians=cloud, model=str(self._note.get("preset") or ""))

    def _open_data(self, options: SourceOptions) -> NuScenesFrames | None:
        from fusionocc_core.data.nuscenes import NuScenesFrames

        root = options.data or (Path(self._note["data"]) if self._note.get("data") else None)
        if root is None:
            return None
        if not root.is_dir():
            raise FileNotFoundError(
                f"{root}: the data set that the results were made from is not there; say where it is with --data ROOT"
            )
        version = options.version or (None if options.data else self._note.get("version"))
        return NuScenesFrames(root, version=version, scenes=options.scenes, cameras=options.cameras)


def chosen_range(count: int, options: SourceOptions) -> range:
    """Which of so many frames are shown.

    Raises:
        ValueError: none.
    """
    if options.start >= count:
        raise ValueError(f"--start {options.start}: there are only {count} frames in {options.source}")
    return range(options.start, min(count, options.start + (options.limit or count)))


def sensor_view(frames: NuScenesFrames, index: int) -> ViewFrame:
    """Sensors, boxes and truth of a keyframe."""
    from fusionocc_core.viz.view_frame import ViewFrame

    frame = frames[index]
    return ViewFrame(
        stamp_ns=frame.stamp_ns,
        ego2global=frame.ego2global,
        scene=frame.scene,
        sensors=frame,
        truth=_truth(frames, index),
        boxes=tuple(frames.boxes(index)),
    )


def _truth(frames: NuScenesFrames, index: int) -> OccupancyTruth | None:
    """The Occ3D labels; None where the data set has none for this keyframe."""
    from fusionocc_core.data.occ3d import occ3d_path, read_occ3d

    keyframe = frames.keyframe(index)
    path = occ3d_path(frames.root, keyframe.scene, keyframe.token)
    return read_occ3d(path) if path.is_file() else None


def volumes_in(folder: Path) -> list[Path]:
    """The volumes in a folder of results, scene after scene, in the order of time."""
    found = [path for path in folder.glob("*/*.npz") if path.stem.isdecimal()]
    return sorted(found, key=lambda path: (path.parent.name, int(path.stem)))


def _read_note(folder: Path) -> dict[str, str]:
    """What `fusionocc predict` noted about its results; empty where there is no note."""
    from fusionocc_core.commands.predict import SETTINGS

    path = folder / SETTINGS
    if not path.is_file():
        return {}
    try:
        note = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path}: damaged ({error}); remove it and say which data they belong to with --data"
        ) from error
    return dict(note)
