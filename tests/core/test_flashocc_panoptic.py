"""Objects told apart: the head for centres, its labels and losses, and the numbers of the voxels."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flashocc_cases import golden, little_config
from fusionocc_cases import random_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionocc_core.data.nuscenes_tables import Box
from fusionocc_core.data.things import instance_labels, things_of
from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS, SURROUNDOCC_GRID, VoxelGrid
from fusionocc_core.layers.center_head import NUSCENES_THINGS, UNTRAINED_BRANCHES, CenterHead, CenterHeadConfig
from fusionocc_core.losses import (
    LossConfig,
    Targets,
    collate_targets,
    compute_losses,
    draw_centers,
    heatmap_loss,
    panoptic_flashocc_losses,
    position_loss,
)
from fusionocc_core.losses.centers import MOST_OBJECTS, peak_radius
from fusionocc_core.models.flashocc import FlashOcc
from fusionocc_core.models.panoptic import assign_instances, decode_instances, find_centers
from fusionocc_core.predictor import Predictor
from fusionocc_core.structures import CameraImage, CenterOutputs, Occupancy, Outputs, SensorFrame

ID = {name: number for number, name in enumerate(OCC3D_LABELS.names)}
GRID = VoxelGrid(frame="ego", lower=(-8.0, -6.0, -1.0), upper=(8.0, 6.0, 5.4), voxel_size=(0.5, 0.5, 0.4))
SHAPE = {"num_classes": 10, "lower_xy": GRID.lower[:2], "column_size": GRID.voxel_size[:2], "shape_xy": GRID.shape[:2]}


def draw(objects):
    """Targets of (class, x, y, z, length, width) in metres."""
    rows = np.array([row[1:] for row in objects], dtype=float).reshape(-1, 5)
    channels = np.array([NUSCENES_THINGS.index(row[0]) for row in objects], dtype=int)
    return draw_centers(rows[:, :3], rows[:, 3:], channels, **SHAPE)


def predicted(targets, *, sure=8.0):
    """Outputs of a network that knows the targets."""
    offset, height = torch.zeros(1, 2, *GRID.shape[:2]), torch.zeros(1, *GRID.shape[:2])
    for (x, y), (dx, dy, z) in zip(targets.columns_BM2[0].tolist(), targets.position_BM3[0].tolist(), strict=True):
        if x >= 0:
            offset[0, :, x, y] = torch.tensor([dx, dy])
            height[0, x, y] = z
    return CenterOutputs(
        class_ids=tuple(ID[name] for name in NUSCENES_THINGS),
        heatmap_logits_BKXY=sure * (2 * targets.heatmap_BKXY - 1),
        offset_B2XY=offset,
        height_BXY=height,
    )


OBJECTS = [
    ("car", 3.1, 2.2, 0.4, 4.5, 1.9),
    ("car", -5.0, -3.3, 0.5, 4.2, 1.8),
    ("pedestrian", 4.2, 2.4, 0.9, 0.7, 0.7),
    ("truck", 7.9, 5.9, 1.2, 8.0, 2.5),
    ("bus", 9.0, 0.0, 1.0, 10.0, 3.0),  # outside
]


def test_there_and_back():
    """Objects drawn as labels, seen by a perfect network, are found where they were; the one outside is not."""
    [centers] = find_centers(predicted(draw(OBJECTS)), GRID)
    found = sorted((OCC3D_LABELS.names[k], *p) for k, p in zip(centers.class_ids_M, centers.positions_M3, strict=True))
    expected = sorted(row[:4] for row in OBJECTS if row[0] != "bus")
    assert [row[0] for row in found] == [row[0] for row in expected]
    np.testing.assert_allclose([row[1:] for row in found], [row[1:] for row in expected], atol=1e-5)
    assert (np.diff(centers.scores_M) <= 0).all()


def test_peaks():
    targets = draw(OBJECTS)
    heat = targets.heatmap_BKXY[0, NUSCENES_THINGS.index("car")]
    x, y = targets.columns_BM2[0, 0].tolist()
    assert (x, y) == (22, 16)
    assert heat[x, y] == 1
    radius = max(2, int(peak_radius(4.5 / 0.5, 1.9 / 0.5)))
    assert heat[x + radius, y] == pytest.approx(math.exp(-(radius**2) / (2 * ((2 * radius + 1) / 6) ** 2)), rel=1e-5)
    assert heat[x + radius + 1, y] == 0
    assert (targets.heatmap_BKXY == 1).sum() == 4
    assert (targets.columns_BM2[0, :, 0] >= 0).sum() == 4
    assert not targets.heatmap_BKXY[0, NUSCENES_THINGS.index("bus")].any()


@settings(max_examples=50, deadline=None)
@given(st.floats(0.5, 40), st.floats(0.5, 40), st.floats(0.05, 0.95))
def test_radius_is_the_smallest_root(length, width, overlap):
    """Of the first two cases the larger, of the third the positive root of a quadratic, each halved."""
    radius = peak_radius(length, width, overlap)
    area, edges = length * width, length + width
    roots = [
        edges / 2 + math.sqrt(edges**2 - 4 * area * (1 - overlap) / (1 + overlap)) / 2,
        edges + math.sqrt((2 * edges) ** 2 - 16 * (1 - overlap) * area) / 2,
        -overlap * edges + math.sqrt((2 * overlap * edges) ** 2 + 16 * overlap * (1 - overlap) * area) / 2,
    ]
    assert radius == pytest.approx(min(roots), rel=1e-6, abs=1e-6)
    assert radius > 0


def test_no_object_and_too_many():
    none = draw([])
    assert not none.heatmap_BKXY.any()
    assert (none.columns_BM2 == -1).all()
    many = draw([("pedestrian", 0.1, 0.1, 0.0, 0.5, 0.5)] * (MOST_OBJECTS + 3))
    assert (many.columns_BM2 >= 0).all()


def test_losses_of_centers_by_hand():
    generator = torch.Generator().manual_seed(0)
    targets = draw(OBJECTS)
    logits = torch.randn(targets.heatmap_BKXY.shape, generator=generator)
    expected, objects = 0.0, 0
    for logit, wanted in zip(logits.flatten().tolist(), targets.heatmap_BKXY.flatten().tolist(), strict=True):
        p = min(max(1 / (1 + math.exp(-logit)), 1e-4), 1 - 1e-4)
        objects += wanted == 1
        expected -= (1 - p) ** 2 * math.log(p) if wanted == 1 else (1 - wanted) ** 4 * p**2 * math.log(1 - p)
    torch.testing.assert_close(heatmap_loss(logits, targets.heatmap_BKXY), torch.tensor(expected / objects))
    exact = predicted(targets)
    assert position_loss(exact, targets) == 0
    off = replace(exact, offset_B2XY=exact.offset_B2XY + 0.25, height_BXY=exact.height_BXY - 1.0)
    torch.testing.assert_close(position_loss(off, targets), torch.tensor(1.5))


def test_losses_without_objects_have_finite_gradients():
    outputs = predicted(draw([]))
    logits = outputs.heatmap_logits_BKXY.clone().requires_grad_()
    offset = outputs.offset_B2XY.clone().requires_grad_()
    outputs = replace(outputs, heatmap_logits_BKXY=logits, offset_B2XY=offset)
    loss = heatmap_loss(logits, draw([]).heatmap_BKXY) + position_loss(outputs, draw([]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert not offset.grad.any()


def batch_of_targets():
    labels = torch.full((1, *GRID.shape), OCC3D_LABELS.free)
    labels[:, :, :, :3] = ID["driveable_surface"]
    samples = [Targets(labels_BXYZ=labels, centers=draw(OBJECTS)), Targets(labels_BXYZ=labels, centers=draw([]))]
    return collate_targets(samples).to("cpu")


def test_sum_of_the_losses_with_two_samples():
    targets = batch_of_targets()
    ones = predicted(draw(OBJECTS))
    centers = replace(
        ones,
        heatmap_logits_BKXY=ones.heatmap_logits_BKXY.expand(2, -1, -1, -1),
        offset_B2XY=ones.offset_B2XY.expand(2, -1, -1, -1) + 0.1,
        height_BXY=ones.height_BXY.expand(2, -1, -1),
    )
    logits = F.one_hot(targets.labels_BXYZ, OCC3D_LABELS.num).movedim(-1, 1) * 4.0
    config = panoptic_flashocc_losses(center_classes=NUSCENES_THINGS)
    losses = compute_losses(Outputs(logits_BKXYZ=logits, centers=centers), targets, config, OCC3D_LABELS)
    torch.testing.assert_close(losses.terms["center_position"], torch.tensor(0.25 * 0.2))
    torch.testing.assert_close(
        losses.terms["center_heatmap"], heatmap_loss(centers.heatmap_logits_BKXY, targets.centers.heatmap_BKXY)
    )
    assert len(losses.terms) == 6


def test_missing_centers_are_named():
    targets = batch_of_targets()
    logits = torch.zeros(2, OCC3D_LABELS.num, *GRID.shape)
    config = panoptic_flashocc_losses(center_classes=NUSCENES_THINGS)
    with pytest.raises(ValueError, match=r"loss center_heatmap has a weight, but outputs.centers is None"):
        compute_losses(Outputs(logits_BKXYZ=logits), targets, config, OCC3D_LABELS)
    outputs = Outputs(logits_BKXYZ=logits, centers=predicted(draw(OBJECTS)))
    with pytest.raises(ValueError, match=r"targets.centers is None"):
        compute_losses(outputs, replace(targets, centers=None), config, OCC3D_LABELS)
    with pytest.raises(ValueError, match="do not fit the network's"):
        compute_losses(outputs, targets, config, OCC3D_LABELS)  # one sample against two
    with pytest.raises(ValueError, match="need the classes of the heatmaps"):
        LossConfig(center_heatmap=1.0)
    with pytest.raises(ValueError, match=r"Targets.centers: 1 of 2 samples"):
        collate_targets([replace(targets, centers=None), targets])


def test_numbers_equal_the_recorded_ones(goldens):
    """Where the official table of classes is right; barriers and cones, which it mistakes, get theirs here."""
    recorded = golden(goldens / "flashocc_panoptic_nearest_assign.npz")
    labels = np.full(OCC3D_GRID.shape, OCC3D_LABELS.free, np.uint8)
    voxels = tuple(recorded["occ_idx"].T.numpy())
    labels[voxels] = recorded["occ_lab"].numpy()
    table = {int(det): occ for occ, det in enumerate(recorded["occind2detind"].tolist()) if det >= 0}
    table |= {8: ID["barrier"], 9: ID["traffic_cone"]}
    class_ids = np.array([table[int(det)] for det in recorded["inst_cls"]])
    numbers = assign_instances(labels, recorded["inst_xyz"].numpy(), class_ids)[voxels]
    theirs, occupied = recorded["out_at_idx"].numpy(), recorded["occ_lab"].numpy()
    official = np.array([0, *recorded["inst_id"].tolist()])[numbers]
    for name in ("bicycle", "car", "pedestrian", "truck"):
        mine = occupied == ID[name]
        assert mine.sum() >= 400
        np.testing.assert_array_equal(official[mine], theirs[mine])
    assert (numbers[occupied == ID["driveable_surface"]] == 0).all()
    for name, det in (("barrier", 8), ("traffic_cone", 9)):
        assert set(numbers[occupied == ID[name]]) == set(1 + np.flatnonzero(recorded["inst_cls"] == det))
        assert (theirs[occupied == ID[name]] == 0).all()


def test_nearest_center_first_of_two_and_none():
    labels = np.full((7, 1, 1), OCC3D_LABELS.free, np.uint8)
    labels[:, 0, 0] = [4, 4, 4, 4, 4, 7, 17]
    centers = np.array([[0, 0, 0], [4, 0, 0], [9, 9, 9]])
    numbers = assign_instances(labels, centers, np.array([4, 4, 10]))
    assert numbers.dtype == np.uint16
    assert numbers[:, 0, 0].tolist() == [1, 1, 1, 2, 2, 0, 0]
    assert not assign_instances(labels, centers[:0], np.array([], int)).any()


def test_every_heatmap_has_its_own_class():
    """The classes come from the label set by name, not from a table of numbers."""
    head = CenterHead(CenterHeadConfig(), 8, OCC3D_LABELS)
    assert [OCC3D_LABELS.names[k] for k in head.class_ids] == list(NUSCENES_THINGS)
    with pytest.raises(ValueError, match="'tram'"):
        CenterHead(CenterHeadConfig(classes=("tram",)), 8, OCC3D_LABELS)
    with pytest.raises(ValueError, match="each once"):
        CenterHeadConfig(classes=("car", "car"))


def test_branches_that_nobody_trains_change_nothing():
    torch.manual_seed(0)
    full = CenterHead(CenterHeadConfig(untrained_branches=True), 8, OCC3D_LABELS).eval()
    bare = CenterHead(CenterHeadConfig(), 8, OCC3D_LABELS).eval()
    spare = [name for name in full.state_dict() if name.split(".")[2] in UNTRAINED_BRANCHES]
    assert len(spare) == 3 * 8
    bare.load_state_dict({name: t for name, t in full.state_dict().items() if name not in spare}, strict=True)
    bev = torch.randn(1, 8, 6, 4)
    with torch.no_grad():
        one, other = full(bev), bare(bev)
    assert torch.equal(one.heatmap_logits_BKXY, other.heatmap_logits_BKXY)
    assert one.offset_B2XY.shape == (1, 2, 4, 6)
    assert {name for name, p in full.named_parameters() if not p.requires_grad} == {
        name for name in spare if "running" not in name and "num_batches" not in name
    }


def test_network_with_centers_learns_and_answers():
    torch.manual_seed(0)
    config = little_config(centers=CenterHeadConfig(channels=8))
    model = FlashOcc(config).train()
    batch = random_batch(config, samples=2)
    size = {"lower_xy": config.grid.lower[:2], "column_size": config.grid.voxel_size[:2]}
    one = draw_centers(
        np.array([[3.0, 2.0, 0.5]]),
        np.array([[4.5, 2.0]]),
        np.array([0]),
        num_classes=10,
        shape_xy=config.grid.shape[:2],
        **size,
    )
    labels = torch.full((1, *config.grid.shape), OCC3D_LABELS.free)
    labels[..., :4] = ID["car"]
    targets = collate_targets([Targets(labels_BXYZ=labels, centers=one)] * 2)
    losses_config = panoptic_flashocc_losses(center_classes=NUSCENES_THINGS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    values = []
    for _ in range(6):
        losses = compute_losses(model(batch), targets, losses_config, config.label_set)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        values.append({name: float(value.detach()) for name, value in losses.terms.items()})
    assert all(p.grad is not None for p in model.parameters())
    for name in ("center_heatmap", "center_position"):
        assert values[-1][name] < 0.8 * values[0][name]
    with torch.no_grad():
        outputs = model.eval()(batch)
    numbers = decode_instances(outputs.centers, np.full(config.grid.shape, ID["car"], np.uint8), config.grid)
    Occupancy(
        labels=np.zeros(config.grid.shape, np.uint8),
        instances=numbers,
        grid=config.grid,
        label_set=config.label_set,
        stamp_ns=0,
    )


def box(name, center, size=(4.0, 2.0, 1.6), points=5, yaw=0.0):
    c, s = math.cos(yaw), math.sin(yaw)
    return Box(
        center=np.array(center, float),
        size_lwh=np.array(size, float),
        rotation=np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]),
        name=name,
        token="",
        instance="",
        num_lidar_pts=points,
    )


def test_things_of_boxes():
    boxes = [
        box("vehicle.car", (1, 2, 0)),
        box("vehicle.car", (5, 2, 0), points=0),
        box("human.pedestrian.stroller", (0, 0, 0)),
        box("vehicle.bus.rigid", (-3, 0, 1)),
        box("movable_object.barrier", (4, 4, 0)),
    ]
    things = things_of(boxes, OCC3D_LABELS, ("bus", "car"))
    assert things.channels_M.tolist() == [1, 0]
    np.testing.assert_array_equal(things.centers_M3, [[1, 2, 0], [-3, 0, 1]])
    assert things_of([], OCC3D_LABELS, ("car",)).centers_M3.shape == (0, 3)
    with pytest.raises(ValueError, match="'occ3d' alone"):
        things_of(boxes, replace(OCC3D_LABELS, name="mine"), ("car",))


def test_numbers_of_the_truth():
    labels = np.full(GRID.shape, OCC3D_LABELS.free, np.uint8)
    boxes = [box("vehicle.car", (0, 0, 0.2)), box("vehicle.car", (5, 0, 0.2)), box("vehicle.truck", (0, 4, 0.2))]
    inside, beside, far = (16, 12, 2), (20, 12, 2), (0, 0, 2)  # beside: 0.25 m in front of the first car's box
    for voxel in (inside, beside, far, (26, 12, 2)):
        labels[voxel] = ID["car"]
    labels[16, 20, 2] = ID["bus"]  # in the truck's box, but no truck
    boxes.append(box("movable_object.debris", (-6, -4, 0.2)))
    labels[4, 4, 2] = ID["others"]  # in a box of its class, which has no objects
    numbers = instance_labels(labels, boxes, GRID, OCC3D_LABELS, NUSCENES_THINGS)
    assert (numbers[inside], numbers[beside], numbers[far], numbers[26, 12, 2]) == (1, 1, 0, 2)
    assert np.count_nonzero(numbers) == 3


def test_answers_refuse_numbers_that_do_not_fit():
    labels = np.zeros(SURROUNDOCC_GRID.shape, np.uint8)
    with pytest.raises(ValueError, match=r"Occupancy\.instances: int64"):
        Occupancy(
            labels=labels, instances=labels.astype(int), grid=SURROUNDOCC_GRID, label_set=OCC3D_LABELS, stamp_ns=0
        )


@pytest.mark.parametrize("centers", [CenterHeadConfig(channels=8), None])
def test_predictions_carry_numbers_where_the_network_finds_centers(centers):
    """Of one camera, without LiDAR."""
    torch.manual_seed(0)
    model = FlashOcc(little_config(centers=centers))
    eye = np.eye(4)
    picture = np.random.RandomState(0).randint(0, 255, (90, 160, 3)).astype(np.uint8)
    intrinsics = np.array([[80.0, 0.0, 80.0], [0.0, 80.0, 45.0], [0.0, 0.0, 1.0]])
    camera = CameraImage(name="c", image=picture, intrinsics=intrinsics, cam2ego=eye, ego2global=eye, stamp_ns=0)
    frame = SensorFrame(stamp_ns=0, ego2global=eye, cameras=(camera,), lidar=None)
    occupancy = Predictor(model, device="cpu")(frame)
    assert (occupancy.instances is None) == (centers is None)
    if occupancy.instances is not None:
        things = np.isin(occupancy.labels, [ID[name] for name in NUSCENES_THINGS])
        assert not occupancy.instances[~things].any()
