"""Writes moments to rerun: what is looked at in its viewer, in a browser, or later from a file.

Entities, all metric, in the frame "world" (axes of the map, origin where the vehicle was first seen):

    world/ego                          the vehicle; boxes, path and everything below are children
    world/ego/lidar                    the cloud, by distance; also projected into each camera view
    world/ego/prediction/<class>       visible voxels, one entity a class, so that classes can be switched off
    world/ego/truth/<class>, world/ego/difference/<class>
    world/ego/boxes, world/ego/gaussians
    world/path                         where the vehicle was so far
    world/cameras/<name>               pinhole and picture at the picture's own moment
    rendered/<name>/depth, rendered/<name>/classes    what the answer looks like from that camera
    latency/<step>                     milliseconds
    notes                              what is not as it should be

Time lines: "stamp" (sensor time) and "frame" (a count). Only what changed is sent: a class whose visible voxels are the
same as in the frame before costs nothing. What a frame does not have any more is cleared, since it would look current.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.nuscenes_tables import Box
from fusionocc_core.gaussians import GaussianCloud
from fusionocc_core.geometry import quaternion_wxyz_from_rotation
from fusionocc_core.structures import CameraImage, LidarSweep, Occupancy
from fusionocc_core.viz.difference import truth_as_occupancy
from fusionocc_core.viz.overlay import distance_colors
from fusionocc_core.viz.palettes import recolored
from fusionocc_core.viz.rendered import RenderedView, class_picture, depth_picture
from fusionocc_core.viz.surface import surface_voxels
from fusionocc_core.viz.view_frame import ViewFrame
from fusionocc_core.viz.volume import palette as color_table

INSTALL = 'pip install "rerun-sdk==0.23.1" "pyarrow<21" (or the extra: pip install "fusionocc_ros[view]")'

APPLICATION = "fusionocc"

PICTURE_WIDTH = 800
"""Of the cameras' pictures in the viewer, pixels; larger ones are reduced."""

JPEG_QUALITY = 80

POINT_SIZE = 1.3
"""Of the cloud's points on the screen, whatever their distance."""

REACH = 60.0
"""Points and boxes further away are left out, metres: the viewer zooms out until it sees everything."""

VOLUMES = ("prediction", "truth", "difference")
GAUSSIANS = "gaussians"

_Drawn = dict[int, NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What there is to see, in the order of the views."""

    cameras: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    """Of VOLUMES, or "gaussians"."""
    rendered: bool = False
    latencies: bool = False
    notes: bool = False

    def __or__(self, other: Contents) -> Contents:
        """What is in one of them."""
        return Contents(
            cameras=tuple(dict.fromkeys((*self.cameras, *other.cameras))),
            volumes=tuple(n for n in (*VOLUMES, GAUSSIANS) if n in (*self.volumes, *other.volumes)),
            rendered=self.rendered or other.rendered,
            latencies=self.latencies or other.latencies,
            notes=self.notes or other.notes,
        )


def require_rerun() -> Any:
    """The module rerun.

    Raises:
        ModuleNotFoundError: it is not installed, or its pyarrow does not fit NumPy.
    """
    try:
        import rerun
    except ImportError as error:
        raise ModuleNotFoundError(f"`fusionocc view` needs rerun ({error}): {INSTALL}", name="rerun") from error
    return rerun


class RerunLog:
    """Logs frames to a recording.

    Args:
        recording: a rerun RecordingStream that is connected to something, or will be.
        palette: name of the classes' colours; None takes those of the label sets.
    """

    def __init__(self, recording: Any, *, palette: str | None = None) -> None:
        self._rr = require_rerun()
        self._recording = recording
        self._palette = palette
        self._drawn: dict[str, _Drawn] = {name: {} for name in VOLUMES}
        self._contents = Contents()
        self._before: set[str] = set()
        self._now: set[str] = set()
        self._path: list[NDArray[np.float64]] = []
        self._origin: NDArray[np.float64] | None = None
        self._scene = ""
        self.count = 0
        """Frames that were logged."""

    def add(self, frame: ViewFrame) -> None:
        """Log one moment.

        Raises:
            ValueError: the palette has no colour for a class.
        """
        if frame.scene != self._scene:
            self._scene, self._path = frame.scene, []
        if self._origin is None:
            self._origin = frame.ego2global[:3, 3].copy()
        self._before, self._now = self._now, set()
        self._recording.set_time("frame", sequence=self.count)
        self._recording.set_time("stamp", timestamp=np.datetime64(frame.stamp_ns, "ns"))
        self._log_pose("world/ego", frame.ego2global)
        self._log_path(frame)
        if frame.sensors is not None:
            for camera in frame.sensors.cameras:
                self._log_camera(camera)
            if frame.sensors.lidar is not None:
                self._log_lidar(frame.sensors.lidar)
        self._log_volumes(frame)
        if near := [box for box in frame.boxes if np.linalg.norm(box.center) <= REACH]:
            self._log_boxes(near)
        if frame.prediction is not None:
            if frame.prediction.gaussians is not None:
                self._log_gaussians(frame.prediction, frame.prediction.gaussians)
            for name, view in frame.rendered.items():
                self._log_rendered(name, view, frame.prediction)
        for note in frame.notes:
            self._recording.log("notes", self._rr.TextLog(note, level="WARN"))
        for step, seconds in frame.latencies_s.items():
            self._recording.log(f"latency/{step}", self._rr.Scalars(seconds * 1e3))
        for entity in sorted(self._before - self._now):
            self._recording.log(entity, self._rr.Clear(recursive=False))
        self._send_layout(frame)
        self.count += 1

    def _put(self, entity: str, shown: Any) -> None:
        """Log what is cleared when the next frame has it no more."""
        self._now.add(entity)
        self._recording.log(entity, shown)

    def remove_volume(self, name: str) -> None:
        """Clear a volume under the current time."""
        if self._drawn[name]:
            self._recording.log(f"world/ego/{name}", self._rr.Clear(recursive=True))
            self._drawn[name] = {}

    def add_volume(self, name: str, occupancy: Occupancy) -> int:
        """Log the visible voxels of one volume under the current time; returns how many voxels were sent.

        Args:
            name: of VOLUMES.
            occupancy: the volume.
        """
        surface = surface_voxels(occupancy)
        grid, label_set = occupancy.grid, occupancy.label_set
        drawn, sent = self._drawn[name], 0
        now: _Drawn = {label: surface.of_class(label) for label in surface.classes()}
        half = np.asarray(grid.voxel_size, np.float32)[None] / 2
        for label, index_M in now.items():
            if label in drawn and np.array_equal(drawn[label], index_M):
                continue
            centers = grid.centers(surface.cells(index_M)).astype(np.float32)
            color = label_set.colors[label] if label < label_set.num else (128, 128, 128)
            boxes = self._rr.Boxes3D(centers=centers, half_sizes=half, colors=[color], fill_mode="solid")
            self._recording.log(self._entity(name, label, occupancy), boxes)
            sent += len(index_M)
        for label in set(drawn) - set(now):
            self._recording.log(self._entity(name, label, occupancy), self._rr.Clear(recursive=False))
        self._drawn[name] = now
        return sent

    def _entity(self, name: str, label: int, occupancy: Occupancy) -> str:
        names = occupancy.label_set.names
        return f"world/ego/{name}/{names[label] if label < len(names) else f'label_{label}'}"

    def _log_pose(self, entity: str, child2global: NDArray[np.float64]) -> None:
        translation = child2global[:3, 3] - (0 if self._origin is None else self._origin)
        self._recording.log(entity, self._rr.Transform3D(translation=translation, mat3x3=child2global[:3, :3]))

    def _log_path(self, frame: ViewFrame) -> None:
        assert self._origin is not None, "add sets it"
        self._path.append(frame.ego2global[:3, 3] - self._origin)
        strip = self._rr.LineStrips3D([np.asarray(self._path)], colors=[(255, 196, 0)], radii=[0.1])
        self._recording.log("world/path", strip)

    def _log_camera(self, camera: CameraImage) -> None:
        entity = f"world/cameras/{camera.name}"
        self._log_pose(entity, camera.ego2global @ camera.cam2ego)
        height, width = camera.image.shape[:2]
        scale = min(1.0, PICTURE_WIDTH / width)
        size = (round(width * scale), round(height * scale))
        picture = camera.image if scale == 1.0 else cv2.resize(camera.image, size, interpolation=cv2.INTER_AREA)
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        intrinsics = np.diag([size[0] / width, size[1] / height, 1.0]) @ camera.intrinsics
        # Small frusta: the pictures have views of their own.
        pinhole = self._rr.Pinhole(image_from_camera=intrinsics, resolution=size, image_plane_distance=0.8)
        self._recording.log(entity, pinhole)
        self._put(entity, self._rr.EncodedImage(contents=jpeg.tobytes(), media_type="image/jpeg"))

    def _log_lidar(self, lidar: LidarSweep) -> None:
        distance = np.linalg.norm(lidar.points[:, :3], axis=1)
        near = distance <= REACH
        points = lidar.points[near, :3].astype(np.float64) @ lidar.lidar2ego[:3, :3].T + lidar.lidar2ego[:3, 3]
        size = self._rr.Radius.ui_points(POINT_SIZE)
        cloud = self._rr.Points3D(points.astype(np.float32), colors=distance_colors(distance[near]), radii=size)
        self._put("world/ego/lidar", cloud)

    def _log_volumes(self, frame: ViewFrame) -> None:
        truth = None if frame.truth is None else truth_as_occupancy(frame.truth, frame.stamp_ns)
        lidar = frame.sensors.lidar if frame.sensors is not None else None
        for name, occupancy in zip(VOLUMES, (frame.prediction, truth, frame.compared()), strict=True):
            if occupancy is None:
                self.remove_volume(name)
                continue
            if occupancy.grid.frame == "lidar" and lidar is not None:
                transform = self._rr.Transform3D(translation=lidar.lidar2ego[:3, 3], mat3x3=lidar.lidar2ego[:3, :3])
                self._recording.log(f"world/ego/{name}", transform)
            self.add_volume(name, occupancy if name == "difference" else self._painted(occupancy))

    def _painted(self, occupancy: Occupancy) -> Occupancy:
        return occupancy if self._palette is None else recolored(occupancy, self._palette)

    def _log_boxes(self, boxes: Sequence[Box]) -> None:
        shown = self._rr.Boxes3D(
            centers=[box.center for box in boxes],
            half_sizes=[box.size_lwh / 2 for box in boxes],
            quaternions=[np.roll(quaternion_wxyz_from_rotation(box.rotation), -1) for box in boxes],
            colors=[(255, 214, 64)],
            labels=[box.name.split(".")[-1] for box in boxes],
            show_labels=False,
            radii=[0.03],
        )
        self._put("world/ego/boxes", shown)

    def _log_gaussians(self, prediction: Occupancy, cloud: GaussianCloud) -> None:
        colors = self._painted(prediction).label_set.colors
        shown = self._rr.Ellipsoids3D(
            centers=cloud.means_G3,
            half_sizes=cloud.scales_G3,
            quaternions=np.roll(cloud.rotations_G4, -1, axis=1),
            colors=color_table(colors).astype(np.uint8)[cloud.labels_G],
            fill_mode="solid",
        )
        self._put(f"world/ego/{GAUSSIANS}", shown)

    def _log_rendered(self, name: str, view: RenderedView, prediction: Occupancy) -> None:
        # Pictures, as in files: this rerun draws NaN as the farthest depth, and its table of class names wants NumPy 2.
        classes = class_picture(view.labels_HW, self._painted(prediction).label_set)
        self._put(f"rendered/{name}/depth", self._rr.Image(depth_picture(view.distance_HW)))
        self._put(f"rendered/{name}/classes", self._rr.Image(classes))

    def _send_layout(self, frame: ViewFrame) -> None:
        """The arrangement of views, anew where something is there for the first time."""
        contents = self._contents | contents_of(frame)
        if contents != self._contents or not self.count:
            self._contents = contents
            self._recording.send_blueprint(make_blueprint(contents), make_active=True)


def contents_of(frame: ViewFrame) -> Contents:
    """What a frame has to show."""
    prediction = frame.prediction
    there = {
        "prediction": prediction is not None,
        "truth": frame.truth is not None,
        "difference": frame.compared() is not None,
        GAUSSIANS: prediction is not None and prediction.gaussians is not None,
    }
    return Contents(
        cameras=tuple(camera.name for camera in frame.sensors.cameras) if frame.sensors else (),
        volumes=tuple(name for name, is_there in there.items() if is_there),
        rendered=bool(frame.rendered),
        latencies=bool(frame.latencies_s),
        notes=bool(frame.notes),
    )


def make_blueprint(contents: Contents) -> Any:
    """Cameras above, volumes side by side below them, latencies and notes at the foot; the rest is left out."""
    require_rerun()
    import rerun.blueprint as rrb

    rows: list[Any] = []
    weights: list[float] = []
    if contents.cameras:
        pictures = [_camera_view(name, rendered=contents.rendered) for name in contents.cameras]
        rows.append(rrb.Grid(*pictures, grid_columns=3) if len(pictures) > 3 else rrb.Horizontal(*pictures))
        weights.append(2.0)
    common = ["world/ego/lidar", "world/ego/boxes", "world/path"]
    scenes = [
        rrb.Spatial3DView(origin="world/ego", contents=[f"world/ego/{name}/**", *common], name=name)
        for name in (contents.volumes or ("lidar",))
    ]
    rows.append(rrb.Horizontal(*scenes))
    weights.append(2.5)
    foot: list[Any] = [rrb.TimeSeriesView(origin="latency", name="latency, ms")] if contents.latencies else []
    foot += [rrb.TextLogView(origin="notes", name="missing sensors")] if contents.notes else []
    if foot:
        rows.append(rrb.Horizontal(*foot))
        weights.append(0.7)
    return rrb.Blueprint(
        rrb.Vertical(*rows, row_shares=weights),
        rrb.TimePanel(state="collapsed"),
        rrb.SelectionPanel(state="collapsed"),
        rrb.BlueprintPanel(state="collapsed"),
    )


def _camera_view(name: str, *, rendered: bool) -> Any:
    """The picture with points and boxes; depth and classes of the answer beside it."""
    import rerun.blueprint as rrb

    picture = rrb.Spatial2DView(
        origin=f"world/cameras/{name}", contents=["$origin/**", "world/ego/lidar", "world/ego/boxes"], name=name
    )
    if not rendered:
        return picture
    sides = [rrb.Spatial2DView(origin=f"rendered/{name}/{what}", name=what) for what in ("depth", "classes")]
    return rrb.Horizontal(picture, rrb.Vertical(*sides), column_shares=[2, 1], name=name)
