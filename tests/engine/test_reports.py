"""Reports of evaluations and of robustness: settings first, the worst frames, everything in one file."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from labelled_sample_tree import write_labelled_tree
from small_recipes import GRID
from test_robustness_measure import CPU, Hashing, labelled

from fusionocc_core.engine.distributed import World
from fusionocc_core.engine.evaluation import evaluate
from fusionocc_core.engine.evaluation_report import frame_plot, write_report
from fusionocc_core.engine.robustness.conditions import CamerasDropped, Clean, LidarDropped
from fusionocc_core.engine.robustness.measure import measure
from fusionocc_core.engine.robustness.report import WorstMoments
from fusionocc_core.engine.robustness.report import write_report as write_robustness
from fusionocc_core.engine.robustness.results import tabulate
from fusionocc_core.engine.score_pictures import ErrorMap
from fusionocc_core.engine.scores import Setting
from fusionocc_core.engine.worst_frames import FrameScore, WorstFrames, rank, score_frame, view_of
from fusionocc_core.structures import Occupancy

WORLD = World(rank=0, size=1, device=CPU)
SETTING = Setting(
    checkpoint="out/tiny", preset="tiny <b>", trained_on="nothing", data="data/x", version="v1", split="val", frames=2,
    labels="occ3d", grid="small", precision="fp32", seed=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return labelled(write_labelled_tree(tmp_path_factory.mktemp("data") / "labelled").root)


def score(index, miou, labels=None):
    return FrameScore(index=index, stamp_ns=index, miou=miou, iou=0.5, labels=labels)


def parts(text):
    """Headings in order, number of pictures, of 3D figures."""
    return re.findall(r"<h2>(.*?)</h2>", text), text.count("<img "), text.count('<figure class="voxels"><button')


def test_worst_come_first_and_frames_without_a_score_last():
    ranked = rank([score(0, 0.5), score(1, math.nan), score(2, 0.1), score(3, 0.5)])
    assert [one.index for one in ranked] == [2, 0, 3, 1]


def test_a_frame_scores_what_an_evaluation_of_it_gives(frames):
    report = evaluate(Hashing(), frames, world=WORLD, limit=1)
    seen = []
    evaluate(Hashing(), frames, world=WORLD, limit=1, on_frame=lambda p, t: seen.append(score_frame(0, p, t)))
    main = report.of_mask("camera") or report.of_mask("none")
    assert seen[0].miou == pytest.approx(main.miou)
    assert seen[0].iou == pytest.approx(main.geometric_iou)


def test_the_report_of_an_evaluation(frames, tmp_path):
    worst, errors = WorstFrames(frames, WORLD, limit=None, keep=1), ErrorMap(GRID)

    def on_frame(prediction, truth):
        errors.add(prediction, truth)
        worst.add(prediction, truth)

    report = evaluate(Hashing(), frames, world=WORLD, on_frame=on_frame)
    gathered = worst.gathered()
    assert len(gathered) == len(frames)
    assert [one.labels is not None for one in gathered] == [True] + [False] * (len(frames) - 1)
    assert gathered[0].miou == min(one.miou for one in gathered)
    write_report(tmp_path / "r.html", report, SETTING, frames, errors=errors, frames=gathered)
    text = (tmp_path / "r.html").read_text()
    assert parts(text) == (["Settings", "Scores", "Plots", "Worst keyframes"], 5, 1)
    assert "tiny &lt;b&gt;: evaluation" in text
    assert f"{100 * (report.of_mask('camera') or report.voxels[0]).miou:.2f}" in text
    assert not re.search(r"""(src|href)=["'](?!data:)|https?://""", text)


def test_frames_out_of_order_are_refused(frames):
    worst = WorstFrames(frames, WORLD, limit=None)
    truth = frames.truth(0)
    wrong = Occupancy(labels=truth.labels, grid=GRID, label_set=truth.label_set, stamp_ns=5)
    with pytest.raises(ValueError, match=r"stamp_ns=5: keyframe 0 is of \d+; frames must come in the order"):
        worst.add(wrong, truth)
    with pytest.raises(ValueError, match="prediction of keyframe 3 was not kept"):
        view_of(frames, score(3, 0.1), model="m")


def test_the_report_of_robustness_shows_where_spoilt_sensors_cost_most(frames, tmp_path):
    moments = WorstMoments()
    conditions = (Clean(), CamerasDropped(count=2, of=6), LidarDropped())
    results = measure(Hashing(), frames, conditions, device=CPU, on_prediction=moments.add)
    costliest = moments.costliest()
    assert {one.condition.key for one in costliest} <= {"cameras-2", "no-lidar"}
    assert [one.loss for one in costliest] == sorted((one.loss for one in costliest), reverse=True)
    for one in costliest:
        assert one.loss == pytest.approx(one.clean.miou - one.score.miou)
    table = tabulate(results, SETTING)
    write_robustness(tmp_path / "r.html", table, frames, costliest[:1], limit=None)
    text = (tmp_path / "r.html").read_text()
    assert parts(text) == (["Settings", "Scores", "Plots", "Worst moments"], 2, 1)
    assert costliest[0].condition.title in text
    write_robustness(tmp_path / "r.html", replace(table, rows=table.rows[:1]), frames, [], limit=None)
    assert "No condition was measured" in (tmp_path / "r.html").read_text()


def test_the_plot_of_frames_is_as_high_as_their_scores():
    picture = frame_plot([score(0, 0.25), score(1, 1.0), score(2, math.nan)])
    blue = (picture == (58, 110, 178)).all(axis=-1)
    columns = blue.sum(axis=0)
    assert columns[60:350].max() == pytest.approx(55, abs=1)
    assert columns[370:640].max() == pytest.approx(220, abs=1)
    assert columns[670:].max() == 0
    assert np.asarray(picture).dtype == np.uint8
