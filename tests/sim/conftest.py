"""Small simulated data sets that the tests share."""

import pytest

from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.simulation import SimulationConfig, generate

RIG = """
name: two-eyes
left_hand_traffic: true
cameras:
  - name: CAM_WIDE
    size: [64, 36]
    intrinsics: [32, 32, 32, 18]
    translation: [1.6, 0.2, 1.4]
    rotation: [0.5, -0.5, 0.5, -0.5]
  - name: CAM_TALL
    size: [24, 48]
    intrinsics: [40, 40, 12, 24]
    translation: [0.1, 0.0, 1.5]
    rotation: [0.5, -0.5, -0.5, 0.5]
lidar:
  translation: [0.9, 0.0, 1.8]
  rotation: [0.7071068, 0, 0, -0.7071068]
  rings: 16
  columns: 500
  lowest_deg: -15
  step_deg: 2
"""


@pytest.fixture(scope="session")
def needs_embree():
    return pytest.importorskip("embreex", reason="the simulation needs embreex")


@pytest.fixture(scope="session")
def sim_config(needs_embree):
    return SimulationConfig(scenes=2, keyframes=3, seed=7, image_size=(90, 160), test_truth=True)


@pytest.fixture(scope="session")
def sim_root(tmp_path_factory, sim_config):
    return generate(tmp_path_factory.mktemp("sim") / "data", sim_config)


@pytest.fixture(scope="session")
def sim_frames(sim_root):
    return list(NuScenesFrames(sim_root))


@pytest.fixture(scope="session")
def nusc(sim_root):
    devkit = pytest.importorskip("nuscenes", reason="nuscenes-devkit is not installed")
    return devkit.NuScenes("v1.0-sim", str(sim_root), verbose=False)


@pytest.fixture(scope="session")
def rig_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rig") / "two_eyes.yaml"
    path.write_text(RIG)
    return path


@pytest.fixture(scope="session")
def odd_config(needs_embree, rig_file):
    return SimulationConfig(
        scenes=1,
        keyframes=2,
        seed=3,
        rig=str(rig_file),
        sweeps=True,
        ground_quirk=True,
        test_truth=True,
        official_names=True,
        corruptions=("camera_delay:2", "calibration_error:3", "beam_missing:2"),
    )


@pytest.fixture(scope="session")
def odd_root(tmp_path_factory, odd_config):
    return generate(tmp_path_factory.mktemp("odd") / "data", odd_config)
