"""Parts of a network that learn more slowly."""

import pytest
from torch import nn

from fusionocc_core.engine.optimizer import OptimizerConfig, make_optimizer


def network() -> nn.Module:
    return nn.ModuleDict({"img_backbone": nn.Linear(2, 3), "head": nn.Linear(3, 1)})


def test_the_first_text_that_fits_counts() -> None:
    model = network()
    model["head"].bias.requires_grad_(False)
    optimizer = make_optimizer(OptimizerConfig(rate_of_parts=(("backbone.weight", 0.5), ("backbone", 0.1))), model)
    shares = {group["share"]: group["params"] for group in optimizer.param_groups}
    assert {share: [tuple(p.shape) for p in group] for share, group in shares.items()} == {
        1.0: [(1, 3)],
        0.5: [(3, 2)],
        0.1: [(3,)],
    }
    assert [group["share"] for group in make_optimizer(OptimizerConfig(), model).param_groups] == [1.0]
    with pytest.raises(ValueError, match="rate_of_parts"):
        OptimizerConfig(rate_of_parts=(("head", 0.0),))
    with pytest.raises(ValueError, match="no weight"):
        make_optimizer(OptimizerConfig(), network().requires_grad_(False))
