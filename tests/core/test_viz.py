"""Pictures of volumes whose every visible pixel can be worked out by hand."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS, SURROUNDOCC_GRID, VoxelGrid
from fusionocc_core.structures import UNTRAINED, CameraImage, LidarSweep, Occupancy, SensorFrame, Timings
from fusionocc_core.viz.birds_eye import UNKNOWN_GROUND, birds_eye
from fusionocc_core.viz.canvas import PAPER, WARNING, fit
from fusionocc_core.viz.faces import voxel_faces
from fusionocc_core.viz.overview import camera_mosaic, class_counts, legend, overview
from fusionocc_core.viz.perspective import View, default_view, perspective
from fusionocc_core.viz.volume import forward_volume, light_volume, palette

FREE, UNKNOWN = OCC3D_LABELS.free, OCC3D_LABELS.unknown
CAR, ROAD, BUS, TREE = (OCC3D_LABELS.names.index(n) for n in ("car", "driveable_surface", "bus", "vegetation"))
SMALL = VoxelGrid(frame="ego", lower=(-4.0, -6.0, -1.0), upper=(4.0, 6.0, 3.0), voxel_size=(0.5, 0.5, 0.5))


def occupancy(grid=SMALL, fill=FREE, **kwargs):
    labels = np.full(grid.shape, fill, np.uint8)
    return Occupancy(labels=labels, grid=grid, label_set=OCC3D_LABELS, stamp_ns=7, **kwargs)


def color(label):
    return OCC3D_LABELS.colors[label]


def camera(name, yaw_degrees, size=(90, 160), value=100):
    yaw = np.radians(yaw_degrees)
    cam2ego = np.eye(4)
    forward = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    cam2ego[:3, :3] = np.stack([np.cross(forward, (0, 0, 1)), (0, 0, -1), forward], axis=1)
    return CameraImage(
        name=name,
        image=np.full((*size, 3), value, np.uint8),
        intrinsics=np.array([[100.0, 0, 80], [0, 100, 45], [0, 0, 1]]),
        cam2ego=cam2ego,
        ego2global=np.eye(4),
        stamp_ns=0,
    )


def frame(*cameras):
    cameras = cameras or (camera("CAM_FRONT", 0.0),)
    return SensorFrame(stamp_ns=7, ego2global=np.eye(4), cameras=cameras, lidar=None, scene="scene-1")


def hue_distance(a, b):
    """0 for the same colour at any brightness, up to 1."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    return 1.0 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def has_color(picture, rgb):
    return bool((picture == np.asarray(rgb)).all(axis=-1).any())


class TestBirdsEye:
    def test_forward_is_up_and_left_is_left(self):
        occ = occupancy()
        occ.labels[15, 0, 0] = CAR  # the front right corner of a 16 x 24 grid
        occ.labels[0, 23, 0] = BUS  # the rear left corner
        picture = birds_eye(occ, voxel_pixels=3, marks=False)
        assert picture.shape == (48, 72, 3)
        assert picture.dtype == np.uint8
        assert (picture[:3, -3:] == color(CAR)).all()
        assert (picture[-3:, :3] == color(BUS)).all()
        assert (picture.reshape(-1, 3) == PAPER).all(axis=1).sum() == 48 * 72 - 2 * 9

    def test_the_topmost_voxel_wins_and_flat_ground_keeps_its_colour(self):
        occ = occupancy()
        occ.labels[:, :, 0] = ROAD
        occ.labels[8, 12, 6] = TREE
        picture = birds_eye(occ, voxel_pixels=1, marks=False)
        assert (picture[16 - 1 - 8, 24 - 1 - 12] == color(TREE)).all()
        assert (picture[-1, 0] == color(ROAD)).all()

    def test_what_stands_high_throws_a_shadow_away_from_the_sun(self):
        occ = occupancy()
        occ.labels[:, :, 0] = ROAD
        occ.labels[8, 12, 1:5] = TREE
        picture = birds_eye(occ, voxel_pixels=1, marks=False).astype(int).sum(axis=-1)
        row, column = 16 - 1 - 8, 24 - 1 - 12
        # The sun is behind and to the left, so the shadow falls ahead (up) and to the right.
        assert picture[row - 1, column + 1] < picture[row + 2, column - 3]

    def test_free_unknown_and_ids_without_a_class(self):
        occ = occupancy()
        occ.labels[:8] = UNKNOWN
        occ.labels[8:, :12] = 40
        picture = birds_eye(occ, voxel_pixels=1, marks=False)
        assert (picture[8:] == UNKNOWN_GROUND).all()
        assert (picture[:8, :12] == PAPER).all()
        assert (picture[:7, 13:] == (128, 128, 128)).all()

    def test_the_lidar_grid_is_turned_so_that_its_y_points_up(self):
        occ = occupancy(SURROUNDOCC_GRID)
        occ.labels[199, 0, 0] = CAR  # right (x) and rear (-y)
        picture = birds_eye(occ, voxel_pixels=1, marks=False)
        assert (picture[199, 199] == color(CAR)).all()

    def test_marks_show_the_vehicle_at_the_origin(self):
        picture = birds_eye(occupancy(OCC3D_GRID, TREE))
        assert (picture[400 - 4, 400] == (255, 255, 255)).all()
        assert not has_color(birds_eye(occupancy(OCC3D_GRID, TREE), marks=False), (255, 255, 255))

    def test_scale_bar_is_ten_metres_long(self):
        picture = birds_eye(occupancy(OCC3D_GRID))
        dark = (picture[-60:, :150] == (32, 36, 42)).all(axis=-1)
        assert dark.sum(axis=1).max() == 100  # 10 m of 0.4 m voxels at 4 pixels

    def test_refuses_what_it_cannot_draw(self):
        with pytest.raises(ValueError, match="voxel_pixels=0"):
            birds_eye(occupancy(), voxel_pixels=0)
        with pytest.raises(ValueError, match=r"frame='odom'"):
            birds_eye(occupancy(replace(SMALL, frame="odom")))


class TestPerspective:
    def test_a_known_voxel_lies_where_the_camera_says(self):
        occ = occupancy(OCC3D_GRID)
        index = (150, 60, 5)
        occ.labels[index] = CAR
        view = View(eye=(0.0, -10.0, 12.0), target=(20.0, -16.0, 1.0))
        picture = perspective(occ, height=360, width=640, view=view)
        seen = perspective(occupancy(OCC3D_GRID), height=360, width=640, view=view)
        changed = (picture != seen).any(axis=-1)
        x, y, z = view.rotation() @ (OCC3D_GRID.centers(np.array(index)) - view.eye)
        focal = 180 / np.tan(np.radians(view.field_of_view) / 2)
        row, column = np.argwhere(changed).mean(axis=0)
        assert abs(column - (320 + focal * x / z)) < 1.0
        assert abs(row - (180 + focal * y / z)) < 1.0
        blue = picture[changed].astype(int)
        assert (blue[:, 2] > blue[:, 0] + 40).mean() > 0.8

    def test_near_hides_far_whatever_the_order_of_memory(self):
        view = View(eye=(-20.0, 0.1, 1.0), target=(0.0, 0.1, 1.0), field_of_view=20.0)
        for near, far in ((CAR, BUS), (BUS, CAR)):
            occ = occupancy()
            occ.labels[2, :, :], occ.labels[12, :, :] = near, far
            middle = perspective(occ, height=60, width=60, view=view)[30, 30]
            assert hue_distance(middle, color(near)) < 0.1 < hue_distance(middle, color(far))

    @given(seed=st.integers(0, 2**31), eye=st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.floats(-3, 9)))
    @settings(max_examples=25, deadline=None)
    def test_painting_order_never_puts_a_hidden_face_on_top(self, seed, eye):
        """Whatever the volume and the eye: of two faces on one line of sight the nearer is painted later."""
        rng = np.random.default_rng(seed)
        grid = VoxelGrid(frame="ego", lower=(-3.0, -2.0, -1.0), upper=(3.0, 2.0, 1.0), voxel_size=(0.5, 0.5, 0.5))
        occ = occupancy(grid)
        occ.labels[rng.random(grid.shape) < 0.3] = CAR
        eye = np.asarray(eye) + 0.013
        faces = voxel_faces(forward_volume(occ), palette(OCC3D_LABELS.colors), eye)
        origin, extent = faces.origin_F3.astype(float), faces.extent_F3.astype(float)
        rays = rng.normal(size=(60, 3))
        start = origin - eye
        plane_F = start[np.arange(len(start)), faces.axis_F]
        for ray in rays:
            distance_F = plane_F / ray[faces.axis_F]
            place = ray * distance_F[:, None]
            inside = ((place >= start - 1e-6) & (place <= start + extent + 1e-6)) | (extent == 0)
            hit = np.flatnonzero(inside.all(axis=1) & (distance_F > 1e-6))
            if len(hit):
                assert distance_F[hit[-1]] <= distance_F[hit].min() + 1e-4

    def test_only_surfaces_become_faces(self):
        occ = occupancy(SMALL, CAR)
        volume = forward_volume(occ)
        faces = voxel_faces(volume, palette(OCC3D_LABELS.colors), np.array([-20.0, 0.0, 10.0]))
        assert len(faces.axis_F) == 16 * 24 + 24 * 8  # the top and the side that looks at the eye

    @pytest.mark.parametrize("fill", [FREE, UNKNOWN, CAR])
    def test_uniform_volumes(self, fill):
        picture = perspective(occupancy(SMALL, fill), height=90, width=160)
        assert picture.shape == (90, 160, 3)
        assert picture.dtype == np.uint8
        assert picture.std() > 1.0

    def test_free_and_unknown_look_alike_here(self):
        pictures = [perspective(occupancy(SMALL, fill), height=90, width=160) for fill in (FREE, UNKNOWN)]
        np.testing.assert_array_equal(*pictures)

    def test_the_same_volume_gives_the_same_picture(self):
        occ = occupancy()
        occ.labels[4:9, 3:7, 0:3] = BUS
        first = perspective(occ, height=120, width=200)
        np.testing.assert_array_equal(first, perspective(occ, height=120, width=200))
        occ.labels[8, 6, 2] = CAR
        assert (first != perspective(occ, height=120, width=200)).any()

    def test_an_eye_inside_the_volume_draws_what_lies_ahead(self):
        occ = occupancy(OCC3D_GRID)
        occ.labels[:, :, 0] = ROAD
        picture = perspective(occ, height=90, width=160, view=View(eye=(0.0, 0.0, 1.5), target=(10.0, 0.0, 1.0)))
        below = picture[-8:].reshape(-1, 3).mean(axis=0)
        assert np.abs(below - color(ROAD)).max() < 60

    @pytest.mark.parametrize("grid", [OCC3D_GRID, SURROUNDOCC_GRID, SMALL])
    @pytest.mark.parametrize("aspect", [0.5, 1.0, 16 / 9])
    def test_the_default_camera_sees_the_whole_grid(self, grid, aspect):
        volume = forward_volume(occupancy(grid))
        view = default_view(volume, aspect)
        corners = np.array(np.meshgrid(*zip(volume.lower, volume.upper, strict=True))).reshape(3, -1).T
        x, y, z = view.rotation() @ (corners - view.eye).T
        half = np.tan(np.radians(view.field_of_view) / 2)
        assert (z > 0).all()
        assert (np.abs(x) <= aspect * half * z).all()
        assert (np.abs(y) <= half * z).all()
        assert max(np.abs(x / z / half / aspect).max(), np.abs(y / z / half).max()) > 0.95

    def test_forty_thousand_voxels_take_less_than_a_second_of_computing(self):
        occ = occupancy(OCC3D_GRID)
        rng = np.random.default_rng(0)
        occ.labels[:, :, 2] = np.where(rng.random((200, 200)) < 0.6, ROAD, FREE)
        occ.labels[rng.random(OCC3D_GRID.shape) < 0.025] = TREE
        assert 35_000 < len(occ.occupied()) < 45_000
        perspective(occ)
        best = min(self.seconds(perspective, occ) for _ in range(2))
        assert best < 2.0  # about 0.5 s on an idle core; generous for a loaded machine

    @staticmethod
    def seconds(function, *arguments):
        began = time.process_time()
        function(*arguments)
        return time.process_time() - began

    def test_refuses_cameras_and_sizes_without_a_picture(self):
        with pytest.raises(ValueError, match="straight above"):
            View(eye=(0.0, 0.0, 9.0), target=(0.0, 0.0, 0.0))
        with pytest.raises(ValueError, match=r"field_of_view=0\.0"):
            View(eye=(0.0, 0.0, 9.0), target=(1.0, 0.0, 0.0), field_of_view=0.0)
        with pytest.raises(ValueError, match="height=0"):
            perspective(occupancy(), height=0)


class TestLight:
    def test_open_ground_is_fully_lit_and_solid_cells_are_dark(self):
        solid = np.zeros((8, 8, 4), bool)
        solid[:, :, 0] = True
        light = light_volume(solid, np.full(3, 0.4))
        assert (light.sky[1:-1, 1:-1, 2:] == 1).all()
        assert (light.sun[1:-1, 1:-1, 2:] == 1).all()
        assert (light.sky[1:-1, 1:-1, 1] == 0).all()

    def test_under_a_roof_it_is_dark(self):
        solid = np.zeros((20, 20, 6), bool)
        solid[:, :, 4] = True
        light = light_volume(solid, np.full(3, 0.4))
        assert light.sun[10, 10, 1] == 0
        assert light.sky[10, 10, 4] < 0.6


class TestLegendAndMosaic:
    def test_legend_holds_the_classes_that_occur_and_no_other(self):
        occ = occupancy()
        occ.labels[0, 0, :3], occ.labels[1, 0, 0] = CAR, TREE
        counts = class_counts(occ)
        assert counts[CAR] == 3
        assert counts[FREE] == occ.labels.size - 4
        picture = legend(OCC3D_LABELS, counts=counts)
        assert has_color(picture, color(CAR))
        assert has_color(picture, color(TREE))
        assert not has_color(picture, color(BUS))
        everything = legend(OCC3D_LABELS)
        assert all(has_color(everything, color(i)) for i in range(OCC3D_LABELS.num) if i != FREE)

    @pytest.mark.parametrize("width", [60, 200, 700, 1900])
    def test_legend_keeps_to_its_width(self, width):
        assert legend(OCC3D_LABELS, width=width).shape[1] == width

    def test_legend_of_nothing_says_so(self):
        assert (legend(OCC3D_LABELS, counts=class_counts(occupancy())) != PAPER).any()

    def test_cameras_lie_as_they_look(self):
        names = {"F": 0, "FL": 55, "FR": -55, "BL": 110, "B": 180, "BR": -110}
        cameras = [camera(name, yaw, value=40 + 30 * n) for n, (name, yaw) in enumerate(names.items())]
        picture = camera_mosaic(frame(*cameras[::-1]), width=606)
        height, width = picture.shape[:2]
        order = [
            [int(picture[height * (2 * r + 1) // 4, width * (2 * c + 1) // 6, 0]) for c in range(3)] for r in range(2)
        ]
        value = {name: 40 + 30 * n for n, name in enumerate(names)}
        assert order == [[value["FL"], value["F"], value["FR"]], [value["BL"], value["B"], value["BR"]]]

    @pytest.mark.parametrize("count", [0, 1, 2, 4, 7])
    def test_any_number_of_cameras_of_mixed_sizes(self, count):
        cameras = tuple(camera(f"C{n}", 360 / max(count, 1) * n, size=(90 + 10 * n, 160)) for n in range(count))
        points = np.ones((3, 5), np.float32)
        lidar = LidarSweep(points=points, lidar2ego=np.eye(4), ego2global=np.eye(4), stamp_ns=7)
        seen = SensorFrame(stamp_ns=7, ego2global=np.eye(4), cameras=cameras, lidar=lidar)
        assert camera_mosaic(seen, width=300).shape[1] == 300

    def test_fit_keeps_proportions(self):
        field = fit(np.zeros((50, 100, 3), np.uint8), 100, 100)
        dark = (field == 0).all(axis=-1)
        assert dark.sum() == 50 * 100
        assert dark[25:75].all()


class TestOverview:
    def test_untrained_weights_are_printed_and_trained_ones_are_not_accused(self):
        fresh = occupancy(OCC3D_GRID, model="fusionocc-tiny", trained_on=UNTRAINED)
        fresh.labels[:, :, 0] = ROAD
        picture = overview(frame(), fresh)
        assert picture.shape[1] == 1920
        assert has_color(picture[:74], WARNING)
        trained = overview(frame(), replace(fresh, trained_on="simulated street"))
        assert not has_color(trained, WARNING)
        assert (picture[:74] != trained[:74]).any()
        np.testing.assert_array_equal(picture[74:], trained[74:])

    def test_title_and_latency_enter_the_picture(self):
        occ = occupancy()
        timed = replace(occ, timings=Timings(prepare_s=0.1, network_s=0.2, decode_s=0.3))
        plain = overview(frame(), occ)
        assert (overview(frame(), timed)[40:70] != plain[40:70]).any()
        assert (overview(frame(), occ, title="another")[:40] != plain[:40]).any()

    @pytest.mark.data
    def test_genuine_label_and_genuine_pictures(self, shared):
        from fusionocc_core.data.nuscenes import NuScenesFrames

        labels = np.load(shared / "data" / "occ3d_sample" / "labels.npz")["semantics"]
        real = NuScenesFrames(shared / "data" / "nuscenes_scene0061")[0]
        occ = replace(occupancy(OCC3D_GRID), labels=labels, stamp_ns=real.stamp_ns)
        picture = overview(real, occ)
        occurring = [i for i in np.unique(labels) if i != FREE]
        assert len(occurring) == 10
        assert all(has_color(picture, color(i)) for i in occurring)
