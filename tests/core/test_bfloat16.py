"""Parts of a network in bfloat16, and who asks for it."""

import pytest
import torch
from flashfusion_cases import little_batch, little_network
from torch import nn

from fusionocc_core.layers.bfloat16 import with_bfloat16_parts
from fusionocc_core.predictor import Predictor, network_for_inference

CPU = torch.device("cpu")


@torch.no_grad()
def test_named_parts_compute_in_bfloat16_and_nothing_else_changes():
    network, batch = little_network(), little_batch()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    changed = with_bfloat16_parts(network, ("pictures", "bev"))
    assert {p.dtype for p in changed.pictures.parameters()} == {torch.bfloat16}
    assert changed.head.scores.weight is network.head.scores.weight
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    one, other = network(batch), changed(batch)
    assert other.logits_BKXYZ.dtype == other.depth_logits_BNDhw.dtype == torch.float32
    difference = (one.logits_BKXYZ - other.logits_BKXYZ).abs()
    assert 0 < difference.max() < 0.05 * one.logits_BKXYZ.abs().max()
    assert (one.logits_BKXYZ.argmax(1) == other.logits_BKXYZ.argmax(1)).float().mean() > 0.98


@pytest.mark.parametrize(
    ("native", "precision", "found"),
    [
        (True, "auto", torch.bfloat16),
        (False, "auto", torch.float32),
        (True, "float32", torch.float32),
        (False, "bfloat16", torch.bfloat16),
    ],
)
def test_who_computes_in_bfloat16(monkeypatch, native, precision, found):
    monkeypatch.setattr("fusionocc_core.predictor.cpu_multiplies_bfloat16", lambda: native)
    network = network_for_inference(little_network(), CPU, precision)
    assert network.bev.join[0].weight.dtype == found


def test_networks_without_such_parts_stay_and_refuse_it():
    class Plain(nn.Module):
        card = type("Card", (), {"preset": "plain"})

    network = Plain().eval()
    assert list(network_for_inference(network, CPU, "auto").parameters()) == []
    with pytest.raises(ValueError, match="plain has no parts"):
        network_for_inference(network, CPU, "bfloat16")
    with pytest.raises(ValueError, match="expected one of auto, float32, bfloat16"):
        Predictor(network, device="cpu", precision="int4")
