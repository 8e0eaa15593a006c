"""Palettes, differences, overlays, surfaces and pages, on volumes whose answer is known by hand."""

import base64
import json
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rich.table import Table
from view_cases import BUS, CAR, FREE, GRID, ROAD, UNKNOWN, box, camera, labels, lidar, moment, occupancy

from fusionocc_core.grids import OCC3D_LABELS, SURROUNDOCC_GRID, LabelSet
from fusionocc_core.metrics.truth import OccupancyTruth
from fusionocc_core.structures import Occupancy
from fusionocc_core.viz.difference import DIFFERENCE_LABELS, INVENTED, MISSED, RIGHT, WRONG_CLASS, difference
from fusionocc_core.viz.export import read_volume, write_volume
from fusionocc_core.viz.overlay import (
    camera_overlay,
    cloud_from_above,
    distance_colors,
    project_points,
)
from fusionocc_core.viz.palettes import DEFAULT, PALETTES, recolored, with_palette
from fusionocc_core.viz.report_page import ReportPage, check_report_path
from fusionocc_core.viz.scene_picture import HEIGHT, WIDTH, scene_picture
from fusionocc_core.viz.surface import surface_mask, surface_voxels
from fusionocc_core.viz.video import VideoWriter
from fusionocc_core.viz.view_frame import ViewFrame

# Machado et al. (2009), full severity, linear RGB.
WITHOUT_RED = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
WITHOUT_GREEN = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def least_difference(colors):
    """Of any two colours, in CIELAB (1976), for the eye to which they are most alike."""
    encoded = np.asarray(colors, float) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    least = np.inf
    for eye in (np.eye(3), np.array(WITHOUT_RED), np.array(WITHOUT_GREEN)):
        xyz = np.clip(linear @ eye.T, 0, 1) @ np.array(TO_XYZ).T / (0.95047, 1.0, 1.08883)
        f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
        lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
        apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + np.diag(np.full(len(lab), np.inf))
        least = min(least, apart.min())
    return least


class TestPalettes:
    def test_there_are_five_of_the_field_and_one_for_colour_blind_readers(self):
        assert set(PALETTES) == {
            DEFAULT, "flashocc", "surroundocc", "gaussianformer", "nuscenes", "semantickitti", "colorblind",
        }  # fmt: skip
        classes = [n for n in OCC3D_LABELS.names if n != "free"]
        for colors in PALETTES.values():
            assert list(colors) == classes

    def test_what_others_draw(self):
        """Of the tables in FlashOcc, SurroundOcc, GaussianFormer and nuscenes-devkit, where they differ."""
        assert PALETTES["flashocc"]["driveable_surface"] == (255, 0, 255)
        assert [PALETTES[p]["other_flat"] for p in ("flashocc", "surroundocc")] == [(175, 0, 75), (139, 137, 137)]
        assert [PALETTES[p]["motorcycle"] for p in ("surroundocc", "gaussianformer")] == [(200, 180, 0), (255, 127, 0)]
        assert PALETTES["nuscenes"]["car"] == (255, 158, 0)
        assert PALETTES["semantickitti"]["car"] == (100, 150, 245)

    def test_every_two_classes_stay_apart_for_colour_blind_readers(self):
        assert least_difference(list(PALETTES["colorblind"].values())) > 25
        for name in set(PALETTES) - {"colorblind"}:
            assert least_difference(list(PALETTES[name].values())) < 6

    def test_the_default_changes_nothing_and_free_keeps_its_colour(self):
        assert with_palette(OCC3D_LABELS, DEFAULT) == OCC3D_LABELS
        changed = recolored(occupancy(), "nuscenes")
        assert changed.label_set.colors[CAR] == (255, 158, 0)
        assert changed.label_set.colors[FREE] == OCC3D_LABELS.colors[FREE]
        np.testing.assert_array_equal(changed.labels, labels())

    def test_refuses_unknown_names_and_classes_without_a_colour(self):
        with pytest.raises(ValueError, match="palette='rainbow': expected one of fusionocc, flashocc"):
            with_palette(OCC3D_LABELS, "rainbow")
        strange = LabelSet(name="farm", names=("cow", "free"), colors=((1, 2, 3), (0, 0, 0)), free=1)
        with pytest.raises(ValueError, match="no colour for cow of label set 'farm'"):
            with_palette(strange, "nuscenes")


class TestDifference:
    truth = OccupancyTruth(labels=labels(), grid=GRID, label_set=OCC3D_LABELS)

    def test_each_kind_of_error_is_told(self):
        said = labels()
        said[22, 14, 1] = BUS
        said[23, 14, 1] = FREE
        said[10, 10, 5] = CAR
        said[0, 0, 0] = UNKNOWN  # a prediction that knows nothing there counts as free
        found = difference(occupancy(said), self.truth).labels
        assert found[22, 14, 1] == WRONG_CLASS
        assert found[23, 14, 1] == MISSED
        assert found[10, 10, 5] == INVENTED
        assert found[0, 0, 0] == MISSED
        counts = np.bincount(found.ravel(), minlength=5)
        assert counts[[WRONG_CLASS, MISSED, INVENTED]].tolist() == [1, 2, 1]
        assert counts[RIGHT] == (labels() != FREE).sum() - 3

    def test_what_nobody_saw_is_unknown(self):
        seen = np.zeros(GRID.shape, bool)
        seen[22, 14, 1] = True
        found = difference(occupancy(), replace(self.truth, mask_camera=seen))
        assert (found.labels == RIGHT).sum() == 1
        assert (found.labels == DIFFERENCE_LABELS.unknown).sum() == seen.size - 1
        whole = difference(occupancy(), replace(self.truth, mask_camera=seen), masked=False)
        assert (whole.labels == RIGHT).sum() == (labels() != FREE).sum()

    def test_volumes_that_cannot_be_compared(self):
        other = Occupancy(
            labels=np.full(SURROUNDOCC_GRID.shape, FREE, np.uint8),
            grid=SURROUNDOCC_GRID,
            label_set=OCC3D_LABELS,
            stamp_ns=1,
        )
        with pytest.raises(ValueError, match="cannot be compared"):
            difference(other, self.truth)
        assert moment(prediction=other).compared() is None
        assert moment(prediction=None).compared() is None


class TestSurface:
    @given(arrays(bool, st.tuples(*[st.integers(1, 5)] * 3)))
    @settings(max_examples=60, deadline=None)
    def test_it_is_what_has_an_open_side(self, solid):
        found = surface_mask(solid)
        for cell in np.ndindex(solid.shape):
            around = [tuple(np.add(cell, step)) for step in (*np.eye(3, dtype=int), *-np.eye(3, dtype=int))]
            inside = [all(0 <= v < n for v, n in zip(one, solid.shape, strict=True)) for one in around]
            is_open = any(not there or not solid[one] for one, there in zip(around, inside, strict=True))
            assert found[cell] == (solid[cell] and is_open)

    def test_voxels_come_class_by_class(self):
        found = surface_voxels(occupancy())
        assert found.classes() == sorted({ROAD, CAR, OCC3D_LABELS.names.index("vegetation")})
        cells = found.cells(found.of_class(CAR))
        assert (labels()[tuple(cells.T)] == CAR).all()
        assert len(cells) == 6 * 4 * 3 - 4 * 2 * 2  # the bottom lies on the road: two layers have a hidden middle
        assert surface_voxels(occupancy(np.full(GRID.shape, UNKNOWN, np.uint8))).classes() == []


class TestOverlay:
    def test_points_lie_where_the_pinhole_says_and_near_ones_hide_far_ones(self):
        front = camera()
        # The camera looks forward from (1, 0, 1.5): a point 10 m ahead, 1 m to the left, 0.5 m up.
        sweep = lidar((41.0, 4.0, 3.5), (11.0, 1.0, 2.0), (-5.0, 0.0, 1.0), (1.2, 0.0, 1.5))
        uv, depths, inside = project_points(sweep.points, np.linalg.inv(front.cam2ego), front)
        np.testing.assert_allclose(uv[1], (160 - 16, 90 - 8), atol=1e-6)
        np.testing.assert_allclose(uv[0], uv[1] + (0, 0), atol=1e-6)
        assert depths[1] == pytest.approx(10)
        assert inside.tolist() == [True, True, False, False]
        picture = camera_overlay(front, np.eye(4), lidar=sweep)
        np.testing.assert_array_equal(picture[82, 144], distance_colors(np.array([10.0]))[0])
        assert (picture != front.image).any(axis=-1).sum() == 1
        assert (front.image == 90).all()

    def test_what_the_vehicle_drove_between_the_stamps_is_in_it(self):
        moved = np.eye(4)
        moved[0, 3] = 2.0
        later = replace(lidar((9.0, 1.0, 2.0)), ego2global=moved)
        expected = camera_overlay(camera(), np.eye(4), lidar=lidar((11.0, 1.0, 2.0)))
        np.testing.assert_array_equal(camera_overlay(camera(), moved, lidar=later), expected)

    def test_brightness_falls_with_distance(self):
        shades = distance_colors(np.array([0.0, 10, 20, 30, 40, 50, 500])).astype(float) @ (0.3, 0.6, 0.1)
        assert (np.diff(shades) <= 0).all()
        assert shades[0] > shades[5] + 100

    def test_voxels_and_boxes(self):
        picture = camera_overlay(camera(), np.eye(4), occupancy=occupancy(), opacity=1.0)
        ahead = picture[118, 160].astype(float)  # the car, 3 to 6 m ahead
        blue = np.asarray(OCC3D_LABELS.colors[CAR], float)
        assert ahead @ blue / np.linalg.norm(ahead) / np.linalg.norm(blue) > 0.99
        assert (picture[20] == 90).all()  # sky
        outlined = camera_overlay(camera(), np.eye(4), boxes=[box(), box((-9.0, 0, 0))])
        assert (outlined != 90).any(axis=-1).sum() > 200
        assert (camera_overlay(camera(), np.eye(4), boxes=[box((-9.0, 0, 0))]) == 90).all()

    def test_a_cloud_from_above(self):
        picture = cloud_from_above(lidar((25.0, 0.1, 0.0), (0.0, -25.0, 9.0), (60.0, 0.0, 0.0)), 100)
        coloured = np.argwhere((picture != picture[0, 0]).any(axis=-1)).tolist()
        assert coloured == [[25, 49], [50, 75]]

    def test_refuses(self):
        with pytest.raises(ValueError, match=r"opacity=1\.5"):
            camera_overlay(camera(), np.eye(4), opacity=1.5)


class TestScenePicture:
    @pytest.mark.parametrize(
        "changes",
        [{}, {"prediction": None}, {"truth": None}, {"sensors": None}, {"prediction": None, "truth": None}],
        ids=["all", "truth", "prediction", "volumes", "sensors"],
    )
    def test_it_has_one_size_whatever_there_is(self, changes):
        picture = scene_picture(moment(**changes), title="street", palette="colorblind")
        assert picture.shape == (HEIGHT, WIDTH, 3)
        # Below the title something is drawn in the left column.
        assert picture[60:500, 20:1100].std() > 3

    def test_wrong_voxels_are_shown_as_wrong(self):
        wrong = np.asarray(DIFFERENCE_LABELS.colors[WRONG_CLASS])
        with_truth, without = scene_picture(moment()), scene_picture(moment(truth=None))
        assert (with_truth == wrong).all(axis=-1).sum() > 400
        assert (without == wrong).all(axis=-1).sum() == 0

    def test_a_moment_without_anything_is_refused(self):
        with pytest.raises(ValueError, match="nothing to show"):
            ViewFrame(stamp_ns=1, ego2global=np.eye(4))


class TestVolumeFiles:
    def test_what_is_written_is_read_back(self, tmp_path):
        before = occupancy(confidence=np.full(GRID.shape, 7, np.uint8))
        write_volume(tmp_path / "1.npz", before)
        after = read_volume(tmp_path / "1.npz", stamp_ns=10**9)
        np.testing.assert_array_equal(after.labels, before.labels)
        assert (after.grid, after.stamp_ns) == (before.grid, before.stamp_ns)

    def test_damaged_files_and_labels_without_a_class(self, tmp_path):
        (tmp_path / "1.npz").write_bytes(b"PK\x03\x04 no archive")
        with pytest.raises(ValueError, match="not a whole volume"):
            read_volume(tmp_path / "1.npz", stamp_ns=1)
        volume = labels()
        volume[0, 0, 0] = 40
        write_volume(tmp_path / "2.npz", occupancy(volume, confidence=np.zeros(GRID.shape, np.uint8)))
        with pytest.raises(ValueError, match=r"label 40 is no class of 'occ3d' \(0\.\.17\): it has no colour"):
            read_volume(tmp_path / "2.npz", stamp_ns=1)


class TestVideo:
    def test_pictures_come_back_in_order(self, tmp_path):
        path = tmp_path / "a.mp4"
        with VideoWriter(path, fps=4.0) as writer:
            for value in (30, 120, 220):
                writer.write(np.full((64, 96, 3), value, np.uint8))
            assert not path.exists()  # whole or not at all
        reader = cv2.VideoCapture(str(path))
        assert reader.get(cv2.CAP_PROP_FPS) == 4.0
        assert int(reader.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little") == b"VP90"
        values = [reader.read()[1].mean() for _ in range(3)]
        np.testing.assert_allclose(values, (30, 120, 220), atol=4)
        assert not reader.read()[0]

    def test_a_failure_leaves_nothing_behind(self, tmp_path):
        def interrupted():
            with VideoWriter(tmp_path / "a.mp4", fps=2) as writer:
                writer.write(np.zeros((64, 96, 3), np.uint8))
                raise KeyError

        with pytest.raises(KeyError):
            interrupted()
        assert list(tmp_path.iterdir()) == []

    def test_refuses(self, tmp_path):
        with pytest.raises(ValueError, match=r"ends in \.mp4"):
            VideoWriter(tmp_path / "a.avi", fps=2)
        with pytest.raises(ValueError, match="fps=0"):
            VideoWriter(tmp_path / "a.mp4", fps=0)
        with pytest.raises(FileNotFoundError, match="no folder"):
            VideoWriter(tmp_path / "no" / "a.mp4", fps=2)
        with VideoWriter(tmp_path / "a.mp4", fps=2) as writer:
            with pytest.raises(ValueError, match="even sides"):
                writer.write(np.zeros((63, 96, 3), np.uint8))
            writer.write(np.zeros((64, 96, 3), np.uint8))
            with pytest.raises(ValueError, match="first was 96x64"):
                writer.write(np.zeros((64, 64, 3), np.uint8))


class TestReportPage:
    def page(self):
        page = ReportPage("A <title>", "sub & title")
        page.settings({"data": "a<b"})
        table = Table(title="numbers", caption="what")
        table.add_column("class")
        table.add_column("%")
        table.add_row("car & co", "12.50")
        page.table(table)
        page.picture(np.full((4, 6, 3), (200, 10, 10), np.uint8), "red")
        return page

    def test_words_are_escaped_and_nothing_is_fetched(self):
        text = self.page().html()
        assert "<h1>A &lt;title&gt;</h1>" in text
        assert "<dd>a&lt;b</dd>" in text
        assert "<td>car &amp; co</td><td>12.50</td>" in text
        assert not re.search(r"""(src|href)=["'](?!data:)|@import|url\(|https?://""", text)
        picture = base64.b64decode(re.search(r"data:image/png;base64,([^\"]+)", text)[1])
        assert cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)[0, 0].tolist() == [10, 10, 200]

    def test_voxels_are_the_visible_ones_with_their_open_sides(self):
        page = ReportPage("x")
        page.voxels({"prediction": occupancy()})
        data = json.loads(re.search(r'application/json">(.*?)</script>', page.html(), re.S)[1])
        volume = data["volumes"][0]
        voxels = np.frombuffer(base64.b64decode(volume["voxels"]), np.uint8).reshape(-1, 5)
        assert len(voxels) == len(surface_voxels(occupancy()).index_M)
        corner = voxels[(voxels[:, :3] == (22, 14, 3)).all(axis=1)][0]
        assert corner[3] == CAR
        assert corner[4] == 0b100101  # open towards -x, -y and +z
        assert volume["colors"][CAR] == list(OCC3D_LABELS.colors[CAR])
        assert data["grid"]["lower"] == list(GRID.lower)

    def test_refuses(self, tmp_path):
        page = ReportPage("x")
        with pytest.raises(ValueError, match="0 volumes on 0 grids"):
            page.voxels({})
        with pytest.raises(ValueError, match=r"ends in \.html"):
            check_report_path(tmp_path / "a.pdf")
        with pytest.raises(FileNotFoundError, match="no folder"):
            check_report_path(tmp_path / "no" / "a.html")
