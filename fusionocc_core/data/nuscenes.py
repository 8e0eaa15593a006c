"""Data sets in nuScenes format as a sequence of SensorFrames."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.files import REDUCTIONS, read_cloud, read_image
from fusionocc_core.data.index_cache import BoxIndex, Index, read_boxes, read_index, table_state, write_index
from fusionocc_core.data.nuscenes_tables import (
    Box,
    Keyframe,
    SensorRecord,
    Tables,
    find_version,
    scenes_of_split,
    shorten,
)
from fusionocc_core.data.threads import map_in_threads
from fusionocc_core.geometry import inverse
from fusionocc_core.structures import CameraImage, LidarSweep, SensorFrame

CAMERA_ORDER = (
    "CAM_FRONT_LEFT",
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK_LEFT",
    "CAM_BACK",
    "CAM_BACK_RIGHT",
)
"""The order of FusionOcc and the BEVDet family; checkpoints depend on which camera comes first."""

LIDAR_CHANNEL = "LIDAR_TOP"
"""The LiDAR of nuScenes, taken where a data set has several."""


class NuScenesFrames(Sequence[SensorFrame]):
    """The keyframes of a data set in nuScenes format, read when indexed.

    Scenes follow each other by their first stamp, keyframes within a scene by theirs. The reference time of a frame is
    its LiDAR sweep's stamp. Every picture and sweep carries the ego pose at its own stamp. History holds the preceding
    keyframes of the same scene, newest first; what would lie before the scene's start is absent.

    Where `fusionocc prepare` has written an index of the tables that is up to date, no table is read on opening.

    An object can be pickled and shared with DataLoader workers: it then carries paths and poses, not the tables.
    A slice is again a NuScenesFrames, over fewer keyframes of the same data.

    Args:
        root: the folder that holds samples/, maps/ and the folder of tables.
        version: name of the folder of tables, such as "v1.0-mini"; None takes the only one there is.
        split: keep the scenes of an official split ("train", "mini_val", ...) or of one in <version>/splits.json.
        scenes: keep these scenes; not together with ``split``.
        cameras: channels in the wanted order; None takes all cameras, those of CAMERA_ORDER first, the others sorted.
            Empty: frames with LiDAR only.
        lidar: channel of the LiDAR; None takes LIDAR_TOP, or the only one there is.
        camera_history: how many earlier keyframes of pictures a frame shall hold.
        lidar_history: how many earlier keyframes of clouds.
        reduce: decode pictures at 1/reduce of their size (1, 2, 4, 8), intrinsics to match: quicker where the network's
            picture is small anyway.
        threads: for decoding the pictures of one frame; None takes the number of cores, and one in worker processes.

    Raises:
        ModuleNotFoundError: nuscenes-devkit is not installed.
        FileNotFoundError: the folder, a table or a map picture is missing.
        ValueError: several versions, an unknown split, scene or channel, tables that do not fit together, or a camera
            without calibration.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        version: str | None = None,
        split: str | None = None,
        scenes: Iterable[str] | None = None,
        cameras: Sequence[str] | None = None,
        lidar: str | None = None,
        camera_history: int = 0,
        lidar_history: int = 0,
        reduce: int = 1,
        threads: int | None = None,
    ) -> None:
        _check_arguments(camera_history, lidar_history, reduce, threads)
        self.root = Path(root)
        self.version = find_version(self.root, version)
        self.camera_history, self.lidar_history = camera_history, lidar_history
        self.reduce, self.threads = reduce, threads
        self._table_state = table_state(self.root, self.version)
        index = read_index(self.root, self.version)
        self._tables = None if index else Tables(self.root, self.version)
        self._boxes: BoxIndex | None = None
        self.has_index = index is not None
        """Whether the index that `fusionocc prepare` writes was there and valid, so that no table was read."""
        source = index or self._open_tables()
        self.cameras = _choose_cameras(source, cameras)
        """Channels in the order of SensorFrame.cameras."""
        self.lidar = _choose_lidar(source, lidar)
        """Channel of the LiDAR, or None where the data set has none."""
        channels = {*self.cameras, *([self.lidar] if self.lidar else [])}
        chosen = _choose_scenes(source, self.root / self.version, split, scenes)
        self._keyframes = source.keyframes(chosen, channels)
        if not self._keyframes:
            raise ValueError(
                f"{self.root / self.version}: no keyframe in the chosen scenes; table sample is empty for them"
            )
        self._selection = range(len(self._keyframes))

    def __getstate__(self) -> dict[str, Any]:
        """Everything but tables and boxes, which are large and read again where they are needed."""
        return {**self.__dict__, "_tables": None, "_boxes": None}

    def __len__(self) -> int:
        return len(self._selection)

    @overload
    def __getitem__(self, index: int) -> SensorFrame: ...
    @overload
    def __getitem__(self, index: slice) -> NuScenesFrames: ...
    def __getitem__(self, index: int | slice) -> SensorFrame | NuScenesFrames:
        """Read the frame of a keyframe, or select keyframes by a slice.

        Raises:
            IndexError: beyond the end.
            FileNotFoundError: a picture or cloud is listed but absent.
            ValueError: a file is truncated, empty, or holds points that are not finite.
        """
        if isinstance(index, slice):
            part = copy.copy(self)
            part._selection = self._selection[index]
            return part
        return self._read(self._selection[index])

    @property
    def scenes(self) -> tuple[str, ...]:
        """Names of the scenes, in the order in which their keyframes follow each other."""
        return tuple(dict.fromkeys(self._keyframes[i].scene for i in self._selection))

    def scene_indices(self, scene: str) -> range:
        """Indices of the keyframes of a scene, for ``frames[i]``.

        Raises:
            ValueError: no such scene here.
        """
        found = [n for n, i in enumerate(self._selection) if self._keyframes[i].scene == scene]
        if not found:
            raise ValueError(f"scene={scene!r}: not here; there are {shorten(list(self.scenes))}")
        return range(found[0], found[-1] + 1)

    def with_history(self, *, cameras: int, lidar: int) -> NuScenesFrames:
        """The same keyframes with another number of earlier ones; the tables are not read again."""
        _check_arguments(cameras, lidar, self.reduce, self.threads)
        other = copy.copy(self)
        other.camera_history, other.lidar_history = cameras, lidar
        return other

    def with_keyframes(self, keyframes: Sequence[Keyframe]) -> NuScenesFrames:
        """Other moments of the same data, scene by scene in the order of time; see data/sweep_frames.py."""
        other = copy.copy(self)
        other._keyframes = list(keyframes)
        other._selection = range(len(other._keyframes))
        return other

    def keyframe(self, index: int) -> Keyframe:
        """Stamps, poses, calibration and paths of a keyframe, without reading pictures or clouds."""
        return self._keyframes[self._selection[index]]

    def stamp_ns(self, index: int) -> int:
        """The reference time of ``frames[index]``, without reading it."""
        return self._reference(self.keyframe(index)).stamp_ns

    def boxes(self, index: int, frame: str = "ego") -> list[Box]:
        """The annotated boxes of a keyframe.

        Args:
            index: as in ``frames[index]``.
            frame: "ego" (at the reference time), "global", or "lidar".

        Raises:
            ValueError: an unknown frame, or "lidar" where there is none.
        """
        keyframe = self.keyframe(index)
        reference = self._reference(keyframe)
        if frame == "global":
            global2frame = np.eye(4)
        elif frame == "ego":
            global2frame = inverse(reference.ego2global)
        elif frame == "lidar" and self.lidar in keyframe.records:
            global2frame = inverse(reference.ego2global @ reference.sensor2ego)
        else:
            raise ValueError(
                f'frame={frame!r}: expected "ego", "global", or "lidar" where the keyframe has a LiDAR sweep'
            )
        if self._tables is None and self._boxes is None:
            self._boxes = read_boxes(self.root, self.version)
        source = self._boxes or self._open_tables()
        return source.boxes(keyframe.token, np.asarray(global2frame))

    def sensor_records(self, scene: str, modalities: Sequence[str] = ("camera", "lidar")) -> Iterator[SensorRecord]:
        """Every file of a scene in the order of time: keyframes and the sweeps between them.

        Args:
            scene: one of ``scenes``.
            modalities: of "camera", "lidar", "radar"; of cameras and LiDARs only the chosen channels are listed.

        Raises:
            ValueError: no such scene here.
        """
        self.scene_indices(scene)
        tables = self._open_tables()
        chosen = {*self.cameras, self.lidar}
        channels = {c for c, m in tables.channels.items() if m in modalities and (m == "radar" or c in chosen)}
        return tables.sensor_records(scene, channels)

    def write_index(self) -> Path:
        """Write what opening takes out of the tables, of all scenes, to a file that makes it quick; see index_cache.

        Returns:
            The file.

        Raises:
            OSError: it cannot be written.
            ValueError: tables with a broken record, in whatever scene or channel.
        """
        return write_index(self._open_tables(), self._table_state)

    def _open_tables(self) -> Tables:
        if self._tables is None:
            self._tables = Tables(self.root, self.version)
        return self._tables

    def _reference(self, keyframe: Keyframe) -> SensorRecord:
        """The record that defines the reference time: the LiDAR's, or else the one nearest to the sample's stamp."""
        if self.lidar in keyframe.records:
            return keyframe.records[self.lidar]
        if not keyframe.records:
            raise ValueError(f"sample {keyframe.token} of {keyframe.scene}: no file of any chosen camera or LiDAR")
        return min(keyframe.records.values(), key=lambda record: abs(record.stamp_ns - keyframe.stamp_ns))

    def _earlier(self, index: int, count: int) -> list[Keyframe]:
        """Up to ``count`` preceding keyframes of the same scene, newest first."""
        present = min(count, self._keyframes[index].position)
        return [self._keyframes[index - k] for k in range(1, present + 1)]

    def _read(self, index: int) -> SensorFrame:
        keyframe = self._keyframes[index]
        reference = self._reference(keyframe)
        groups = [keyframe, *self._earlier(index, self.camera_history)]
        records = [[group.records[c] for c in self.cameras if c in group.records] for group in groups]
        flat = [record for group in records for record in group]
        pictures = iter(map_in_threads(lambda record: read_camera(record, reduce=self.reduce), flat, self.threads))
        cameras = [tuple(next(pictures) for _ in group) for group in records]
        sweeps = [k.records[self.lidar] for k in self._earlier(index, self.lidar_history) if self.lidar in k.records]
        return SensorFrame(
            stamp_ns=reference.stamp_ns,
            ego2global=reference.ego2global,
            cameras=cameras[0],
            lidar=read_sweep(reference) if reference.modality == "lidar" else None,
            camera_history=tuple(cameras[1:]),
            lidar_history=tuple(read_sweep(record) for record in sweeps),
            token=keyframe.token,
            scene=keyframe.scene,
        )


def read_camera(record: SensorRecord, *, reduce: int = 1) -> CameraImage:
    """Read the picture of a camera's record.

    Raises:
        FileNotFoundError: it is absent.
        ValueError: it is truncated, not a picture, or of another size than the tables (and so the intrinsics) say.
    """
    what = f"{record.channel} picture (sample_data {record.token})"
    image = read_image(record.path, reduce=reduce, what=what)
    height, width = image.shape[:2]
    if record.width and not (_is_reduced(width, record.width, reduce) and _is_reduced(height, record.height, reduce)):
        raise ValueError(
            f"{what}: {record.path} is {width}x{height} pixels, the tables say {record.width}x{record.height}"
            + (f" (read at 1/{reduce})" if reduce > 1 else "")
            + "; the intrinsics belong to the tables' size: restore the original pictures or scale table and intrinsics"
        )
    assert record.intrinsics is not None, "Tables.record gives every camera its intrinsics"
    return CameraImage(
        name=record.channel,
        image=image,
        intrinsics=scale_intrinsics(record.intrinsics, 1.0 / reduce),
        cam2ego=record.sensor2ego,
        ego2global=record.ego2global,
        stamp_ns=record.stamp_ns,
    )


def _is_reduced(length: int, whole: int, reduce: int) -> bool:
    """Whether a decoder may give ``length`` pixels at 1/reduce of ``whole``: JPEG's rounds up, PNG's down."""
    return whole // reduce <= length <= -(-whole // reduce)


def read_sweep(record: SensorRecord) -> LidarSweep:
    """Read the cloud of a LiDAR's record.

    Raises:
        FileNotFoundError: it is absent.
        ValueError: it is empty, truncated, or holds points that are not finite.
    """
    return LidarSweep(
        points=read_cloud(record.path, what=f"{record.channel} cloud (sample_data {record.token})"),
        lidar2ego=record.sensor2ego,
        ego2global=record.ego2global,
        stamp_ns=record.stamp_ns,
    )


def scale_intrinsics(intrinsics: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """Intrinsics (3, 3) of a picture resized by ``scale``, by the official pipelines' rule u' = scale * u.

    The rule ignores that pixel centres lie at half numbers; keeping to it makes a reduced picture give the same
    geometry as the whole picture resized by the pipeline.
    """
    return np.diag([scale, scale, 1.0]) @ intrinsics


def _check_arguments(camera_history: int, lidar_history: int, reduce: int, threads: int | None) -> None:
    if camera_history < 0 or lidar_history < 0:
        raise ValueError(
            f"camera_history={camera_history}, lidar_history={lidar_history}: expected numbers of keyframes, 0 or more"
        )
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce={reduce!r}: expected one of {REDUCTIONS}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads}: expected 1 or more, or None to choose")


def _choose_cameras(tables: Tables | Index, cameras: Sequence[str] | None) -> tuple[str, ...]:
    present = [channel for channel, modality in tables.channels.items() if modality == "camera"]
    if cameras is None:
        return tuple(
            sorted(present, key=lambda c: (CAMERA_ORDER.index(c) if c in CAMERA_ORDER else len(CAMERA_ORDER), c))
        )
    unknown = [channel for channel in cameras if channel not in present]
    if isinstance(cameras, str) or unknown or len(set(cameras)) != len(cameras):
        raise ValueError(
            f"cameras={cameras!r}: expected distinct channels of {', '.join(sorted(present)) or 'no camera'}"
        )
    return tuple(cameras)


def _choose_lidar(tables: Tables | Index, lidar: str | None) -> str | None:
    present = sorted(channel for channel, modality in tables.channels.items() if modality == "lidar")
    if lidar is None and (LIDAR_CHANNEL in present or len(present) < 2):
        return LIDAR_CHANNEL if LIDAR_CHANNEL in present else next(iter(present), None)
    if lidar not in present:
        raise ValueError(f"lidar={lidar!r}: expected one of the LiDARs {', '.join(present) or '(there is none)'}")
    return lidar


def _choose_scenes(tables: Tables | Index, folder: Path, split: str | None, scenes: Iterable[str] | None) -> list[str]:
    if split is not None and scenes is not None:
        raise ValueError(f"split={split!r} and scenes= are both given; choose one of them")
    if split is not None:
        return scenes_of_split(folder, tables.scene_names, split)
    if scenes is None:
        return tables.scene_names
    chosen = [scenes] if isinstance(scenes, str) else list(scenes)
    unknown = [name for name in chosen if name not in tables.scene_names]
    if unknown or not chosen:
        raise ValueError(f"scenes={chosen}: expected names out of {shorten(tables.scene_names)}")
    return chosen
