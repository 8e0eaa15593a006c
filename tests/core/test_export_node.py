"""Exported networks behind the node."""

import pytest
from export_cases import export_little

from fusionocc_core.export import runtimes
from fusionocc_ros.engine import load_engine
from fusionocc_ros.parameters import RUNTIMES, NodeParameters


def test_runtimes_are_those_of_export():
    assert RUNTIMES == runtimes.RUNTIMES


def test_the_node_takes_exported_networks_and_says_what_does_not_fit(tmp_path):
    _, artefact = export_little(tmp_path / "little", "torch-export")
    given = {"checkpoint": str(artefact.folder), "device": "cpu", "camera_names": ("A", "B", "C", "D")}
    engine = load_engine(NodeParameters(**given))
    assert engine.num_cameras == 4
    assert engine.device.startswith("torch.export")
    with pytest.raises(ValueError, match="for a rig of 4 cameras, this one has 1"):
        load_engine(NodeParameters(**{**given, "camera_names": ("A",)}))
    with pytest.raises(ValueError, match="was exported to torch-export and can be run by torch-export; for openvino"):
        load_engine(NodeParameters(**given, runtime="openvino"))
    with pytest.raises(ValueError, match="runtime: torch runs weights"):
        load_engine(NodeParameters(**given, runtime="torch"))
    with pytest.raises(ValueError, match="runtime: openvino runs exported networks"):
        load_engine(NodeParameters(runtime="openvino"))
