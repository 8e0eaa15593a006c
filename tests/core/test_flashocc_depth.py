"""The camera-aware depth network, its bins and its loss, against tensors of the official code."""

from dataclasses import replace

import pytest
import torch
from flashocc_cases import golden, weights_of

from fusionocc_core.grids import DepthBins
from fusionocc_core.layers.camera_depth import CameraDepthConfig, CameraDepthNet, StereoConfig
from fusionocc_core.layers.view_transform import LiftConfig, frustum_samples, measured_depth_bins
from fusionocc_core.losses.image import depth_loss

LINEAR = DepthBins(start=1.0, stop=45.0, step=1.0)
LOG = DepthBins(start=1.0, stop=45.0, step=0.5, spacing="log_official")
SMALL = CameraDepthConfig(mid_channels=32, context_channels=16, aspp_channels=8)
DEPTH_NET = "img_view_transformer.depth_net."


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "goldens" / "flashocc"


@pytest.mark.data
def test_bins_of_both_spacings(folder):
    reference = golden(folder / "depth_bins.npz")
    for bins, name in ((LINEAR, "uniform_bins_D44"), (LOG, "sid_bins_D88")):
        ours = measured_depth_bins(reference["gt_depth"], bins, 16) - 1
        assert torch.equal(ours.flatten(), reference[name])
        assert (ours >= 0).sum() > 250
    samples = frustum_samples(
        LiftConfig(frustum_pixels="corner_aligned", frustum_depths="lower_edges"), LOG, (64, 176), 16
    )
    torch.testing.assert_close(samples[:, 0, 0, 2], reference["sid_depths"], rtol=1e-6, atol=0)
    assert torch.equal(samples[0, 0, :, 0], reference["frustum_u"])
    assert torch.equal(samples[0, :, 0, 1], reference["frustum_v"])


@pytest.mark.parametrize("spacing", ["linear", "log", "log_official"])
def test_a_depth_lies_in_the_bin_whose_edges_enclose_it(spacing):
    bins = DepthBins(start=2.0, stop=30.0, step=2.0, spacing=spacing)
    depth = torch.linspace(1.5, 33.0, 4001)
    index = measured_depth_bins(depth.view(1, 1, 1, -1), bins, 1).flatten() - 1
    edges = torch.tensor(bins.edges)
    clear = (depth[:, None] - edges).abs().amin(dim=1) > 1e-4  # on an edge, rounding decides
    expected = torch.bucketize(depth, edges, right=True) - 1
    expected = expected.where(expected < bins.num, -1)
    assert torch.equal(index[clear], expected[clear])


@pytest.mark.data
def test_depth_net_and_loss(folder):
    reference = golden(folder / "bevdepth_small.npz")
    weights = {
        name.removeprefix(DEPTH_NET): tensor for name, tensor in weights_of(reference).items() if DEPTH_NET in name
    }
    net = CameraDepthNet(SMALL, 32, num_depths=44).eval()
    net.load_state_dict(weights)
    with torch.no_grad():
        seen = net(reference["neck"].flatten(0, 1), reference["mlp_input"].flatten(0, 1))
    both = torch.cat([seen.depth_logits_BDhw, seen.context_BChw], dim=1)
    torch.testing.assert_close(both, reference["depthnet_out"], rtol=1e-4, atol=1e-5)
    logits = seen.depth_logits_BDhw.unflatten(0, (2, 3))
    torch.testing.assert_close(logits.softmax(dim=2).flatten(0, 1), reference["depth_prob"], rtol=1e-4, atol=1e-6)
    bins = measured_depth_bins(reference["gt_depth"], LINEAR, 16)
    assert torch.equal(bins.flatten() - 1, reference["gt_bin"])
    torch.testing.assert_close(depth_loss(logits, bins), reference["loss_depth"], rtol=1e-5, atol=0)


def test_cost_volume_belongs_to_stereo_alone():
    x, vectors, cost = torch.randn(2, 6, 3, 5), torch.randn(2, 27), torch.rand(2, 4, 12, 20)
    config = CameraDepthConfig(mid_channels=8, context_channels=3, aspp_channels=4)
    plain = CameraDepthNet(config, 6, num_depths=4).eval()
    stereo = CameraDepthNet(replace(config, stereo=StereoConfig()), 6, num_depths=4).eval()
    with pytest.raises(ValueError, match=r"is given.*no config.stereo"):
        plain(x, vectors, cost)
    with pytest.raises(ValueError, match=r"is missing.*a config.stereo"):
        stereo(x, vectors)
    with torch.no_grad():
        seen, other = stereo(x, vectors, cost), stereo(x, vectors, cost.flip(1))
    assert seen.depth_logits_BDhw.shape == (2, 4, 3, 5)
    assert seen.context_BChw.shape == (2, 3, 3, 5)
    assert not torch.equal(seen.depth_logits_BDhw, other.depth_logits_BDhw)
    assert torch.equal(seen.context_BChw, other.context_BChw)
