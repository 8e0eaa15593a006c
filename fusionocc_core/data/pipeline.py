"""SensorFrame -> Batch: what every network's input goes through, in training, evaluation and on the vehicle alike.

Legend: B batch, T frames in time (0 = now, then earlier keyframes, newest first), N cameras, C channels, H W height and
width in pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionocc_core.data.augmentation import BevAug, ImageAug, fit_image
from fusionocc_core.data.images import normalize, normalize_into, transform_image
from fusionocc_core.data.points import CPU, depth_maps, gather_points
from fusionocc_core.data.remembered import earlier_frame
from fusionocc_core.data.threads import map_in_threads
from fusionocc_core.geometry import inverse
from fusionocc_core.grids import VoxelGrid
from fusionocc_core.side_by_side import two_side_by_side
from fusionocc_core.stream_pose import StreamPose, join_poses
from fusionocc_core.structures import Batch, CameraImage, InputConfig, SensorFrame, cameras_present, lidar_present

logger = logging.getLogger(__name__)

_without_lidar_logged = False


def prepare(
    frame: SensorFrame,
    inputs: InputConfig,
    grid: VoxelGrid,
    generator: torch.Generator | None = None,
    *,
    image_augs: Mapping[str, ImageAug] | None = None,
    bev_aug: BevAug | None = None,
    device: torch.device = CPU,
) -> Batch:
    """Turn one frame into a batch of one.

    Earlier pictures that are missing (the start of a scene, or one camera of an earlier keyframe) are filled with the
    current picture of that camera and its current pose. Without a LiDAR the depth map is zero, which means "no point",
    and the cloud has no points; the batch says that the LiDAR is absent.

    Args:
        frame: what the sensors saw; pictures may differ in size.
        inputs: what the network wants.
        grid: the range of points to keep; in the (augmented) ego frame.
        generator: CPU generator for random thinning; None draws the same for every call.
        image_augs: camera name -> augmentation, also used for that camera's earlier pictures; None fits the pictures in
            the fixed way of test time.
        bev_aug: what is done to the space around the vehicle; None leaves it.
        device: where points are worked on and pictures normalised, and where the batch then is. Elsewhere than on the
            CPU bytes of the resized pictures go there, a quarter of what the network takes.

    Raises:
        ValueError: no camera, more cameras than the network takes, an augmentation is missing for a camera, an earlier
            picture differs in size from the current one, or the grid is not in the ego frame.
    """
    _check(frame, inputs, grid)
    bev_aug = bev_aug or BevAug()
    generator = generator or torch.Generator().manual_seed(0)
    pictures = [frame.cameras, *(_earlier_cameras(frame, t) for t in range(inputs.camera_history))]
    augs = _augs_of(frame.cameras, inputs, image_augs)
    aug_N44 = np.array([aug.matrix(inputs.image_size) for aug in augs]).reshape(-1, 4, 4)
    # The two take equally long; what they draw and write, they share with nobody.
    (images_TNCHW, points), depth_NHW = two_side_by_side(
        lambda: (
            _images(pictures, augs, inputs, device),
            gather_points(frame, inputs, grid, bev_aug, generator, device),
        ),
        lambda: _depth(frame, aug_N44, inputs, device),
    )
    batch = Batch(
        images_BTNCHW=images_TNCHW[None],
        intrinsics_BTN33=_float32([[c.intrinsics for c in group] for group in pictures]).view(
            1, len(pictures), -1, 3, 3
        ),
        image_aug_BTN44=_float32([aug_N44 for _ in pictures])[None],
        cam2keyego_BTN44=cam2keyego(frame, pictures, inputs)[None],
        bev_aug_B44=_float32(bev_aug.matrix())[None],
        points=(points,),
        depth_BNHW=depth_NHW[None],
        camera_present_BN=torch.ones(1, len(frame.cameras), dtype=torch.bool),
        lidar_present_B=torch.tensor([frame.lidar is not None]),
        pose=StreamPose(
            ego2global_B44=torch.from_numpy(key2global(frame, inputs).astype(np.float64))[None],
            stamp_ns_B=torch.tensor([frame.stamp_ns]),
        ),
        earlier=tuple(
            prepare(
                earlier_frame(frame, age),
                replace(inputs, remembered=0),
                grid,
                generator,
                image_augs=image_augs,
                bev_aug=bev_aug,
                device=device,
            )
            for age in range(inputs.remembered, 0, -1)
        ),
    )
    return batch if device == CPU else batch.to(device)


def collate(batches: Sequence[Batch]) -> Batch:
    """Join batches into one.

    Raises:
        ValueError: nothing to join, or the batches differ in cameras, history or picture size.
    """
    if not batches:
        raise ValueError("collate: no batch to join")
    shapes = {tuple(batch.images_BTNCHW.shape[1:]) for batch in batches}
    if len(shapes) > 1:
        raise ValueError(
            f"collate: pictures (T, N, 3, H, W) differ between the samples: {sorted(shapes)}; "
            "join samples of one rig and one InputConfig"
        )
    special = ("points", "camera_present_BN", "lidar_present_B", "pose", "earlier")
    names = [f.name for f in fields(Batch) if f.name not in special]
    return Batch(
        points=tuple(cloud for batch in batches for cloud in batch.points),
        camera_present_BN=torch.cat([cameras_present(batch) for batch in batches]),
        lidar_present_B=torch.cat([lidar_present(batch) for batch in batches]),
        pose=join_poses([batch.pose for batch in batches]),
        earlier=tuple(collate(group) for group in zip(*(batch.earlier for batch in batches), strict=True)),
        **{name: torch.cat([getattr(batch, name) for batch in batches]) for name in names},
    )


def key2global(frame: SensorFrame, inputs: InputConfig) -> NDArray[np.float64]:
    """Pose (4, 4) of the frame in which the batch lies (before BEV augmentation): ego at the key time, or the LiDAR."""
    if inputs.key_pose == "lidar":
        assert frame.lidar is not None, "_check has seen it"
        return frame.lidar.ego2global @ frame.lidar.lidar2ego
    return frame.cameras[0].ego2global if inputs.key_pose == "first_camera" else frame.ego2global


def cam2keyego(frame: SensorFrame, pictures: Sequence[Sequence[CameraImage]], inputs: InputConfig) -> Tensor:
    """Poses (T, N, 4, 4) float32 of the cameras at their own stamps in the ego frame at the key time."""
    key = key2global(frame, inputs)
    shape = (len(pictures), -1, 4, 4)
    ego2global_TN44 = np.array([[camera.ego2global for camera in group] for group in pictures]).reshape(shape)
    cam2ego_TN44 = np.array([[camera.cam2ego for camera in group] for group in pictures]).reshape(shape)
    if inputs.float32_poses:
        # Rounded before the algebra, which itself stays float64: what upstream's collected tensors amount to.
        rounded = (m.astype(np.float32).astype(np.float64) for m in (key, ego2global_TN44, cam2ego_TN44))
        key, ego2global_TN44, cam2ego_TN44 = rounded
        return _float32(np.linalg.inv(key) @ ego2global_TN44 @ cam2ego_TN44)
    return _float32(inverse(key) @ ego2global_TN44 @ cam2ego_TN44)


def _check(frame: SensorFrame, inputs: InputConfig, grid: VoxelGrid) -> None:
    global _without_lidar_logged
    where = f"frame {frame.token or frame.stamp_ns}"
    if not frame.cameras and not inputs.presence_masks:
        raise ValueError(f"{where} has no camera; the network takes 1 to {inputs.num_cameras}: check the camera topics")
    if len(frame.cameras) > inputs.num_cameras:
        raise ValueError(
            f"{where} has {len(frame.cameras)} cameras ({', '.join(c.name for c in frame.cameras)}), the network takes "
            f"at most {inputs.num_cameras}: name those to use (`fusionocc predict --cameras`, camera_names of the ROS "
            "node, cameras= of NuScenesFrames), or take a network with a higher InputConfig.num_cameras"
        )
    if grid.frame != (expected := "lidar" if inputs.key_pose == "lidar" else "ego"):
        raise ValueError(
            f"grid.frame={grid.frame!r}: InputConfig.key_pose={inputs.key_pose!r} brings sensors to the frame "
            f"{expected!r}; expected a grid there"
        )
    if inputs.key_pose == "lidar" and frame.lidar is None:
        raise ValueError(
            f"{where} has no LiDAR sweep, and the network answers in the LiDAR's frame: take a network with a grid in "
            "the ego frame"
        )
    if frame.lidar is None and not _without_lidar_logged:
        _without_lidar_logged = True
        logger.warning("%s has no LiDAR sweep: depth map and cloud stay empty (said once)", where)


def _earlier_cameras(frame: SensorFrame, age: int) -> list[CameraImage]:
    """The pictures of ``age + 1`` keyframes ago, in the order of the current ones, which fill the gaps."""
    known = {c.name: c for c in frame.camera_history[age]} if age < len(frame.camera_history) else {}
    earlier = [known.get(camera.name, camera) for camera in frame.cameras]
    for now, then in zip(frame.cameras, earlier, strict=True):
        if now.image.shape != then.image.shape:
            raise ValueError(
                f"camera {now.name}: the picture of {age + 1} keyframes ago is {then.image.shape[1]}x"
                f"{then.image.shape[0]}, the current one {now.image.shape[1]}x{now.image.shape[0]}; they share one "
                "augmentation and must have one size: start a new history when the resolution changes"
            )
    return earlier


def _augs_of(
    cameras: Sequence[CameraImage], inputs: InputConfig, image_augs: Mapping[str, ImageAug] | None
) -> list[ImageAug]:
    if image_augs is None:
        return [fit_image((c.image.shape[0], c.image.shape[1]), inputs.image_size) for c in cameras]
    missing = [camera.name for camera in cameras if camera.name not in image_augs]
    if missing:
        raise ValueError(
            f"image_augs: nothing given for {', '.join(missing)}; it has {', '.join(image_augs) or 'none'}"
        )
    return [image_augs[camera.name] for camera in cameras]


def _images(
    pictures: Sequence[Sequence[CameraImage]], augs: Sequence[ImageAug], inputs: InputConfig, device: torch.device
) -> Tensor:
    """Normalised pictures (T, N, 3, H, W); a picture that fills a gap in the history is worked on once."""
    times, cameras, (height, width) = len(pictures), len(augs), inputs.image_size
    here = device == CPU
    shape, kind = ((3, height, width), np.float32) if here else ((height, width, 3), np.uint8)
    out = np.empty((times, cameras, *shape), dtype=kind)
    first_use: dict[int, tuple[int, int]] = {}
    repeats: list[tuple[tuple[int, int], tuple[int, int]]] = []
    for t, group in enumerate(pictures):
        for n, camera in enumerate(group):
            if id(camera) in first_use:
                repeats.append(((t, n), first_use[id(camera)]))
            else:
                first_use[id(camera)] = (t, n)

    def work(place: tuple[int, int]) -> None:
        t, n = place
        image = transform_image(pictures[t][n].image, augs[n], inputs.image_size, inputs.resampling)
        if here:
            normalize_into(out[t, n], image, inputs)
        else:
            out[t, n] = image

    map_in_threads(work, list(first_use.values()))
    for place, source in repeats:
        out[place] = out[source]
    if here:
        return torch.from_numpy(out)
    return normalize(torch.from_numpy(out).to(device).flatten(0, 1), inputs).unflatten(0, (times, cameras))


def _depth(frame: SensorFrame, aug_N44: NDArray[np.float64], inputs: InputConfig, device: torch.device) -> Tensor:
    if frame.lidar is None:
        return torch.zeros(len(frame.cameras), *inputs.image_size, device=device)
    return depth_maps(frame.lidar, frame.cameras, _float32(aug_N44), inputs, device)


def _float32(values: object) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
