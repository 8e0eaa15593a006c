"""What the node makes of a bag is what the nuScenes reader makes of the files that the bag was written from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nuscenes_tree import write_tree
from rclpy.serialization import deserialize_message
from rosbags.rosbag2 import Reader
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.structures import CameraImage, LidarSweep, SensorFrame
from fusionocc_ros.assemble import Assembler, CameraInfos, Moment
from fusionocc_ros.bag import write_bag
from fusionocc_ros.convert import stamp_to_ns, transform_to_matrix
from fusionocc_ros.ego_motion import EgoMotion, Source
from fusionocc_ros.parameters import OFFICIAL_CAMERAS, RAW, CameraParameters, NodeParameters
from fusionocc_ros.sync import LidarAnchoredSync
from fusionocc_ros.tf_store import TfStore

KINDS = {
    "CameraInfo": CameraInfo,
    "CompressedImage": CompressedImage,
    "Image": Image,
    "PointCloud2": PointCloud2,
    "TFMessage": TFMessage,
}


def messages(bag: Path) -> Iterator[tuple[str, Any]]:
    with Reader(bag) as reader:
        for connection, _, data in reader.messages():
            kind = KINDS.get(connection.msgtype.rsplit("/", 1)[1])
            if kind is not None:
                yield connection.topic, deserialize_message(bytes(data), kind)


def frames_of(bag: Path, *, raw: bool = False, history: int = 0) -> list[SensorFrame]:
    """Every keyframe of a bag, through the parts that the node is made of."""
    cameras = tuple(
        CameraParameters(
            name=name,
            image_topic=f"/{name.lower()}/image_rect{'' if raw else '_compressed'}",
            info_topic=f"/{name.lower()}/camera_info",
        )
        for name in OFFICIAL_CAMERAS
    )
    parameters = NodeParameters(cameras=cameras, image_transport=RAW if raw else "compressed")
    transforms, infos = TfStore(), CameraInfos()
    motion = EgoMotion(
        policy="tf",
        base_frame="base_link",
        fixed_frame="map",
        transforms=transforms,
        odometry=TfStore(),
        timeout_s=0.0,
    )
    now = 0
    sync: LidarAnchoredSync[Any] = LidarAnchoredSync(parameters.sync_config(), lambda: now)
    assembler = Assembler(parameters, infos, transforms, motion, None)
    assembler.serve(camera_history=history, lidar_history=history, least_width=0)
    by_topic = {c.image_topic: c.name for c in cameras} | {c.info_topic: c.name for c in cameras}
    sets, frames = [], []
    for topic, message in messages(bag):
        if isinstance(message, TFMessage):
            for entry in message.transforms:
                edge = (entry.header.frame_id, entry.child_frame_id)
                matrix = transform_to_matrix(entry.transform)
                if topic == "/tf_static":
                    transforms.set_static(*edge, matrix)
                else:
                    transforms.add(*edge, stamp_to_ns(entry.header.stamp), matrix)
        elif isinstance(message, CameraInfo):
            infos.put(by_topic[topic], message)
        elif isinstance(message, PointCloud2):
            sets += sync.add_sweep(stamp_to_ns(message.header.stamp), message)
        else:
            sets += sync.add_picture(by_topic[topic], stamp_to_ns(message.header.stamp), message)
    now += sync.config.deadline_ns
    for one in [*sets, *sync.poll()]:
        moment = Moment(one)
        assembler.offer(moment)
        assembled = assembler.assemble(moment)
        assert assembled.source is Source.TF
        frames.append(assembled.frame)
    assembler.close()
    return frames


def same_camera(ours: CameraImage, theirs: CameraImage) -> None:
    assert (ours.name, ours.stamp_ns) == (theirs.name, theirs.stamp_ns)
    np.testing.assert_array_equal(ours.image, theirs.image)
    np.testing.assert_allclose(ours.intrinsics, theirs.intrinsics, rtol=1e-12)
    np.testing.assert_allclose(ours.cam2ego, theirs.cam2ego, atol=1e-9)
    np.testing.assert_allclose(ours.ego2global, theirs.ego2global, atol=1e-6)


def same_sweep(ours: LidarSweep, theirs: LidarSweep) -> None:
    assert ours.stamp_ns == theirs.stamp_ns
    np.testing.assert_array_equal(ours.points, theirs.points)
    np.testing.assert_allclose(ours.lidar2ego, theirs.lidar2ego, atol=1e-9)
    np.testing.assert_allclose(ours.ego2global, theirs.ego2global, atol=1e-6)


def same_frame(ours: SensorFrame, theirs: SensorFrame) -> None:
    assert ours.stamp_ns == theirs.stamp_ns
    assert ours.lidar is not None
    assert theirs.lidar is not None
    same_sweep(ours.lidar, theirs.lidar)
    np.testing.assert_allclose(ours.ego2global, theirs.ego2global, atol=1e-6)
    for one, other in zip(ours.cameras, theirs.cameras, strict=True):
        same_camera(one, other)
    for ones, others in zip(ours.camera_history, theirs.camera_history, strict=True):
        for one, other in zip(ones, others, strict=True):
            same_camera(one, other)
    for one_sweep, other_sweep in zip(ours.lidar_history, theirs.lidar_history, strict=True):
        same_sweep(one_sweep, other_sweep)


@pytest.mark.parametrize("raw", [False, True])
def test_keyframes_from_a_bag_equal_those_from_the_files_memory_included(tmp_path: Path, raw: bool) -> None:
    tree = write_tree(tmp_path / "data", scenes={"scene-0061": 4})
    write_bag(tree.root, tmp_path / "bag", scene="scene-0061", raw=raw)
    expected = NuScenesFrames(tree.root, camera_history=2, lidar_history=2)
    got = frames_of(tmp_path / "bag", raw=raw, history=2)
    assert [len(frame.lidar_history) for frame in got] == [0, 1, 2, 2]
    for ours, theirs in zip(got, expected, strict=True):
        same_frame(ours, theirs)


@pytest.mark.data
def test_the_real_keyframe_from_a_bag_equals_the_one_from_the_files(tmp_path: Path, shared: Path) -> None:
    root = shared / "data" / "nuscenes_scene0061"
    write_bag(root, tmp_path / "bag", scene="scene-0061")
    (got,) = frames_of(tmp_path / "bag")
    same_frame(got, NuScenesFrames(root)[0])
