"""What the weights that ship do on a real keyframe that they have not seen, nor anything like it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusionocc_core import DEFAULT_PRESET
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.grids import LIDARSEG_TO_OCC3D
from fusionocc_core.metrics.lidar_agreement import LidarAgreement, lidar_agreement
from fusionocc_core.predictor import Predictor
from fusionocc_core.presets import load_model, preset_config

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def agreement(shared: Path) -> LidarAgreement:
    inputs = preset_config(DEFAULT_PRESET).inputs
    frames = NuScenesFrames(shared / "data" / "nuscenes_scene0061", lidar_history=inputs.lidar_history)
    frame = frames[0]
    occupancy = Predictor(load_model(), device="cpu")(frame)
    return lidar_agreement(occupancy, frame.lidar, frame.ego2global, frames.boxes(0), box_classes=LIDARSEG_TO_OCC3D)


def test_what_the_lidar_hits_is_occupied(agreement: LidarAgreement) -> None:
    assert agreement.points > 20_000
    assert agreement.points_occupied >= 0.9


def test_what_the_lidar_looks_through_is_free(agreement: LidarAgreement) -> None:
    assert agreement.ray_free >= 0.9


def test_the_grid_is_not_simply_full(agreement: LidarAgreement) -> None:
    assert agreement.grid_occupied <= 0.25
