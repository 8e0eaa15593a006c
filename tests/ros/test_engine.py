"""The network behind the node."""

import torch

from fusionocc_core.commands.predict import make_model
from fusionocc_core.presets import FRESH_SEED
from fusionocc_ros.engine import load_engine
from fusionocc_ros.parameters import NodeParameters


def test_fresh_weights_are_those_of_predict_in_every_run():
    torch.manual_seed(FRESH_SEED)
    expected = make_model(None, None).state_dict()
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = load_engine(NodeParameters(device="cpu")).predict.model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in expected.items())
