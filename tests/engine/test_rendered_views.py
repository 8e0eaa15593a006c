"""What a network sees, rendered: against volumes of known shape, and the command."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from labelled_sample_tree import write_labelled_tree
from PIL import Image
from uniocc_recipes import rendered

from fusionocc_core.checkpoints import ModelCard, save_model
from fusionocc_core.cli import main
from fusionocc_core.data.render_rays import RayCamera
from fusionocc_core.engine.rendered_views import (
    DepthErrors,
    certain_scores,
    depth_errors,
    render_view,
    rendering_for,
    view_camera,
)
from fusionocc_core.geometry import transform
from fusionocc_core.grids import OCC3D_LABELS
from fusionocc_core.models.renderocc_presets import renderocc_swinb
from fusionocc_core.models.uniocc_presets import uniocc_tiny
from fusionocc_core.presets import make_network
from fusionocc_core.structures import LidarSweep, Outputs
from fusionocc_core.viz.canvas import PAPER
from fusionocc_core.viz.rendered import class_picture, depth_picture, side_by_side

KEY = transform(np.eye(3), [600.0, 1200.0, 1.0])


def test_a_surface_lies_a_quarter_above_the_middle_of_its_voxel():
    labels = torch.full((1, 200, 200, 16), 17)
    labels[..., 2] = 11  # from z = -0.2 to 0.2
    outputs = Outputs(logits_BKXYZ=certain_scores(labels, OCC3D_LABELS))
    assert (outputs.logits_BKXYZ.argmax(dim=1) == labels).all()
    late = []
    for height in np.arange(3.0, 3.2, 0.02):
        camera = ahead(position=(0.0, 0.0, height), pitch_degrees=90.0, field_of_view=10.0)
        view = render_view(outputs, uniocc_tiny(), camera, KEY, width=16)
        assert set(view.labels_HW.ravel()) == {11}
        late.append(view.distance_HW[4:5, 7:9].mean() - (height - 0.25 * 0.4))
    assert max(late) - min(late) < 0.25  # a ray ends at the first place in the layer; these are 0.2 m apart
    assert abs(np.mean(late) - 0.1) < 0.05


@pytest.fixture(scope="module")
def street():
    """A road, and a wall 20 m ahead, as certain class scores."""
    logits = torch.full((1, 18, 200, 200, 16), -20.0)
    logits[:, 17] = 20.0
    for where, label in (
        ((slice(None), slice(None), slice(0, 2)), 11),
        ((slice(150, 160), slice(None), slice(2, 14)), 15),
    ):
        logits[(0, 17, *where)] = -20.0
        logits[(0, label, *where)] = 20.0
    return Outputs(logits_BKXYZ=logits)


def ahead(**changes) -> RayCamera:
    settings = {"position": (0.0, 0.0, 1.6), "yaw_degrees": 0.0, "pitch_degrees": 0.0, "field_of_view": 60.0}
    return view_camera(KEY, **{**settings, **changes}, image_size=(90, 160))


def test_a_wall_and_a_road_are_where_they_are(street):
    view = render_view(street, uniocc_tiny(), ahead(), KEY, width=16)
    assert view.distance_HW.shape == view.labels_HW.shape == (9, 16)
    assert set(view.labels_HW[3:5, 6:10].ravel()) == {15}
    np.testing.assert_allclose(view.distance_HW[4, 7:9], 20.0, atol=0.5)
    assert set(view.labels_HW[8].ravel()) == {11}
    down = (8.5 * 10 - 45) / (80 / np.tan(np.radians(30)))  # of the last row
    expected = (1.6 + 0.2) / down * np.hypot(1, down)  # the road's surface is at z = -0.2
    np.testing.assert_allclose(view.distance_HW[8, 7:9], expected, rtol=0.1)
    back = render_view(street, uniocc_tiny(), ahead(yaw_degrees=180.0, pitch_degrees=-30.0), KEY, width=16)
    assert np.isnan(back.distance_HW).all()
    assert (back.labels_HW == OCC3D_LABELS.free).all()
    left = render_view(street, uniocc_tiny(), ahead(yaw_degrees=40.0), KEY, width=16)
    assert np.nanmean(left.distance_HW[4]) > np.nanmean(view.distance_HW[4]), "the wall is oblique there"


def test_errors_are_those_of_points_on_the_grid(street):
    points = np.zeros((4, 5), np.float32)
    points[:, :3] = [[20.0, 0.0, 1.6], [20.0, 3.0, 1.6], [12.0, -1.0, 1.6], [70.0, 0.0, 1.6]]
    sweep = LidarSweep(points=points, lidar2ego=np.eye(4), ego2global=KEY, stamp_ns=0)
    errors = depth_errors(street, uniocc_tiny(), ahead(), sweep, KEY)
    assert errors.blind == 0
    assert len(errors.error_R) == 3, "what lies beyond the grid cannot be right"
    np.testing.assert_allclose(errors.error_R, [0.2, 0.2, 8.3], atol=0.4)
    assert errors.median_absolute < 0.6
    assert np.isnan(DepthErrors(error_R=np.zeros(0, np.float32), blind=3).median_absolute)


def test_official_densities_are_rendered_as_they_are_meant_but_at_metric_distances():
    official = rendering_for(renderocc_swinb())
    assert (official.opacity, official.align, official.depth_mode) == ("official", "official", "metric")
    assert rendering_for(uniocc_tiny()).opacity == "log_odds"


@pytest.mark.parametrize("wrong", [{"field_of_view": 0.0}, {"position": (np.nan, 0.0, 0.0)}, {"yaw_degrees": np.inf}])
def test_cameras_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="view_camera"):
        ahead(**wrong)


def test_pictures_show_what_is_not_there_as_paper():
    depth = np.array([[1.0, 60.0, np.nan, 500.0]])
    picture = depth_picture(depth, farthest=60.0)
    assert tuple(picture[0, 2]) == PAPER
    assert tuple(picture[0, 1]) == tuple(picture[0, 3]) != tuple(picture[0, 0])
    red, blue = picture[0, 0].astype(int), picture[0, 1].astype(int)
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    labels = class_picture(np.array([[11, 17, 255]]), OCC3D_LABELS)
    assert tuple(labels[0, 0]) == OCC3D_LABELS.colors[11]
    assert tuple(labels[0, 1]) == tuple(labels[0, 2]) == PAPER
    both = side_by_side([("a", picture.repeat(2, axis=0)), ("b", picture.repeat(2, axis=0))], width=40)
    assert both.shape[1] == 2 * 48 + 8
    with pytest.raises(ValueError, match="one picture or more"):
        side_by_side([], width=4)


def test_the_command_writes_pictures_and_says_how_far_off_depth_is(tmp_path, capsys):
    tree = write_labelled_tree(tmp_path / "data")
    torch.manual_seed(0)
    network = make_network(rendered().model).eval()
    network.card = ModelCard(preset="rendered", trained_on="untrained weights")
    save_model(network, tmp_path / "net.safetensors", card=network.card)
    common = ["render", "--data", str(tree.root), "--checkpoint", str(tmp_path / "net.safetensors")]
    out = tmp_path / "out"
    camera = "CAM_FRONT"
    assert main([*common, "--out", str(out), "--cameras", camera, "--width", "16", "--keyframe", "1"]) == 0
    told = capsys.readouterr().out
    assert camera in told
    assert "untrained weights" in told
    (file,) = out.glob(f"*_{camera}.png")
    assert np.asarray(Image.open(file)).shape[1] == 3 * 488 + 8
    blind = []
    for more in ([], ["--answer"]):
        assert main([*common, "--out", str(out), "--keyframe", "1", "--no-pictures", *more]) == 0
        (row,) = [line for line in capsys.readouterr().out.splitlines() if " all " in line]
        blind.append(row.split("│")[3].strip())
    assert blind[0] != blind[1] == "100.0%", "a fresh network decides for free space, whatever its density"
    pose = ["--pose", "0", "0", "1.6", "90", "10", "--width", "16"]
    assert main([*common, "--out", str(out), *pose]) == 0
    assert len(list(out.glob("*_pose.png"))) == 1
    capsys.readouterr()
    for wrong, message in (
        (["--cameras", "CAM_UP"], "--cameras CAM_UP"),
        (["--keyframe", "99"], "keyframes 0 to"),
        (["--width", "0"], "expected 1 or more"),
    ):
        assert main([*common, "--out", str(out), *wrong]) == 2
        assert message in capsys.readouterr().err
