"""Swin blocks for inference: the results of the plain ones, whatever the size of the picture."""

from dataclasses import replace

import pytest
import torch
from flashocc_cases import little_config as flashocc_config
from flashocc_temporal_cases import stereo_config
from fusionocc_cases import random_batch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from renderocc_cases import little_config as renderocc_config
from torch import nn

from fusionocc_core.layers import swin_inference
from fusionocc_core.layers.image_backbones import SwinBackbone, SwinBlock, SwinConfig, shifted_window_mask
from fusionocc_core.layers.swin_inference import SwinInferenceBlock, swin_for_inference, window_strips
from fusionocc_core.predictor import network_for_inference
from fusionocc_core.presets import make_network

SMALL_SWIN = SwinConfig(embed_channels=8, depths=(2, 2, 2, 2), heads=(1, 2, 2, 4), window=3)


def lively_block(channels, heads, window, *, shifted, seed=0):
    """A block whose position bias, norms and biases all do something."""
    torch.manual_seed(seed)
    config = SwinConfig(embed_channels=channels, window=window)
    block = SwinBlock(channels, heads, config, shifted=shifted, drop_path=0.1)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block.eval()


@settings(max_examples=25, deadline=None)
@given(
    h=st.integers(1, 17),
    w=st.integers(1, 17),
    window=st.integers(2, 6),
    shifted=st.booleans(),
    pictures=st.integers(1, 2),
    strip=st.sampled_from([1, 1000, 2**22]),
)
@example(h=3, w=4, window=6, shifted=True, pictures=1, strip=1)  # smaller than a window, and rolled all the same
@example(h=12, w=12, window=6, shifted=True, pictures=2, strip=1)  # no padding
@example(h=13, w=7, window=6, shifted=True, pictures=1, strip=600)  # the last strip holds the first rows
@torch.no_grad()
def test_blocks_agree(h, w, window, shifted, pictures, strip):
    block = lively_block(8, 2, window, shifted=shifted)
    x = torch.randn(pictures, h, w, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swin_inference, "STRIP", strip)
        found = SwinInferenceBlock(block)(x)
    torch.testing.assert_close(found, block(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("h", "w", "window", "shift"), [(8, 12, 4, 0), (9, 10, 4, 2), (3, 3, 4, 2), (16, 44, 12, 6)])
@pytest.mark.parametrize("most", [1, 10**6])
def test_strips_hold_every_token_once_and_every_masked_window(h, w, window, shift, most):
    strips = window_strips(h, w, window, shift, most, torch.device("cpu"))
    assert torch.cat([strip.tokens_R for strip in strips]).sort().values.tolist() == list(range(h * w))
    for strip in strips:
        rows = strip.rows_MN.flatten()
        assert torch.equal(rows[strip.place_R], torch.arange(len(strip.tokens_R)))
        assert rows.max() <= len(strip.tokens_R)
        assert (rows == len(strip.tokens_R)).sum() == rows.numel() - len(strip.tokens_R)
    rows, columns = -(-h // window), -(-w // window)
    assert sum(len(strip.rows_MN) for strip in strips) == rows * columns
    mask = shifted_window_mask(rows, columns, window, shift, torch.zeros(1)) if shift else torch.zeros(1, 1, 1)
    assert sum(len(strip.border_M1NN) for strip in strips) == int(mask.flatten(1).any(dim=1).sum())
    assert len(strips) == (rows if most == 1 else 1)


@torch.no_grad()
def test_a_backbone_and_its_copy_share_tensors_and_results():
    torch.manual_seed(0)
    backbone = SwinBackbone(SwinConfig(embed_channels=8, depths=(2, 2, 2), heads=(1, 2, 2), window=3)).eval()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    changed = swin_for_inference(backbone)
    images = torch.randn(2, 3, 60, 92)
    for one, other in zip(changed(images), backbone(images), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    kept = {tensor.data_ptr() for tensor in changed.parameters()}
    tables = {n: p for n, p in backbone.named_parameters() if not n.endswith("relative_position_bias_table")}
    assert {tensor.data_ptr() for tensor in tables.values()} == kept
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert not any(isinstance(part, SwinInferenceBlock) for part in backbone.modules())


@torch.no_grad()
def test_products_in_bfloat16_leave_the_sum_in_float32():
    block, x = lively_block(16, 2, 4, shifted=True), torch.randn(1, 9, 10, 16)
    fast = SwinInferenceBlock(block)
    fast.products.bfloat16()
    found, expected = fast(x), block(x)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize(
    "config", [flashocc_config(), stereo_config(), renderocc_config("volume")], ids=["flashocc", "stereo", "renderocc"]
)
@torch.no_grad()
def test_networks_with_swin_answer_as_before(config):
    """As flashocc-m3 and renderocc-swinb have it: stereo looks at the first stage, the neck at the last two."""
    torch.manual_seed(0)
    plain = make_network(replace(config, image_backbone=SMALL_SWIN)).eval()
    for name, parameter in plain.named_parameters():
        if "relative_position_bias_table" in name:
            nn.init.normal_(parameter)
    batch = random_batch(plain.config, samples=1, cameras=2, seed=1)
    fast = network_for_inference(plain, torch.device("cpu"), "float32")
    blocks = [part for part in fast.modules() if isinstance(part, SwinInferenceBlock)]
    assert len(blocks) == sum(SMALL_SWIN.depths)
    found, expected = fast(batch), plain(batch)
    torch.testing.assert_close(found.logits_BKXYZ, expected.logits_BKXYZ, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.depth_logits_BNDhw, expected.depth_logits_BNDhw, rtol=1e-3, atol=1e-4)


def test_training_is_refused_and_other_networks_stay():
    plain = nn.Sequential(nn.Linear(2, 2))
    assert swin_for_inference(plain) is plain
    backbone = SwinBackbone(SwinConfig(embed_channels=8, depths=(1, 1), heads=(1, 1), window=2))
    with pytest.raises(ValueError, match="training mode; call eval"):
        swin_for_inference(backbone.train())
    changed = swin_for_inference(backbone.eval()).train()
    with pytest.raises(ValueError, match="in training mode"):
        changed(torch.randn(1, 3, 16, 16))
