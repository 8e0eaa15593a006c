"""Parts of a network through torch.compile."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fusionocc_core import Predictor, load_model
from fusionocc_core.layers.compiled import compile_parts
from fusionocc_core.models.flashfusion import FlashFusion
from fusionocc_core.models.flashocc import FlashOcc
from fusionocc_core.presets import PRESETS
from fusionocc_core.warm_up import made_up_frame


@pytest.fixture
def told(monkeypatch):
    """What is asked of torch.compile."""
    said: list[tuple[str | None, bool]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda part, mode, dynamic: said.append((mode, dynamic)))
    return said


@pytest.mark.slow
def test_a_compiled_network_labels_as_before():
    network = load_model("flashfusion-mini")
    frame = made_up_frame(network.config.inputs, 2)
    other = replace(frame, cameras=frame.cameras[:1])
    before = Predictor(network, device="cpu", precision="float32")
    after = Predictor(network, device="cpu", precision="float32", compiled=True)
    for seen in (frame, other, frame, replace(frame, lidar=None)):  # another number of pictures is compiled anew
        assert (before(seen).labels == after(seen).labels).mean() > 0.9999
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not any(hasattr(part, "_compiled_call_impl") and part._compiled_call_impl for part in network.modules())


@pytest.mark.parametrize(("network", "preset"), [(FlashFusion, "flashfusion-mini"), (FlashOcc, "flashocc-m0")])
def test_parts_are_there(network, preset, told):
    with torch.device("meta"):
        built = network(PRESETS[preset]())
    compile_parts(built, built.compiled_parts, torch.device("cpu"))
    assert told == [(None, False)] * len(network.compiled_parts)


def test_on_cuda_they_are_graphs(told):
    compile_parts(nn.Sequential(nn.Linear(2, 2)), ("0",), torch.device("cuda"))
    assert told == [("reduce-overhead", False)]


def test_networks_whose_shapes_follow_from_the_points_are_refused():
    with pytest.raises(ValueError, match="compiled=True: RenderOcc has no parts"):
        Predictor(load_model("uniocc-tiny"), device="cpu", compiled=True)
