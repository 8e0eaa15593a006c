"""The moving average against its recurrence, written out."""

import math

import pytest
import torch
from torch import nn

from fusionocc_core.engine.ema import Ema, EmaConfig


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def train_a_little(model):
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight))
    model(torch.randn(8, 3))  # moves the running statistics


def test_official_ramp():
    """0.999 (1 - exp(-u / 2000)), u from 10560 and counted up before it is used."""
    assert EmaConfig().decay_at(10561) == pytest.approx(0.999 * (1 - math.exp(-5.2805)), abs=1e-12)
    assert EmaConfig().decay_at(10561) == pytest.approx(0.993915, abs=1e-6)
    assert EmaConfig().decay_at(10**6) == pytest.approx(0.999)


def test_average_follows_the_recurrence_for_weights_and_statistics():
    model = net()
    config = EmaConfig(decay=0.9, ramp=3.0, initial_updates=2)
    ema = Ema(config, model)
    expected = {name: tensor.clone().double() for name, tensor in model.state_dict().items()}
    for updates in (3, 4, 5):
        train_a_little(model)
        ema.update(model)
        decay = 0.9 * (1 - math.exp(-updates / 3))
        for name, tensor in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
    assert ema.updates == 5
    for name, tensor in ema.average.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, expected[name].float())
    assert ema.average["1.running_mean"].abs().sum() > 0
    assert ema.average["1.num_batches_tracked"] == 3  # counted, not averaged


def test_applied_inside_the_block_only_even_after_an_error():
    model = net()
    ema = Ema(EmaConfig(), model)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_a_little(model)
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def evaluate_and_fail():
        with ema.applied_to(model):
            assert all(torch.equal(tensor, fresh[name]) for name, tensor in model.state_dict().items())
            raise KeyError

    with pytest.raises(KeyError):
        evaluate_and_fail()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.state_dict().items())


def test_state_goes_on_exactly():
    model = net()
    one = Ema(EmaConfig(initial_updates=0), model)
    train_a_little(model)
    one.update(model)
    other = Ema(EmaConfig(initial_updates=0), net())
    other.load_state_dict(one.state_dict())
    train_a_little(model)
    one.update(model)
    other.update(model)
    assert other.updates == one.updates == 2
    assert all(torch.equal(tensor, other.average[name]) for name, tensor in one.average.items())


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"ramp": 0.0}, {"initial_updates": -1}])
def test_wrong_values(wrong):
    with pytest.raises(ValueError, match=f"EmaConfig.*{next(iter(wrong))}"):
        EmaConfig(**wrong)
