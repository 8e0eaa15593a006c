"""The pieces between the pictures and the answer, one by one."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from fusionocc_cases import camera_ring, little_config, random_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionocc_core.grids import DepthBins, VoxelGrid
from fusionocc_core.layers.cross_modal import CrossModalFusion, CrossModalNet, DepthSegConfig, kept_cells
from fusionocc_core.layers.view_transform import (
    Cameras,
    Lift,
    LiftConfig,
    camera_vectors,
    cameras_at,
    frustum_points,
    frustum_samples,
    measured_depth_bins,
    voxel_indices,
)
from fusionocc_core.layers.volume_encoder import LssFpn3d, OccupancyHead, ResNet3d, ResNet3dConfig

BINS = DepthBins(start=1.0, stop=5.0, step=0.5)
GRID = VoxelGrid(frame="ego", lower=(-8.0, -8.0, -1.0), upper=(8.0, 8.0, 3.0), voxel_size=(1.0, 1.0, 1.0))


def rig(cameras=4, size=(32, 48)):
    """Cameras that look outwards, without augmentation."""
    height, width = size
    k = torch.tensor([[30.0, 0.0, width / 2], [0.0, 30.0, height / 2], [0.0, 0.0, 1.0]])
    return Cameras(
        intrinsics_BN33=k.repeat(1, cameras, 1, 1),
        image_aug_BN44=torch.eye(4).repeat(1, cameras, 1, 1),
        cam2keyego_BN44=camera_ring(cameras).float()[None],
        bev_aug_B44=torch.eye(4)[None],
    )


# measured depth


@pytest.mark.parametrize(
    ("metres", "index"),
    [(0.0, 0), (0.6, 0), (0.999, 0), (1.0, 1), (1.49, 1), (1.5, 2), (4.999, 8), (5.0, 0), (80.0, 0)],
)
def test_bin_of_a_measured_depth(metres, index):
    depth = torch.zeros(1, 1, 16, 32)
    depth[0, 0, 3, 20] = metres
    bins = measured_depth_bins(depth, BINS, 16)
    assert bins.tolist() == [[[[0, index]]]]


def test_nearest_point_of_a_cell_counts():
    depth = torch.zeros(2, 3, 32, 32)
    depth[1, 2, 16:, :16] = 4.2
    depth[1, 2, 30, 15] = 2.1
    bins = measured_depth_bins(depth, BINS, 16)
    assert bins[1, 2].tolist() == [[0, 0], [3, 0]]
    assert bins.sum() == 3


def test_depth_maps_that_are_no_whole_number_of_cells_are_refused():
    with pytest.raises(ValueError, match="30 x 32 pixels"):
        measured_depth_bins(torch.zeros(1, 1, 30, 32), BINS, 16)


# hidden depth labels


@pytest.mark.parametrize("drop", [0.0, 0.25, 0.49, 1.0])
def test_share_of_hidden_cells(drop):
    torch.manual_seed(0)
    kept = kept_cells(torch.Size((200, 100)), drop)
    assert abs(1 - kept.float().mean() - drop) < 0.015


def test_labels_are_hidden_in_training_only():
    config = DepthSegConfig(mid_channels=4, feature_channels=2, aspp_channels=2, depth_label_drop=1.0)
    net = CrossModalNet(config, 3, num_depths=4, num_classes=2)
    features, bins, vectors = torch.randn(2, 3, 4, 4), torch.randint(0, 5, (2, 4, 4)), torch.randn(2, 27)
    seen = []
    net.depth_encoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    net.train()(features, bins, vectors)
    net.eval()(features, bins, vectors)
    assert not seen[0].any()
    assert torch.equal(seen[1].argmax(dim=1)[bins > 0], bins[bins > 0] - 1)
    assert torch.equal(seen[1].sum(dim=1), (bins > 0).float())


def test_gates_are_crossed_and_can_only_raise():
    fusion = CrossModalFusion(4).eval()
    camera, depth = torch.rand(2, 4, 3, 5), torch.rand(2, 4, 3, 5)
    with torch.no_grad():
        out = fusion(camera, depth)
        fusion.spatial_d[2].bias.fill_(3.0)
        raised = fusion(camera, depth)
    assert (out >= torch.cat([camera, depth], dim=1)).all()
    assert (raised[:, :4] > out[:, :4]).all()  # the gate of depth scales the camera's half
    assert torch.equal(raised[:, 4:], out[:, 4:])


# camera vectors


def test_camera_vector_entries():
    batch = random_batch(little_config(), samples=2, cameras=3)
    bev = torch.eye(4).repeat(2, 1, 1)
    bev[1, 0, 0] = -1.0
    cameras = cameras_at(replace(batch, bev_aug_B44=bev), 1)
    vectors = camera_vectors(cameras, batch.cam2keyego_BTN44[:, 0])
    assert vectors.shape == (2, 3, 27)
    k, aug = cameras.intrinsics_BN33[1, 2], cameras.image_aug_BN44[1, 2]
    expected = [k[0, 0], k[1, 1], k[0, 2], k[1, 2], *aug[0, [0, 1, 3]], *aug[1, [0, 1, 3]], -1.0, 0.0, 0.0, 1.0, 1.0]
    assert torch.equal(vectors[1, 2, :15], torch.tensor(expected))
    assert torch.equal(vectors[1, 2, 15:].view(3, 4), batch.cam2keyego_BTN44[1, 0, 2, :3])


# frustum


def test_official_and_correct_sample_positions():
    official = LiftConfig(frustum_pixels="corner_aligned", frustum_depths="lower_edges", voxel_rounding="truncate")
    theirs = frustum_samples(official, BINS, (32, 48), 16)
    ours = frustum_samples(LiftConfig(), BINS, (32, 48), 16)
    assert theirs.shape == ours.shape == (8, 2, 3, 3)
    assert theirs[0, 0, :, 0].tolist() == [0.0, 23.5, 47.0]
    assert ours[0, 0, :, 0].tolist() == [7.5, 23.5, 39.5]
    assert ours[0, :, 0, 1].tolist() == [7.5, 23.5]
    assert theirs[:3, 0, 0, 2].tolist() == [1.0, 1.5, 2.0]
    assert ours[:3, 0, 0, 2].tolist() == [1.25, 1.75, 2.25]


def test_a_sample_lies_where_its_pixel_and_depth_say():
    """Projecting the frustum's points back with the whole chain gives the samples."""
    cameras = rig()
    aug = torch.tensor([[0.5, 0.1, 0.0, 3.0], [-0.1, 0.5, 0.0, 7.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    bev = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
    cameras = replace(cameras, image_aug_BN44=aug.repeat(1, 4, 1, 1), bev_aug_B44=bev[None])
    samples = frustum_samples(LiftConfig(), BINS, (32, 48), 16)
    points = frustum_points(samples, cameras)[0]
    for camera in range(4):
        flat = torch.cat([points[camera].reshape(-1, 3), torch.ones(48, 1)], dim=1)
        in_camera = (torch.linalg.inv(cameras.cam2keyego_BN44[0, camera]) @ torch.linalg.inv(bev) @ flat.T)[:3]
        pixels = cameras.intrinsics_BN33[0, camera] @ in_camera
        seen = torch.stack([pixels[0] / pixels[2], pixels[1] / pixels[2], pixels[2], torch.ones(48)])
        torch.testing.assert_close((aug @ seen)[:3].T.view(samples.shape), samples, atol=1e-3, rtol=1e-4)


def test_rounding_to_voxels():
    points = torch.tensor([[-8.0, 7.99, -1.0], [-8.4, -9.1, 2.9], [0.0, 0.5, 3.0]])
    assert voxel_indices(points, GRID, "floor").tolist() == [[0, 15, 0], [-1, -2, 3], [8, 8, 4]]
    assert voxel_indices(points, GRID, "truncate").tolist() == [[0, 15, 0], [0, -1, 3], [8, 8, 4]]


# lift


def make_lift(size=(32, 48), config=None):
    return Lift(config or LiftConfig(), bins=BINS, grid=GRID, image_size=size, stride=16).eval()


def test_one_cell_at_one_depth_lands_in_one_voxel():
    """Camera 0 looks along +x from (0.3, 0, 1.6); the cell at the optical axis, 3.25 m away, is at (3.55, 0, 1.6)."""
    lift, cameras = make_lift(), rig()
    cameras.intrinsics_BN33[..., 0, 2], cameras.intrinsics_BN33[..., 1, 2] = 23.5, 23.5
    cameras.cam2keyego_BN44[..., 1, 3] += 0.2
    depth, feature = torch.zeros(1, 4, 8, 2, 3), torch.zeros(1, 4, 2, 2, 3)
    depth[0, 0, 4, 1, 1] = 0.75
    feature[0, 0, :, 1, 1] = torch.tensor([2.0, -4.0])
    volume = lift(depth, feature, cameras)
    assert volume.shape == (1, 2, 4, 16, 16)
    assert volume.nonzero().tolist() == [[0, 0, 2, 8, 11], [0, 1, 2, 8, 11]]
    assert volume[0, :, 2, 8, 11].tolist() == [1.5, -3.0]


@pytest.mark.parametrize(("axis", "dimension"), [(0, 4), (1, 3)])
def test_mirroring_bev_aug_mirrors_the_lifted_volume(axis, dimension):
    lift, cameras = make_lift(), rig()
    torch.manual_seed(0)
    depth, feature = torch.rand(1, 4, 8, 2, 3), torch.randn(1, 4, 5, 2, 3)
    cameras.cam2keyego_BN44[..., :2, 3] += torch.tensor([0.137, 0.071])  # nothing on the faces of voxels
    mirror = torch.eye(4)
    mirror[axis, axis] = -1.0
    plain = lift(depth, feature, cameras)
    mirrored = lift(depth, feature, replace(cameras, bev_aug_B44=mirror[None]))
    assert plain.abs().sum() > 10
    assert (plain - mirrored).abs().max() > 0.1
    torch.testing.assert_close(mirrored, plain.flip(dimension), atol=1e-5, rtol=1e-5)


def test_truncation_pools_points_below_the_grid_too():
    """The official habit: with it, samples of up to one voxel below a lower face are counted in the first voxels."""
    cameras = rig()
    cameras.cam2keyego_BN44[..., 2, 3] = -1.2  # cameras 0.2 m below the floor of the grid
    depth, feature = torch.full((1, 4, 8, 2, 3), 0.125), torch.ones(1, 4, 1, 2, 3)
    correct = make_lift()(depth, feature, cameras)
    official = make_lift(config=LiftConfig(voxel_rounding="truncate"))(depth, feature, cameras)
    assert official[:, :, 0].sum() > correct[:, :, 0].sum()
    assert torch.equal(official[:, :, 1:, 1:, 1:], correct[:, :, 1:, 1:, 1:])


def test_plans_are_kept_while_nothing_moves(monkeypatch):
    lift, cameras = make_lift(), rig()
    made = []
    plan = Lift.plan
    monkeypatch.setattr(Lift, "plan", lambda self, cameras: made.append(cameras) or plan(self, cameras))
    depth, feature = torch.rand(1, 4, 8, 2, 3), torch.randn(1, 4, 5, 2, 3)
    first = lift(depth, feature, cameras)
    assert torch.equal(lift(depth, feature, replace(cameras)), first)
    assert len(made) == 1
    pose = cameras.cam2keyego_BN44.clone()
    pose[0, 0, 0, 3] += 1e-4
    moved = replace(cameras, cam2keyego_BN44=pose)
    lift(depth, feature, moved)
    lift(depth, feature, cameras)
    assert len(made) == 2
    for step in range(Lift.KEPT_PLANS):
        pose = pose.clone()
        pose[0, 0, 0, 3] += 1.0 + step
        lift(depth, feature, replace(cameras, cam2keyego_BN44=pose))
    lift(depth, feature, cameras)
    assert len(made) == 3 + Lift.KEPT_PLANS
    lift.train()(depth, feature, cameras)
    assert len(made) == 4 + Lift.KEPT_PLANS


def test_a_plan_made_in_inference_mode_serves_a_backward_pass():
    lift, cameras = make_lift(), rig()
    depth, feature = torch.rand(1, 4, 8, 2, 3), torch.randn(1, 4, 5, 2, 3)
    with torch.inference_mode():
        lift(depth, feature, cameras)
    feature.requires_grad_()
    lift(depth, feature, cameras).sum().backward()
    assert feature.grad.abs().sum() > 0


@pytest.mark.parametrize("field", ["frustum_pixels", "frustum_depths", "voxel_rounding"])
def test_unknown_lift_choices_are_refused(field):
    with pytest.raises(ValueError, match=f"LiftConfig.{field}='nearest'"):
        LiftConfig(**{field: "nearest"})


# volume encoder


@settings(max_examples=10, deadline=None)
@given(channels=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)), width=st.integers(1, 5))
def test_neck_equals_upsampling_before_the_convolution(channels, width):
    neck = LssFpn3d(channels, width).eval()
    maps = [torch.randn(2, c, 8 // f, 8 // f, 12 // f) for c, f in zip(channels, (1, 2, 4), strict=True)]
    with torch.no_grad():
        large = [F.interpolate(m, size=(8, 8, 12), mode="trilinear", align_corners=True) for m in maps]
        torch.testing.assert_close(neck(maps), neck.conv(torch.cat(large, dim=1)), atol=1e-5, rtol=1e-4)


def test_resnet_maps_and_recomputation():
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        net = ResNet3d(
            ResNet3dConfig(channels=(4, 6), blocks=(1, 2), strides=(1, 2), checkpoint_activations=recompute), 3
        ).train()
        maps = net(torch.linspace(-1, 1, 2 * 3 * 4 * 6 * 8).view(2, 3, 4, 6, 8))
        assert [tuple(m.shape) for m in maps] == [(2, 4, 4, 6, 8), (2, 6, 2, 3, 4)]
        sum(m.square().sum() for m in maps).backward()
        gradients.append(net.layers[0][0].conv1.conv.weight.grad)
    torch.testing.assert_close(*gradients)


def test_fresh_3d_convolutions_keep_the_size_of_gradients():
    """Kaiming-normal over the fan-out, as the official code starts its convolution modules."""
    conv = ResNet3d(ResNet3dConfig(channels=(32,), blocks=(1,), strides=(1,)), 16).layers[0][0].conv1.conv
    assert conv.weight.std().item() == pytest.approx((2 / (32 * 27)) ** 0.5, rel=0.05)


def test_head_turns_the_axes():
    """A voxel's scores depend on that voxel alone, and appear at [x, y, z]."""
    head = OccupancyHead(3, 5)
    volume = torch.randn(1, 3, 2, 4, 6)  # Z Y X
    changed = volume.clone()
    changed[0, :, 1, 2, 5] += 1.0
    with torch.no_grad():
        difference = (head(changed) - head(volume)).abs().sum(dim=1)
    assert head(volume).shape == (1, 5, 6, 4, 2)
    assert difference.nonzero().tolist() == [[0, 5, 2, 1]]


def test_resnet_configs_that_do_not_fit():
    with pytest.raises(ValueError, match="one positive number a stage"):
        ResNet3dConfig(channels=(4, 8), blocks=(1,), strides=(1, 2))


@pytest.mark.parametrize("changes", [{"feature_channels": 5}, {"depth_label_drop": 1.5}])
def test_depth_seg_configs_that_do_not_fit(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        DepthSegConfig(**changes)
