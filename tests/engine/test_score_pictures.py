"""The pictures of an evaluation say what the numbers say."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from fusionocc_core.engine.score_pictures import (
    DARK,
    LIGHT,
    UNSEEN,
    ErrorMap,
    class_bars,
    confusion_matrix,
    write_pictures,
)
from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS
from fusionocc_core.metrics import OccupancyScore, OccupancyTruth
from fusionocc_core.structures import Occupancy

FREE = OCC3D_LABELS.free


def scene(mask=True):
    labels = np.full(OCC3D_GRID.shape, FREE, np.uint8)
    labels[:, :, 2] = 11
    seen = np.zeros(OCC3D_GRID.shape, bool)
    seen[:, 100:, :4] = True  # only the left half was observed
    truth = OccupancyTruth(
        labels=labels, grid=OCC3D_GRID, label_set=OCC3D_LABELS, mask_camera=seen if mask else None, mask_lidar=None
    )
    said = labels.copy()
    said[150:, 100:, :4] = 4  # ahead on the left everything is wrong
    said[:10, 100:, 2] = 4  # behind on the left one voxel of four
    return Occupancy(labels=said, grid=OCC3D_GRID, label_set=OCC3D_LABELS, stamp_ns=0), truth


def report_of(prediction, truth):
    score = OccupancyScore(OCC3D_GRID, OCC3D_LABELS, rays=False)
    score.add(prediction, truth)
    return score.report()


def test_error_map_has_forward_up_and_left_on_the_left():
    errors = ErrorMap(OCC3D_GRID)
    errors.add(*scene())
    view = errors.draw("title")[60:860, 20:820]  # four pixels a column
    assert tuple(view[20, 20]) == DARK  # ahead, left: all wrong
    assert tuple(view[300, 20]) == LIGHT  # a little behind that: all right
    quarter = tuple((np.array(LIGHT) * 0.75 + np.array(DARK) * 0.25).round().astype(int))
    assert tuple(view[790, 20]) == pytest.approx(quarter, abs=1)
    assert tuple(view[300, 780]) == UNSEEN


def test_error_map_without_mask_looks_at_all_that_is_known():
    prediction, truth = scene(mask=False)
    labels = truth.labels.copy()
    labels[:, :50] = OCC3D_LABELS.unknown
    errors = ErrorMap(OCC3D_GRID)
    errors.add(prediction, replace(truth, labels=labels))
    assert errors.mask == "none"
    assert set(np.unique(errors.counts_2XY[0, :, :50])) == {0}
    assert set(np.unique(errors.counts_2XY[0, :, 50:])) == {16}


def test_bars_are_as_long_as_the_numbers():
    report = report_of(*scene())
    picture = class_bars(report, "title")
    road = OCC3D_LABELS.colors[11]
    rows = np.argwhere((picture == road).all(axis=2))
    width = rows[:, 1].max() - rows[:, 1].min() + 1
    assert width == pytest.approx(640 * report.of_mask("camera").iou_K[11], abs=1)


def test_confusion_matrix_marks_what_the_data_lacks():
    picture = confusion_matrix(report_of(*scene()).of_mask("camera"), "title")
    corner = picture[210 + 40 * 3 + 5, 190 + 5]  # the row of buses
    assert tuple(corner) == UNSEEN
    assert tuple(picture[210 + 40 * 17 + 5, 190 + 40 * 17 + 5]) != UNSEEN


def test_files(tmp_path):
    prediction, truth = scene()
    errors = ErrorMap(OCC3D_GRID)
    errors.add(prediction, truth)
    write_pictures(tmp_path, report_of(prediction, truth), errors, "setting")
    for name in ("class_iou.png", "confusion.png", "error_map.png"):
        picture = cv2.imread(str(tmp_path / name))
        assert min(picture.shape[:2]) > 500
