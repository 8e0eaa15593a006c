"""What stereo depth is made of: first stages of the backbones, matching cells, and the cost volume, each on its own."""

import numpy as np
import pytest
import torch
from flashocc_cases import golden, weights_of
from fusionocc_cases import camera_ring
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionocc_core.grids import DepthBins
from fusionocc_core.layers.image_backbones import SwinConfig, make_image_backbone
from fusionocc_core.layers.resnet import ResNetConfig
from fusionocc_core.layers.temporal import FAR_OUTSIDE, matching_cells
from fusionocc_core.layers.view_transform import Cameras, LiftConfig, frustum_points, frustum_samples
from fusionocc_core.models.fusionocc_official import from_official
from fusionocc_core.ops.cost_volume import cost_volume

SWIN = SwinConfig(embed_channels=16, depths=(2, 2, 4, 2), heads=(1, 2, 4, 8), window=4)

# backbones


@pytest.mark.data
def test_swin_stages_as_the_official_code_gives_them(shared):
    """The picture's size forces padding everywhere; the stereo map is the first stage's, without a norm."""
    tensors = golden(shared / "goldens" / "renderocc" / "swin_tiny.npz")
    weights = from_official({f"img_backbone.{name}": tensor for name, tensor in weights_of(tensors).items()})
    backbone = make_image_backbone(SWIN).eval()
    backbone.load_state_dict({name.removeprefix("img_backbone."): tensor for name, tensor in weights.items()})
    with torch.no_grad():
        maps = backbone.stage_maps(tensors["x"])
        first = backbone.stage_maps(tensors["x"], count=1)
    assert len(first) == 1
    assert torch.equal(first[0], maps[0])
    for stage, name in ((0, "stereo"), (2, "out2"), (3, "out3")):
        torch.testing.assert_close(maps[stage], tensors[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [SWIN, ResNetConfig(base_channels=4, blocks=(1, 1, 1, 1))], ids=["swin", "resnet"])
def test_the_first_stage_alone_is_the_first_stage(config):
    backbone = make_image_backbone(config).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        (first,) = backbone.stage_maps(images, count=1)
        maps, pair = backbone.stage_maps(images), backbone(images)
    assert first.shape == (2, config.stage_channels(0), 16, 24)
    assert torch.equal(first, maps[0])
    assert all(torch.equal(one, other) for one, other in zip(maps[2:], pair, strict=True))


# matching cells


def rig(forward_m: float, *, cameras: int = 3) -> Cameras:
    """A ring of cameras so many metres behind the key ego frame; pictures are scaled and turned a little."""
    pose = camera_ring(cameras)[None].clone()
    pose[..., 0, 3] -= forward_m
    aug = torch.eye(4).repeat(1, cameras, 1, 1)
    aug[..., :2, :2] = torch.tensor([[0.1, 0.01], [-0.01, 0.1]])
    aug[..., 1, 3] = -20.0
    k = torch.tensor([[1266.0, 0.0, 816.0], [0.0, 1266.0, 491.0], [0.0, 0.0, 1.0]])
    return Cameras(
        intrinsics_BN33=k.repeat(1, cameras, 1, 1),
        image_aug_BN44=aug,
        cam2keyego_BN44=pose.float(),
        bev_aug_B44=torch.eye(4)[None],
    )


BINS = DepthBins(start=1.0, stop=45.0, step=4.0)


def samples(pixels: str) -> torch.Tensor:
    return frustum_samples(LiftConfig(frustum_pixels=pixels), BINS, (64, 160), 4)


@pytest.mark.parametrize("pixels", ["cell_centers", "corner_aligned"])
def test_without_motion_every_cell_matches_itself(pixels):
    cells = matching_cells(samples(pixels), rig(0.0), rig(0.0), image_size=(64, 160), pixels=pixels)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(40.0), indexing="ij")
    expected = torch.stack([x, y], dim=-1).expand(1, 3, BINS.num, -1, -1, -1)
    torch.testing.assert_close(cells, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("pixels", ["cell_centers", "corner_aligned"])
def test_a_sample_seen_from_two_places_is_one_point(pixels):
    """Its position in the earlier picture, at its depth there, leads back to the same point of the ego frame."""
    now, earlier = rig(0.0), rig(1.5)
    here = samples(pixels)
    points = frustum_points(here, now)
    cells = matching_cells(here, now, earlier, image_size=(64, 160), pixels=pixels)
    u, v = here[0, 0, :, 0], here[0, :, 0, 1]
    pixel_u = u[0] + cells[..., 0] * (u[1] - u[0])
    pixel_v = v[0] + cells[..., 1] * (v[1] - v[0])
    in_front = cells[..., 0] != FAR_OUTSIDE
    camera = torch.linalg.inv(earlier.cam2keyego_BN44.double())
    depth = (points.double() @ camera[:, :, None, None, :3, :3].transpose(-1, -2))[..., 2]
    depth += camera[:, :, None, None, None, 2, 3]
    again = frustum_points(
        torch.stack([pixel_u, pixel_v, depth.float()], dim=-1)[0, 0], earlier
    )  # camera 0, which looks ahead: the motion is along its axis
    assert in_front[0, 0].all()
    torch.testing.assert_close(again[0, 0], points[0, 0], rtol=0, atol=2e-3)


def test_points_behind_the_earlier_camera_are_far_outside():
    """The vehicle drove backwards: what is near now lies behind the camera that looked ahead before."""
    cells = matching_cells(samples("cell_centers"), rig(0.0), rig(-6.0), image_size=(64, 160), pixels="cell_centers")
    behind = cells[0, 0, :, 0, 0, 0] == FAR_OUTSIDE
    assert behind.tolist() == [True] + 10 * [False]  # bin centres 3 m, 7 m, ...
    assert torch.isfinite(cells).all()


def test_geometry_stays_in_float32_where_the_network_computes_in_bfloat16():
    here, now, earlier = samples("cell_centers"), rig(0.0), rig(1.5)
    points = frustum_points(here, now)
    cells = matching_cells(here, now, earlier, image_size=(64, 160), pixels="cell_centers")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(frustum_points(here, now), points)
        assert torch.equal(matching_cells(here, now, earlier, image_size=(64, 160), pixels="cell_centers"), cells)


# cost volume


def loop(current, earlier, cells, penalty):
    """By its definition, one sample after the other, float64."""
    b, channels, height, width = current.shape
    depths = cells.shape[1]
    cost = np.zeros((b, depths, height, width))
    for i, d, row, column in np.ndindex(*cost.shape):
        x, y = cells[i, d, row, column].tolist()
        read = np.zeros(channels)
        for nx, ny in ((np.floor(x) + i, np.floor(y) + j) for i in (0, 1) for j in (0, 1)):
            if 0 <= nx < width and 0 <= ny < height:
                read += (1 - abs(x - nx)) * (1 - abs(y - ny)) * earlier[i, :, int(ny), int(nx)].numpy()
        outside = not (0 <= x <= width - 1 and 0 <= y <= height - 1)
        cost[i, d, row, column] = np.abs(current[i, :, row, column].numpy() - read).sum() + penalty * outside
    return torch.from_numpy(cost).neg().softmax(dim=1)


def example(seed=0, b=2, channels=8, depths=5, height=4, width=6):
    generator = torch.Generator().manual_seed(seed)
    current, earlier = (torch.rand(b, channels, height, width, generator=generator) for _ in range(2))
    size = torch.tensor([width, height])
    cells = torch.rand(b, depths, height, width, 2, generator=generator) * (size + 3.0) - 2.0
    corners = torch.tensor([[0.0, 0.0], [width - 1.0, height - 1.0], [FAR_OUTSIDE, FAR_OUTSIDE]])
    cells[0, 0, 0, :3] = corners[:width]
    return current, earlier, cells


@pytest.mark.parametrize("backend", ["grid_sample", "embedding_bag"])
def test_cost_volume_equals_its_definition(backend):
    current, earlier, cells = example()
    volume = cost_volume(current, earlier, cells, penalty=2.0, backend=backend)
    torch.testing.assert_close(volume, loop(current, earlier, cells, 2.0).float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(volume.sum(dim=1), torch.ones(2, 4, 6))
    assert not volume.requires_grad


@pytest.mark.parametrize("backend", ["grid_sample", "embedding_bag"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_positions_that_are_none_are_out_of_view(backend, value):
    current, earlier, cells = example()
    cells[1, 2] = FAR_OUTSIDE
    expected = cost_volume(current, earlier, cells, backend=backend)
    cells[1, 2, ..., 0] = value
    torch.testing.assert_close(cost_volume(current, earlier, cells, backend=backend), expected)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    b=st.integers(1, 2),
    groups=st.integers(1, 3),
    depths=st.integers(1, 4),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    mark=st.sampled_from(["position", "zero_channel"]),
)
def test_both_forms_agree(seed, b, groups, depths, height, width, mark):
    current, earlier, cells = example(seed, b, 4 * groups, depths, height, width)
    earlier = (earlier - 0.5).relu()  # half of it is exactly zero, as behind a ReLU
    if mark == "zero_channel":  # on a cell's centre, rounding decides whether a neighbour counts a millionth or nothing
        cells = cells.where((cells - cells.round()).abs() > 1e-3, cells + 0.01)
    one, other = (
        cost_volume(current, earlier, cells, out_of_view=mark, backend=backend)
        for backend in ("grid_sample", "embedding_bag")
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_official_mark_takes_dark_features_for_out_of_view():
    """A match in the middle of the picture is punished because one channel of the features happens to be zero."""
    current, _, cells = example(depths=2)
    earlier = current.clone()
    earlier[:, 4] = 0.0
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    cells[:, 0] = torch.stack([x, y], dim=-1)  # the right depth
    cells[:, 1] = torch.stack([x, y], dim=-1) / 2
    cells[:, 1, ..., 0] += 0.25
    right = cost_volume(current, earlier, cells)
    official = cost_volume(current, earlier, cells, out_of_view="zero_channel")
    torch.testing.assert_close(right, official)  # everything is marked alike, so that the softmax hides it
    earlier[:, 4, :, 3:] = 0.5
    assert not torch.allclose(right, cost_volume(current, earlier, cells, out_of_view="zero_channel"), atol=1e-2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"earlier": torch.rand(2, 8, 4, 5)}, r"earlier \(2, 8, 4, 5\)"),
        ({"cells": torch.rand(2, 5, 4, 5, 2)}, r"expected \(2, 'D', 4, 6, 2\)"),
        ({"out_of_view": "nowhere"}, "out_of_view='nowhere'"),
        ({"backend": "cuda"}, "backend='cuda'"),
    ],
)
def test_wrong_arguments(changes, words):
    current, earlier, cells = example()
    arguments = {"earlier": earlier, "cells": cells, "out_of_view": "position", "backend": "auto", **changes}
    with pytest.raises(ValueError, match=words):
        cost_volume(
            current,
            arguments["earlier"],
            arguments["cells"],
            out_of_view=arguments["out_of_view"],
            backend=arguments["backend"],
        )
    with pytest.raises(ValueError, match="7 channels are no whole number of groups of 4"):
        cost_volume(current[:, :7], earlier[:, :7], cells, out_of_view="zero_channel")
