"""Maps for Nav2, pictures and the table of outputs: messages, their values, their costs. No nodes."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from output_cases import PROVENANCE, occupancy
from synthetic_sensors import GRID, LABELS

from fusionocc_core.geometry import transform
from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS, VoxelGrid
from fusionocc_core.structures import CameraImage, LidarSweep, Occupancy, SensorFrame
from fusionocc_ros import outputs
from fusionocc_ros.camera_views import look
from fusionocc_ros.convert import stamp_to_ns
from fusionocc_ros.drawing import occupancy_to_cloud, occupancy_to_foxglove, occupancy_to_markers
from fusionocc_ros.latency import LATENCIES, latencies_ms, latency_type
from fusionocc_ros.navigation import FREE, OCCUPIED, UNKNOWN, Robot, flat_grid, judge_columns, nav2_columns
from fusionocc_ros.occupancy_messages import occupancy_to_message
from fusionocc_ros.output_parameters import OutputParameters
from fusionocc_ros.outputs import OUTPUTS, Result, image_outputs
from fusionocc_ros.palettes import PALETTES, paint
from fusionocc_ros.parameters import NodeParameters
from fusionocc_ros.publishers import RateLimit

ROBOT = Robot(min_height=0.1, max_height=0.9, drivable=("road",), require_surface=True)


OTHERS, CAR, ROAD, NOTHING, UNSEEN = 0, 1, 2, LABELS.free, LABELS.unknown


def column(*levels: int) -> Occupancy:
    """GRID has four levels of half a metre, centres at -0.75, -0.25, 0.25 and 0.75 m."""
    labels = np.full(GRID.shape, LABELS.free, dtype=np.uint8)
    labels[2, 5] = levels
    return Occupancy(labels=labels, grid=GRID, label_set=LABELS, stamp_ns=1)


@pytest.mark.parametrize(
    ("levels", "expected", "without_surface"),
    [
        ((ROAD, NOTHING, NOTHING, NOTHING), FREE, FREE),
        ((ROAD, NOTHING, CAR, NOTHING), OCCUPIED, OCCUPIED),
        ((ROAD, CAR, NOTHING, NOTHING), FREE, FREE),  # a kerb below the band
        ((OTHERS, NOTHING, NOTHING, NOTHING), OCCUPIED, FREE),  # ground to stay off
        ((NOTHING, NOTHING, ROAD, NOTHING), FREE, FREE),  # a slope: the road itself is in the band
        ((NOTHING, NOTHING, NOTHING, NOTHING), UNKNOWN, FREE),
        ((ROAD, NOTHING, UNSEEN, NOTHING), UNKNOWN, UNKNOWN),
        ((ROAD, UNSEEN, NOTHING, NOTHING), FREE, FREE),  # below the band nothing is asked
        ((ROAD, NOTHING, UNSEEN, CAR), OCCUPIED, OCCUPIED),
        ((UNSEEN,) * 4, UNKNOWN, UNKNOWN),
        ((ROAD, NOTHING, 77, NOTHING), UNKNOWN, UNKNOWN),  # a byte that is no class
    ],
)
def test_a_column_is_judged_by_what_is_in_the_band_and_what_lies_below(
    levels: tuple[int, ...], expected: int, without_surface: int
) -> None:
    cells = judge_columns(column(*levels), np.eye(4), ROBOT)
    assert cells[2, 5] == expected
    assert judge_columns(column(*levels), np.eye(4), replace(ROBOT, require_surface=False))[2, 5] == without_surface


def test_what_hangs_above_the_band_does_not_block() -> None:
    low = replace(ROBOT, max_height=0.5)
    assert judge_columns(column(ROAD, NOTHING, NOTHING, CAR), np.eye(4), low)[2, 5] == FREE


def test_heights_are_measured_in_the_vehicles_frame() -> None:
    raised = transform(np.eye(3), (0, 0, 1.0))  # the grid's frame lies a metre above the vehicle's
    assert judge_columns(column(CAR, NOTHING, NOTHING, NOTHING), raised, ROBOT)[2, 5] == OCCUPIED
    assert judge_columns(column(NOTHING, NOTHING, CAR, NOTHING), raised, ROBOT)[2, 5] == UNKNOWN
    # Pitched by 45 degrees: what is a metre ahead in the grid lies that much lower or higher.
    pitch = transform(np.array([[1, 0, 0], [0, 1, 0], [1, 0, 1.0]]), (0, 0, 0))
    labels = np.full(GRID.shape, LABELS.free, dtype=np.uint8)
    labels[:, :, 2] = CAR  # at 0.25 m, x from -3.5 to 3.5
    cells = judge_columns(Occupancy(labels=labels, grid=GRID, label_set=LABELS, stamp_ns=1), pitch, ROBOT)
    assert (cells[:, 0] == OCCUPIED).tolist() == [True, True, True, True, True, False, False, False]
    below = judge_columns(
        Occupancy(labels=labels, grid=GRID, label_set=LABELS, stamp_ns=1), pitch, replace(ROBOT, require_surface=False)
    )
    assert (below[:, 0] == OCCUPIED).sum() == 1


def brute_force(cells: np.ndarray, grid: VoxelGrid, matrix: np.ndarray, point: tuple[float, float]) -> int:
    turn = np.linalg.inv(matrix[:2, :2])
    place = turn @ (np.asarray(point) - matrix[:2, 3])
    index = np.floor((place - grid.lower[:2]) / grid.voxel_size[:2]).astype(int)
    inside = (index >= 0).all() and (index < cells.shape).all()
    return int(cells[tuple(index)]) if inside else UNKNOWN


@settings(max_examples=25, deadline=None)
@given(st.floats(-math.pi, math.pi), st.floats(-500, 500), st.floats(-500, 500), st.integers(0, 2**32 - 1))
def test_a_flat_grid_in_another_frame_has_at_every_place_what_is_there(
    yaw: float, x: float, y: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    grid = VoxelGrid(frame="ego", lower=(-3.0, -2.0, 0.0), upper=(5.0, 4.0, 1.0), voxel_size=(1.0, 0.5, 0.5))
    cells = rng.choice(np.array([FREE, OCCUPIED, UNKNOWN], np.int8), grid.shape[:2])
    rotation = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    matrix = transform(rotation, (x, y, 3.0))
    flat = flat_grid(cells, grid, matrix)
    assert flat.resolution == 0.5
    rows, columns = flat.cells_YX.shape
    for _ in range(60):
        i, j = int(rng.integers(columns)), int(rng.integers(rows))
        point = (flat.lower[0] + (i + 0.5) * 0.5, flat.lower[1] + (j + 0.5) * 0.5)
        near = {
            brute_force(cells, grid, matrix, (point[0] + dx, point[1] + dy))
            for dx in (-1e-7, 1e-7)
            for dy in (-1e-7, 1e-7)
        }
        assert int(flat.cells_YX[j, i]) in near
    # All that is known lies inside.
    inner = np.array([[-2.9, -1.9], [4.9, 3.9], [-2.9, 3.9], [4.9, -1.9]]) @ rotation[:2, :2].T + (x, y)
    assert (inner > np.array(flat.lower)).all()
    assert (inner < np.array(flat.lower) + np.array([columns, rows]) * 0.5).all()
    np.testing.assert_allclose(np.array(flat.lower) / 0.5, np.round(np.array(flat.lower) / 0.5))


def test_nav2s_columns_tell_occupied_unknown_and_free_apart_bit_by_bit() -> None:
    columns = nav2_columns(column(CAR, UNSEEN, NOTHING, ROAD))
    word = int(columns[5 * 8 + 2])  # x runs fastest
    pairs = [(word >> z & 1, word >> (16 + z) & 1) for z in range(4)]
    assert pairs == [(1, 1), (1, 0), (0, 0), (1, 1)]
    assert word >> 4 & 0xFFF == 0
    assert (np.delete(columns, 5 * 8 + 2) == 0).all()
    tall = VoxelGrid(frame="ego", lower=(0, 0, 0), upper=(1, 1, 17), voxel_size=(1, 1, 1))
    too_tall = Occupancy(labels=np.zeros(tall.shape, np.uint8), grid=tall, label_set=LABELS, stamp_ns=1)
    with pytest.raises(ValueError, match=r"holds 16 levels a column, the grid has 17; set publish\.voxel_grid: false"):
        nav2_columns(too_tall)


# ---- the table of outputs --------------------------------------------------------------------------------------------


def camera(name: str = "FRONT", yaw: float = 0.0) -> CameraImage:
    optical = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0.0]])
    turn = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    return CameraImage(
        name=name,
        image=np.zeros((90, 160, 3), np.uint8),
        intrinsics=np.array([[100.0, 0, 79.5], [0, 100.0, 44.5], [0, 0, 1]]),
        cam2ego=transform(turn @ optical, (0.1, 0.2, 0.3)),
        ego2global=np.eye(4),
        stamp_ns=77,
    )


def sensors(ego2global: np.ndarray | None = None) -> SensorFrame:
    pose = np.eye(4) if ego2global is None else ego2global
    sweep = LidarSweep(
        points=np.zeros((1, 5), np.float32), lidar2ego=transform(np.eye(3), (0, 0, 1.8)), ego2global=pose, stamp_ns=5
    )
    return SensorFrame(stamp_ns=5, ego2global=pose, cameras=(camera(),), lidar=sweep)


def output(topic: str) -> outputs.Output:
    (found,) = [o for o in (*OUTPUTS, *image_outputs("FRONT")) if o.topic == topic]
    return found


def result(before: Occupancy, parameters: NodeParameters | None = None, **provenance: Any) -> Result:
    return Result(
        occupancy=before,
        provenance=replace(PROVENANCE, **{"sensors": sensors()} | provenance),
        parameters=parameters or NodeParameters(),
    )


def road(grid: VoxelGrid = OCC3D_GRID) -> Occupancy:
    labels = np.full(grid.shape, OCC3D_LABELS.free, dtype=np.uint8)
    labels[:, :, :2] = 11
    labels[120:130, 90:110, 2:6] = 4
    return Occupancy(labels=labels, grid=grid, label_set=OCC3D_LABELS, stamp_ns=9)


def test_a_map_for_nav2_lies_in_the_frame_that_nav2_knows() -> None:
    pose = transform(np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), (1000.0, 2000.0, 30.0))
    fixed = output("~/grid").make(result(road(), sensors=sensors(pose), fixed_frame="map"))
    assert (fixed.header.frame_id, stamp_to_ns(fixed.header.stamp)) == ("map", 9)
    assert fixed.info.resolution == pytest.approx(0.4)
    assert (fixed.info.origin.position.x, fixed.info.origin.position.y) == pytest.approx((960.0, 1960.0), abs=0.41)
    assert fixed.info.origin.orientation.w == 1.0
    cells = np.array(fixed.data, np.int8).reshape(fixed.info.height, fixed.info.width)
    # The car is 8 to 12 m ahead of the vehicle, which looks along y of the map.
    i = round((1000.0 - fixed.info.origin.position.x) / 0.4)
    j = round((2010.0 - fixed.info.origin.position.y) / 0.4)
    assert cells[j, i] == OCCUPIED
    assert cells[j - 20, i] == FREE
    base = output("~/grid").make(result(road(), sensors=sensors(pose)))
    assert (base.header.frame_id, base.info.width, base.info.height) == ("base_link", 200, 200)
    assert np.array(base.data, np.int8).reshape(200, 200)[100, 125] == OCCUPIED  # [y, x]
    assert output("~/grid").qos.durability.name == "TRANSIENT_LOCAL"
    cleared = output("~/grid").clear(base)
    assert set(cleared.data) == {UNKNOWN}
    assert len(cleared.data) == 200 * 200


def test_a_grid_in_the_lidars_frame_is_judged_by_heights_above_the_vehicle() -> None:
    low = VoxelGrid(frame="lidar", lower=(-4.0, -4.0, -2.0), upper=(4.0, 4.0, 0.0), voxel_size=(1.0, 1.0, 0.5))
    labels = np.full(low.shape, LABELS.free, dtype=np.uint8)
    labels[1, 2] = (2, 1, NOTHING, NOTHING)  # road at 0.05 m, a car at 0.55 m above the ground
    before = Occupancy(labels=labels, grid=low, label_set=LABELS, stamp_ns=1)
    parameters = NodeParameters(grid_min_height=0.2, grid_drivable_classes=("road",))
    message = output("~/grid").make(result(before, parameters))
    assert np.array(message.data, np.int8).reshape(8, 8)[2, 1] == OCCUPIED
    no_lidar = SensorFrame(stamp_ns=5, ego2global=np.eye(4), cameras=(camera(),), lidar=None)
    with pytest.raises(ValueError, match="there is no LiDAR that says where that is"):
        output("~/grid").make(result(before, parameters, sensors=no_lidar))


def test_a_camera_sees_the_near_face_of_the_first_voxel() -> None:
    grid = VoxelGrid(frame="ego", lower=(-10.0, -10.0, -3.0), upper=(10.0, 10.0, 3.0), voxel_size=(0.5, 0.25, 0.5))
    labels = np.full(grid.shape, LABELS.free, dtype=np.uint8)
    labels[30, :, :] = 1  # a wall at x = 5
    labels[36, :, :] = 2  # and one behind it
    confidence = np.where(labels == 1, 200, 10).astype(np.uint8)
    before = Occupancy(labels=labels, grid=grid, label_set=LABELS, stamp_ns=1, confidence=confidence)
    view = look(before, camera(), camera().cam2ego, width=80)
    assert view.depth.shape == (45, 80)
    np.testing.assert_allclose(view.depth, 4.9, atol=1e-5)
    assert (view.confidence == 200).all()
    # The centre of the coarse picture's first pixel is that between the fine one's first two.
    np.testing.assert_allclose(view.intrinsics, [[50, 0, 39.5], [0, 50, 22.0], [0, 0, 1]])
    back = look(before, camera(yaw=math.pi), camera(yaw=math.pi).cam2ego, width=16)
    assert np.isnan(back.depth).all()
    assert (back.confidence == 0).all()
    far = transform(np.eye(3), (50.0, 0, 0)) @ camera().cam2ego
    with pytest.raises(ValueError, match=r"camera FRONT is at \[50.1, 0.2, 0.3\] m, outside the grid"):
        look(before, camera(), far, width=16)


def test_pictures_of_depth_and_confidence_carry_their_calibration() -> None:
    labels = np.full(GRID.shape, LABELS.free, dtype=np.uint8)
    labels[7] = 1
    before = Occupancy(labels=labels, grid=GRID, label_set=LABELS, stamp_ns=1)
    given = result(before, NodeParameters(images_width=40), camera_frames={"FRONT": "front_optical"})
    depth = output("~/images/front/depth").make(given)
    info = output("~/images/front/camera_info").make(given)
    assert (depth.encoding, depth.width, depth.height, depth.step) == ("32FC1", 40, 22, 160)
    assert depth.header.frame_id == info.header.frame_id == "front_optical"
    assert stamp_to_ns(depth.header.stamp) == stamp_to_ns(info.header.stamp) == 77
    assert np.nanmin(np.frombuffer(depth.data, np.float32)) == pytest.approx(2.9)
    assert (info.width, info.height, info.k[0]) == (40, 22, 25.0)
    assert len(given.views) == 1
    with pytest.raises(ValueError, match="set parameter confidence"):
        output("~/images/front/confidence").make(given)
    sure = replace(before, confidence=np.full(GRID.shape, 9, np.uint8))
    picture = output("~/images/front/confidence").make(result(sure, NodeParameters(images_width=40)))
    assert (picture.encoding, max(picture.data)) == ("mono8", 9)
    with pytest.raises(ValueError, match="camera FRONT did not take part"):
        output("~/images/front/depth").make(result(before, sensors=None))


class Fields(SimpleNamespace):
    """In the place of a message whose package is not on PyPI: fields of the documented names, made on first use."""

    UINT8 = 1

    def __getattr__(self, name: str) -> Any:
        if name not in ("header", "pose", "stamp", "position", "orientation", "cell_size", "origin", "resolutions"):
            raise AttributeError(name)
        setattr(self, name, Fields())
        return getattr(self, name)


@pytest.fixture
def other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, names in (("nav2_msgs", ("VoxelGrid",)), ("foxglove_msgs", ("VoxelGrid", "PackedElementField"))):
        module, messages = ModuleType(package), ModuleType(f"{package}.msg")
        for name in names:
            setattr(messages, name, type(name, (Fields,), {}))
        module.msg = messages  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, package, module)
        monkeypatch.setitem(sys.modules, f"{package}.msg", messages)


@pytest.mark.usefixtures("other_packages")
def test_nav2s_and_foxgloves_grids_are_filled_as_their_documentation_says() -> None:
    """With stand-ins for the messages: whether the real ones take it, only an installation shows."""
    before = occupancy()
    message = output("~/voxel_grid").make(result(before))
    assert (message.size_x, message.size_y, message.size_z, len(message.data)) == (8, 8, 4, 64)
    assert (message.origin.x, message.origin.z, message.resolutions.z) == (-4.0, -1.0, 0.5)
    assert output("~/voxel_grid").load().__name__ == output("~/foxglove").load().__name__ == "VoxelGrid"
    message = output("~/foxglove").make(result(before))
    assert (message.row_count, message.column_count) == (8, 8)
    assert (message.slice_stride, message.row_stride, message.cell_stride) == (320, 40, 5)
    assert [(f.name, f.offset) for f in message.fields] == [
        ("red", 0),
        ("green", 1),
        ("blue", 2),
        ("alpha", 3),
        ("label", 4),
    ]
    cells = np.array(message.data, np.uint8).reshape(4, 8, 8, 5)
    for x, y, z in ((0, 0, 0), (3, 5, 2), (7, 0, 1), (1, 2, 3)):
        label = before.labels[x, y, z]
        at = z * message.slice_stride + y * message.row_stride + x * message.cell_stride
        assert message.data[at + 4] == cells[z, y, x, 4] == label
        drawn = label not in (LABELS.free, LABELS.unknown)
        assert cells[z, y, x, :4].tolist() == ([*LABELS.colors[label], 255] if drawn else [0] * 4)
    assert occupancy_to_foxglove(before, "f", sys.modules["foxglove_msgs.msg"]).frame_id == "f"


# ---- rates, palettes, latencies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("every_ms", "rate", "expected"), [(100, 10, 100), (100, 5, 50), (50, 10, 100), (50, 0, 200)])
@pytest.mark.parametrize("jitter_ms", [0, 8])
def test_a_topic_keeps_its_rate_and_does_not_halve_where_results_jitter(
    every_ms: int, rate: float, expected: int, jitter_ms: int
) -> None:
    now = [0.0]
    limit = RateLimit(lambda: now[0])
    rng = np.random.default_rng(0)
    passed = 0
    for k in range(10_000 // every_ms):
        now[0] = (k * every_ms + rng.uniform(-jitter_ms, jitter_ms)) / 1000
        passed += limit(rate)
    assert passed == pytest.approx(expected, abs=3)  # in ten seconds


def test_every_palette_has_a_colour_for_every_class_and_neighbours_differ() -> None:
    for name, palette in PALETTES.items():
        painted = paint(OCC3D_LABELS, name)
        assert (painted.names, painted.free) == (OCC3D_LABELS.names, OCC3D_LABELS.free)
        assert set(palette) <= set(OCC3D_LABELS.names)
        shared = name == "semantickitti"  # other vehicles are construction vehicles and trailers there
        assert len(set(painted.colors)) == OCC3D_LABELS.num - shared, name
        assert paint(LABELS, name).names == LABELS.names
    assert paint(OCC3D_LABELS, "nuscenes").colors[11] == (0, 207, 191)
    with pytest.raises(ValueError, match="palette: 'pink' is not one of default, "):
        paint(OCC3D_LABELS, "pink")


def test_latencies_have_autowares_names_and_add_up() -> None:
    times = {"preparation": 0.010, "network": 0.050, "decoding": 0.005, "total": 0.100}
    values = latencies_ms(times, publishing_s=0.002, pipeline_s=0.2, cycle_s=0.1)
    assert list(values) == list(LATENCIES)
    short = {topic.removeprefix("~/debug/"): value for topic, value in values.items()}
    assert short["cyclic_time_ms"] == pytest.approx(100)
    assert short["pipeline_latency_ms"] == pytest.approx(200)
    assert short["processing_time_ms"] == pytest.approx(67)
    parts = [short[f"processing_time/{part}_ms"] for part in ("preprocess", "inference", "postprocess")]
    assert sum(parts) == pytest.approx(short["processing_time_ms"])
    assert short["processing_time/total_ms"] == pytest.approx(102)
    assert "~/debug/cyclic_time_ms" not in latencies_ms(times, publishing_s=0, pipeline_s=0, cycle_s=None)
    assert latency_type("std_msgs").__name__ == "Float64"
    with pytest.raises(ValueError, match=r"debug\.messages: autoware needs one of autoware_internal_debug_msgs"):
        latency_type("autoware")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"grid_max_height": 0.1}, r"grid\.max_height: 0\.1 must lie above grid\.min_height, 0\.2"),
        ({"grid_drivable_classes": ()}, r"grid\.drivable_classes: expected names of classes"),
    ],
)
def test_parameters_of_outputs_that_contradict_each_other_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        NodeParameters(**changes)
    assert issubclass(NodeParameters, OutputParameters)


def test_making_messages_of_30000_voxels_is_fast_enough_for_a_sensor_rate() -> None:
    before = occupancy(OCC3D_GRID, fill=0.047)
    given = result(before)
    costs = {}
    for name, make in {
        "dense": lambda: occupancy_to_message(before, PROVENANCE),
        "sparse": lambda: occupancy_to_message(before, PROVENANCE, encoding="sparse"),
        "run_length": lambda: occupancy_to_message(before, PROVENANCE, encoding="run_length"),
        "cloud": lambda: occupancy_to_cloud(before, "base_link"),
        "markers": lambda: occupancy_to_markers(before, "base_link", alpha=1.0, surface_only=False),
        "grid": lambda: output("~/grid").make(given),
    }.items():
        seconds = []
        for _ in range(5):
            began = time.process_time()
            make()
            seconds.append(time.process_time() - began)
        costs[name] = min(seconds)
    print({name: f"{1e3 * cost:.1f} ms" for name, cost in costs.items()})  # noqa: T201 (shown with -s)
    # A conversion element by element takes 50 ms and more for each of these.
    assert max(costs.values()) < 0.02
