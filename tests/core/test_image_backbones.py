"""Image backbones, their neck, and the import of timm beside a CPU-only torch."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionocc_core.layers.image_backbones import (
    ShiftWindowAttention,
    SwinConfig,
    TimmBackboneConfig,
    make_image_backbone,
    shifted_window_mask,
)
from fusionocc_core.layers.image_necks import FpnLss, FpnLssConfig
from fusionocc_core.layers.torchvision_shim import import_timm

SWIN = SwinConfig(embed_channels=8, depths=(2, 2, 2, 2), heads=(1, 2, 2, 4), window=4, drop_path=0.0)
RESNET = TimmBackboneConfig(name="resnet18", stride=16, out_channels=(256, 512))


@pytest.mark.parametrize("config", [SWIN, RESNET], ids=["swin", "resnet18"])
def test_two_maps_at_stride_16_and_32(config):
    backbone = make_image_backbone(config).eval()
    with torch.no_grad():
        fine, coarse = backbone(torch.randn(2, 3, 64, 96))
    assert fine.shape == (2, config.out_channels[0], 4, 6)
    assert coarse.shape == (2, config.out_channels[1], 2, 3)
    assert config.stride == 16


def test_neck_joins_both_maps():
    neck = FpnLss(FpnLssConfig(channels=5), (3, 4)).eval()
    with torch.no_grad():
        joined = neck(torch.randn(2, 3, 4, 6), torch.randn(2, 4, 2, 3))
    assert joined.shape == (2, 5, 4, 6)
    assert (joined >= 0).all()


def test_pictures_do_not_influence_each_other():
    backbone = make_image_backbone(SWIN).eval()
    pictures = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        together = backbone(pictures)
        alone = backbone(pictures[1:2])
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one[1:2], other, atol=1e-5, rtol=1e-5)


def test_pictures_that_are_no_whole_number_of_patches_are_padded_with_zeros():
    backbone = make_image_backbone(SWIN).eval()
    picture = torch.randn(1, 3, 62, 93)
    padded = torch.nn.functional.pad(picture, (0, 3, 0, 2))
    with torch.no_grad():
        for one, other in zip(backbone(picture), backbone(padded), strict=True):
            torch.testing.assert_close(one, other)


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), window=st.integers(2, 6))
def test_mask_of_rolled_windows_is_timms(rows, columns, window):
    swin = import_timm("timm.models.swin_transformer")
    block = swin.SwinTransformerBlock(
        4, (rows * window, columns * window), 1, window_size=window, shift_size=window // 2, always_partition=True
    )
    ours = shifted_window_mask(rows, columns, window, window // 2, torch.zeros(1))
    assert torch.equal(ours, block.attn_mask)


def with_timms_weights(height, width, window):
    """A rolled window attention of ours and timm's block, with equal weights and LayerNorm left out."""
    swin = import_timm("timm.models.swin_transformer")
    block = swin.SwinTransformerBlock(
        8, (height, width), 2, window_size=window, shift_size=window // 2, always_partition=True
    )
    ours = ShiftWindowAttention(8, 2, window, shifted=True)
    ours.w_msa.load_state_dict(block.attn.state_dict())
    return ours.eval(), block.eval()


def test_without_padding_the_attention_is_timms():
    ours, timms = with_timms_weights(8, 12, 4)
    tokens = torch.randn(2, 8, 12, 8)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), timms._attn(tokens), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(7, 8), (8, 9), (5, 11)])
def test_with_padding_timm_rolls_first_and_differs(height, width):
    """The reason for a block of our own: should timm ever pad first, this test says that ours can go."""
    ours, timms = with_timms_weights(height, width, 4)
    tokens = torch.randn(2, height, width, 8)
    with torch.no_grad():
        mine, theirs = ours(tokens), timms._attn(tokens)
    assert mine.shape == theirs.shape
    assert (mine - theirs).abs().max() > 0.01 * theirs.abs().max()


def test_recomputed_activations_give_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        config = SwinConfig(
            embed_channels=8, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1), window=4, drop_path=0.0,
            checkpoint_activations=recompute,
        )  # fmt: skip
        backbone = make_image_backbone(config).train()
        fine, coarse = backbone(torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64))
        (fine.square().sum() + coarse.sum()).backward()
        gradients.append(backbone.patch_embed.proj.weight.grad)
    torch.testing.assert_close(*gradients)


def test_stochastic_depth_acts_in_training_only():
    backbone = make_image_backbone(SwinConfig(embed_channels=8, heads=(1, 2, 2, 4), depths=(2, 2, 2, 2), drop_path=0.9))
    picture = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.manual_seed(0)
        one = backbone.train()(picture)[1]
        other = backbone(picture)[1]
        assert not torch.equal(one, other)
        assert torch.equal(backbone.eval()(picture)[1], backbone(picture)[1])


def test_fresh_swin_weights():
    backbone = make_image_backbone(SwinConfig(embed_channels=32, depths=(2, 2), heads=(1, 2)))
    weight = backbone.stages[0].blocks[0].ffn.fc1.weight
    assert 0.015 < weight.std() < 0.025
    assert weight.abs().max() < 2.1  # truncated at +-2, far out at this width
    assert not backbone.stages[0].blocks[0].ffn.fc1.bias.any()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TimmBackboneConfig(name="resnet18", stride=5, out_channels=(256, 512)), "stride=5"),
        (TimmBackboneConfig(name="resnet18", stride=16, out_channels=(1, 2)), "gives \\(256, 512\\) channels"),
    ],
)
def test_timm_configs_that_do_not_fit(config, message):
    with pytest.raises(ValueError, match=message):
        make_image_backbone(config)


@pytest.mark.parametrize("changes", [{"depths": (2, 2), "heads": (4,)}, {"heads": (3, 6, 12, 24)}])
def test_swin_configs_that_do_not_fit(changes):
    with pytest.raises(ValueError, match="SwinConfig"):
        SwinConfig(**changes)


def run_python(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_timm_imports_in_a_fresh_process_and_only_at_use():
    done = run_python(
        "import sys, fusionocc_core.layers.image_backbones as b\n"
        "assert 'timm' not in sys.modules and 'torchvision' not in sys.modules\n"
        "b.make_image_backbone(b.TimmBackboneConfig(name='resnet18', stride=16, out_channels=(256, 512)))\n"
        "assert 'timm' in sys.modules\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_missing_timm_names_the_line_to_install():
    done = run_python(
        "import sys\n"
        "sys.modules['timm'] = None\n"
        "from fusionocc_core.layers.torchvision_shim import import_timm\n"
        "try:\n"
        "    import_timm()\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    assert "timm is missing: pip install -r requirements/core.txt" in done.stdout, done.stderr
