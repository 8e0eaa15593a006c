"""What a network sees, from any camera: depth and classes rendered through its answer, and depth held against points.

Legend: H W picture, R rays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fusionocc_core.data.render_rays import PixelDepths, RayCamera, RayConfig, pixel_rays, points_rays, rendering_of
from fusionocc_core.geometry import check_rigid, inverse, rotation_from_yaw, transform
from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.losses.rendering import density_volume
from fusionocc_core.models.renderocc import RenderOccConfig
from fusionocc_core.ops.volume_render import volume_render
from fusionocc_core.ops.volume_render_rays import Rays, RenderConfig, renderocc_rendering
from fusionocc_core.structures import CameraImage, LidarSweep, Occupancy, Outputs
from fusionocc_core.viz.rendered import RenderedView

OPAQUE = 0.5
"""A ray sees something where more than this share of it is stopped."""
CERTAIN_OCCUPIED, CERTAIN_FREE = 25.0, -75.0
"""Log-odds of voxels whose label is certain. From a voxel that is occupied to one that is free they change their sign a
quarter of the way: where in its voxel a surface lies a label does not say; the middle is the best guess, and a layer of
one voxel must be thicker than the places along a ray are apart. With the same size for both it would lie half-way, at
the voxel's end, and flat rays would meet the road too early."""
OPTICAL = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
"""x forward, y left, z up to x right, y down, z forward."""


class Answering(Protocol):
    """What lies where in an answer: the config of a network, or the Occupancy itself."""

    @property
    def grid(self) -> VoxelGrid: ...  # noqa: D102
    @property
    def label_set(self) -> LabelSet: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class DepthErrors:
    """Rendered distances held against measured ones."""

    error_R: NDArray[np.float32]
    """Rendered less measured, metres, of the rays that see something."""
    blind: int
    """How many of them see nothing."""

    @property
    def median_absolute(self) -> float:
        """Metres; NaN without rays."""
        return float(np.median(np.abs(self.error_R))) if len(self.error_R) else float("nan")


def rendering_for(config: Answering) -> RenderConfig:
    """How the answer of a network is rendered at metric distances.

    Raises:
        ValueError: its grid is no square of square columns in the ego frame.
    """
    if isinstance(config, RenderOccConfig) and config.head.density == "official":
        return replace(renderocc_rendering(), depth_mode="metric")
    return rendering_of(config.grid)


def view_camera(
    ego2global: NDArray[np.float64],
    *,
    position: tuple[float, float, float],
    yaw_degrees: float,
    pitch_degrees: float,
    field_of_view: float,
    image_size: tuple[int, int],
) -> RayCamera:
    """A camera that no vehicle has.

    Args:
        ego2global: (4, 4) pose that the position belongs to.
        position: in the ego frame, metres.
        yaw_degrees: to the left of straight ahead.
        pitch_degrees: downwards.
        field_of_view: horizontal, degrees.
        image_size: (H, W), pixels.

    Raises:
        ValueError: numbers that make no picture.
    """
    if not (np.isfinite([*position, yaw_degrees, pitch_degrees]).all() and 1 <= field_of_view <= 150):
        raise ValueError(
            f"view_camera: position={position}, yaw={yaw_degrees}, pitch={pitch_degrees}, field_of_view="
            f"{field_of_view}: expected finite numbers, and 1 to 150 degrees"
        )
    height, width = image_size
    focal = width / 2 / np.tan(np.radians(field_of_view) / 2)
    p = np.radians(pitch_degrees)
    pitched = np.array([[np.cos(p), 0.0, np.sin(p)], [0.0, 1.0, 0.0], [-np.sin(p), 0.0, np.cos(p)]])
    cam2ego = transform(rotation_from_yaw(np.radians(yaw_degrees)) @ pitched @ OPTICAL.T, position)
    return RayCamera(
        name="view",
        image_size=image_size,
        intrinsics=np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]]),
        cam2global=check_rigid("ego2global", ego2global) @ cam2ego,
    )


def ray_camera(camera: CameraImage) -> RayCamera:
    """Where a camera stands and looks, without its picture."""
    return RayCamera(
        name=camera.name,
        image_size=(camera.image.shape[0], camera.image.shape[1]),
        intrinsics=camera.intrinsics,
        cam2global=camera.ego2global @ camera.cam2ego,
    )


def outputs_of(occupancy: Occupancy) -> Outputs:
    """Labels as the scores of a network that is certain of them; where nothing is known, of free space."""
    free, unknown = occupancy.label_set.free, occupancy.label_set.unknown
    labels = np.where(occupancy.labels == unknown, free, occupancy.labels).astype(np.int64)
    return Outputs(logits_BKXYZ=certain_scores(torch.from_numpy(labels)[None], occupancy.label_set))


def certain_scores(labels_BXYZ: torch.Tensor, label_set: LabelSet) -> torch.Tensor:
    """Scores (B, K, X, Y, Z) whose log-odds that a voxel is occupied are those of CERTAIN_OCCUPIED or CERTAIN_FREE."""
    scores_BKXYZ = torch.full((len(labels_BXYZ), label_set.num, *labels_BXYZ.shape[1:]), CERTAIN_FREE)
    scores_BKXYZ.scatter_(1, labels_BXYZ[:, None], CERTAIN_OCCUPIED)
    scores_BKXYZ[:, label_set.free] = 0.0
    return scores_BKXYZ


@torch.no_grad()
def render_view(
    outputs: Outputs,
    config: Answering,
    camera: RayCamera,
    keyego2global: NDArray[np.float64],
    *,
    width: int,
) -> RenderedView:
    """Depth and classes of every pixel of a picture ``width`` pixels wide.

    Args:
        outputs: of one sample without augmentation.
        config: the network's, or the occupancy that ``outputs_of`` made them of.
        camera: any.
        keyego2global: (4, 4) pose of the ego frame that the outputs lie in.
        width: of the result; its height follows.

    Raises:
        ValueError: no pixel, or a pose that is not rigid.
    """
    height = round(width * camera.image_size[0] / camera.image_size[1])
    if width < 1 or height < 1:
        raise ValueError(f"render_view: width={width} gives {height} x {width} pixels; expected some")
    scale = camera.image_size[1] / width
    u, v = np.meshgrid((np.arange(width) + 0.5) * scale, (np.arange(height) + 0.5) * scale)
    pixels = PixelDepths(
        uv_P2=np.stack([u.ravel(), v.ravel()], axis=1),
        depth_P=np.zeros(height * width),
        label_P=np.zeros(height * width, np.int64),
    )
    rays = pixel_rays(pixels, camera.intrinsics, inverse(keyego2global) @ camera.cam2global)
    distance_R, label_R = _seen(outputs, config, rays)
    return RenderedView(
        distance_HW=distance_R.reshape(height, width), labels_HW=label_R.astype(np.uint8).reshape(height, width)
    )


@torch.no_grad()
def depth_errors(
    outputs: Outputs,
    config: Answering,
    camera: RayCamera,
    sweep: LidarSweep,
    keyego2global: NDArray[np.float64],
) -> DepthErrors:
    """Rendered distances at the points of a cloud that a camera sees, as far as these lie on the network's grid."""
    labels = np.zeros(len(sweep.points), np.int64)
    rays = points_rays(sweep, labels, camera, keyego2global, RayConfig(farthest=1e3))
    rays = rays.select(_on_grid(rays, config.grid))
    distance_R, _ = _seen(outputs, config, rays)
    sees = np.isfinite(distance_R)
    return DepthErrors(error_R=(distance_R - rays.range_R.numpy())[sees], blind=int((~sees).sum()))


def _on_grid(rays: Rays, grid: VoxelGrid) -> torch.Tensor:
    ends = (rays.origin_R3 + rays.depth_R[:, None] * rays.direction_R3).numpy()
    return torch.from_numpy(grid.contains(grid.indices(ends)))


def _seen(outputs: Outputs, config: Answering, rays: Rays) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Distance along each ray, NaN where it sees nothing, and the class, ``free`` there."""
    if len(outputs.logits_BKXYZ) != 1:
        raise ValueError(f"rendered views are of one sample; the outputs hold {len(outputs.logits_BKXYZ)}")
    render, free = rendering_for(config), config.label_set.free
    if outputs.density is None:
        # A network that was not made to be rendered leaves a few per cent of every free voxel to other classes, which
        # stops rays long before they arrive: its answer is rendered instead.
        outputs = Outputs(logits_BKXYZ=certain_scores(outputs.logits_BKXYZ.argmax(dim=1), config.label_set))
    volume = density_volume(outputs, render, free=free)
    rendered = volume_render(volume.density_BXYZ, volume.semantic_BXYZK, rays.to(volume.density_BXYZ.device), render)
    opacity_R = (1 - rendered.transmittance_R).cpu()
    sees_R = opacity_R > OPAQUE
    distance_R = torch.where(sees_R, rendered.depth_R.cpu() / opacity_R.clamp(min=OPAQUE), torch.nan)
    label_R = rendered.semantic_RK.argmax(dim=1).cpu()
    label_R = torch.where(sees_R, label_R + (label_R >= free).long(), free)
    return distance_R.numpy(), label_R.numpy()
