"""A small simulated data set that all tests share."""

import pytest

from fusionocc_core.simulation import SimulationConfig, generate


@pytest.fixture(scope="session")
def sim_config():
    pytest.importorskip("embreex", reason="the simulation needs embreex")
    return SimulationConfig(scenes=2, keyframes=3, seed=7, image_size=(90, 160), sweeps=True, test_truth=True)


@pytest.fixture(scope="session")
def sim_root(tmp_path_factory, sim_config):
    return generate(tmp_path_factory.mktemp("sim") / "data", sim_config)


@pytest.fixture(scope="session")
def nusc(sim_root):
    devkit = pytest.importorskip("nuscenes", reason="nuscenes-devkit is not installed")
    return devkit.NuScenes("v1.0-sim", str(sim_root), verbose=False)
