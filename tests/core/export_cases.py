"""Exports that the tests share: each runtime's artefact of one little FlashFusion is made once."""

from dataclasses import replace
from pathlib import Path

import torch
from flashfusion_cases import little_batch, little_config, little_network, sample_of

from fusionocc_core.export.run import Exporter, Wanted, export_network
from fusionocc_core.models.flashfusion import FlashFusion, FlashFusionConfig
from fusionocc_core.models.flashocc import FlashOcc
from fusionocc_core.structures import Batch

CAMERAS = 4


def little_frames(count: int = 3) -> list[Batch]:
    """Batches of one, each with another calibration."""
    batch = little_batch(count, CAMERAS, seed=3)
    return [sample_of(batch, number) for number in range(count)]


def lively_network(config: FlashFusionConfig | None = None) -> FlashFusion:
    """One whose answer has many classes."""
    network = little_network(replace(config or little_config(), free_prior=1 / 18))
    with torch.no_grad():
        network.head.scores.weight.mul_(30)
    return network


def absences() -> dict[str, tuple[list[bool], bool]]:
    """Which cameras and whether the LiDAR is present."""
    return {
        "all": ([True] * 4, True),
        "a camera missing": ([True, False, True, True], True),
        "no LiDAR": ([True] * 4, False),
        "no cameras": ([False] * 4, True),
        "nothing": ([False] * 4, False),
    }


def with_absent(batch: Batch, cameras: list[bool], lidar: bool) -> Batch:
    """What is absent holds NaN."""
    present = torch.tensor([cameras])
    images = batch.images_BTNCHW.clone()
    images[:, :, ~present[0]] = torch.nan
    poses = batch.cam2keyego_BTN44.clone()
    poses[:, :, ~present[0]] = torch.nan
    return replace(
        batch,
        images_BTNCHW=images,
        cam2keyego_BTN44=poses,
        depth_BNHW=batch.depth_BNHW if lidar else torch.full_like(batch.depth_BNHW, torch.nan),
        points=batch.points if lidar else tuple(torch.full_like(cloud, torch.nan) for cloud in batch.points),
        camera_present_BN=present,
        lidar_present_B=torch.tensor([lidar]),
    )


def exporter(network: FlashFusion | None = None) -> Exporter:
    """Of a little FlashFusion, with confidence."""
    return Exporter(network or lively_network(), little_frames(), confidence=True)


def export_little(folder: Path, target: str, precision: str = "fp32", *, confidence: bool = False):
    """(network, artefact) of a little FlashFusion."""
    network = lively_network()
    wanted = Wanted(target=target, precision=precision, confidence=confidence)
    return network, export_network(network, little_frames(), folder, wanted)


def moved(batch: Batch, *, seed: int, turn: float = 0.35) -> Batch:
    """Another calibration: every camera turned about the vertical by up to ``turn`` radians, and 0.2 m away."""
    generator = torch.Generator().manual_seed(seed)
    cameras = batch.cam2keyego_BTN44.shape[2]
    angle_N = turn * (2 * torch.rand(cameras, generator=generator) - 1)
    turn_N44 = torch.eye(4).repeat(cameras, 1, 1)
    turn_N44[:, 0, 0] = turn_N44[:, 1, 1] = angle_N.cos()
    turn_N44[:, 1, 0], turn_N44[:, 0, 1] = angle_N.sin(), -angle_N.sin()
    turn_N44[:, :3, 3] = 0.4 * (torch.rand(cameras, 3, generator=generator) - 0.5)
    return replace(batch, cam2keyego_BTN44=turn_N44 @ batch.cam2keyego_BTN44)


def little_flashocc_batch(config) -> Batch:
    """For a FlashOcc of the tests."""
    batch = sample_of(little_batch(1, CAMERAS), 0)
    generator = torch.Generator().manual_seed(0)
    size = config.inputs.image_size
    return replace(
        batch,
        images_BTNCHW=torch.randn(1, 1, CAMERAS, 3, *size, generator=generator),
        depth_BNHW=torch.zeros(1, CAMERAS, *size),
    )


def little_flashocc(config) -> FlashOcc:
    """With fresh weights, in inference mode."""
    torch.manual_seed(0)
    return FlashOcc(config).eval()
