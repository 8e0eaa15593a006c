"""The measurement: every row is what an evaluation of such keyframes gives; what cannot be measured is said."""

import csv
import json
import math
from dataclasses import replace

import pytest
import torch
from labelled_sample_tree import write_labelled_tree
from small_recipes import GRID, small

from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.engine.distributed import World
from fusionocc_core.engine.evaluation import LabelledFrames, evaluate
from fusionocc_core.engine.robustness.conditions import (
    CamerasDropped,
    Clean,
    Corrupted,
    LidarBeams,
    LidarDropped,
)
from fusionocc_core.engine.robustness.delay import Delay
from fusionocc_core.engine.robustness.measure import ConditionResult, measure
from fusionocc_core.engine.robustness.picture import COLORS, draw
from fusionocc_core.engine.robustness.results import render, summary_lines, tabulate, write_files
from fusionocc_core.engine.scores import Setting
from fusionocc_core.grids import OCC3D_LABELS
from fusionocc_core.metrics import OccupancyReport
from fusionocc_core.simulation.corruptions import Corruption
from fusionocc_core.structures import Outputs

CPU = torch.device("cpu")
INPUTS = replace(small().model.inputs, thin_rings_up_to=16, thin_keep=0.2)
CONDITIONS = (
    Clean(),
    CamerasDropped(count=2, of=6),
    CamerasDropped(count=6, of=6),
    LidarDropped(),
    LidarBeams(keep=8, of=32),
    Delay(sensor="lidar", delay_ms=200),
    Corrupted(corruption=Corruption(name="brightness", severity=5)),
)


class Hashing(torch.nn.Module):
    """Answers with noise that any change of its input changes; without points it refuses if it is told to."""

    def __init__(self, needs_lidar=False):
        super().__init__()
        self.needs_lidar = needs_lidar
        self.config = replace(small().model, inputs=INPUTS)

    def forward(self, batch):
        if self.needs_lidar and not len(batch.points[0]):
            raise ValueError("this network needs a LiDAR")
        parts = (batch.points[0].double().sum(), batch.images_BTNCHW.double().sum(), batch.cam2keyego_BTN44.sum())
        generator = torch.Generator().manual_seed(int(1e3 * float(sum(parts))) % 2**31)
        return Outputs(logits_BKXYZ=torch.rand(1, 18, *GRID.shape, generator=generator))


class Counted(NuScenesFrames):
    """Counts how often keyframes are read."""

    reads = 0

    def __getitem__(self, index):
        type(self).reads += 1
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_labelled_tree(tmp_path_factory.mktemp("data") / "labelled").root


def labelled(root, kind=NuScenesFrames, rays=False, seed=0, **kwargs):
    frames = kind(root, split="mini_val", camera_history=1, lidar_history=1, **kwargs)
    return LabelledFrames(frames, INPUTS, GRID, OCC3D_LABELS, rays=rays, seed=seed)


def measured(root, conditions=CONDITIONS, model=None, **kwargs):
    results = measure(model or Hashing(), labelled(root), conditions, device=CPU, **kwargs)
    return {result.condition.key: result for result in results}


@pytest.fixture(scope="module")
def results(root):
    return measured(root)


def confusions(report):
    return [scores.confusion_KK.tolist() for scores in report.voxels]


def test_rows_are_what_an_evaluation_gives(root, results):
    world = World(rank=0, size=1, device=CPU)
    clean = evaluate(Hashing(), labelled(root), world=world)
    assert confusions(results["clean"].report) == confusions(clean)

    class Blind(NuScenesFrames):
        def __getitem__(self, index):
            return replace(super().__getitem__(index), lidar=None, lidar_history=())

    blind = evaluate(Hashing(), labelled(root, Blind), world=world)
    assert confusions(results["no-lidar"].report) == confusions(blind)
    told = [str(confusions(r.report)) for r in results.values() if r.report]
    assert len(set(told)) == len(told) == 6, "all conditions differ"


def test_what_the_network_refuses_is_said(results):
    refused = results["cameras-all"]
    assert refused.report is None
    assert "has no camera" in refused.reason
    assert results["lidar-delay-200ms"].note == "ego motion"
    assert {key for key, result in results.items() if result.reason} == {"cameras-all"}


def test_a_network_that_needs_its_lidar(root):
    one = measured(root, (Clean(), LidarDropped(), LidarBeams(keep=4, of=32)), Hashing(needs_lidar=True))
    assert one["no-lidar"].reason.endswith("this network needs a LiDAR")
    assert one["no-lidar"].reason.startswith("frame ")
    assert one["beams-4"].report.frames == 3


def test_keyframes_that_are_refused_as_they_are_stop_everything(root):
    camera_only = labelled(root, cameras=[])
    with pytest.raises(ValueError, match="has no camera"):
        measure(Hashing(), camera_only, CONDITIONS[:1], device=CPU)


def test_threads_change_nothing_and_each_keyframe_is_read_once(root, results):
    Counted.reads = 0
    told = []
    again = measure(
        Hashing(), labelled(root, Counted), CONDITIONS, device=CPU, threads=3, progress=lambda *n: told.append(n)
    )
    assert Counted.reads == 3
    assert told[-1] == (21, 21)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    for result in again:
        before = results[result.condition.key]
        assert (result.reason, result.note) == (before.reason, before.note)
        assert (result.report is None) == (before.report is None)
        assert before.report is None or confusions(result.report) == confusions(before.report)


def test_limit_and_rays(root):
    results = measure(Hashing(), labelled(root, rays=True), CONDITIONS[:2], device=CPU, limit=1)
    assert [result.report.frames for result in results] == [1, 1]
    assert all(0 <= result.report.rays.ray_iou <= 1 for result in results)
    with pytest.raises(ValueError, match="limit=0"):
        measured(root, limit=0)


SETTING = Setting(
    checkpoint="w.safetensors",
    preset="small",
    trained_on="nothing",
    data="data",
    version="v1.0-mini",
    split="mini_val",
    frames=3,
    labels="occ3d",
    grid="small",
    precision="fp32",
    seed=0,
)


def test_figures_of_the_table(results, tmp_path):
    given = tuple(results.values())
    table = tabulate(given, SETTING)
    clean = results["clean"].report.of_mask("camera")
    rows = {row.condition: row for row in table.rows}
    for key, result in results.items():
        if result.report is None:
            continue
        scores = result.report.of_mask("camera")
        assert rows[key].miou_camera == 100 * scores.miou
        assert rows[key].miou_none == 100 * result.report.of_mask("none").miou
        assert rows[key].iou == 100 * scores.geometric_iou
        assert rows[key].change == pytest.approx(100 * (scores.miou - clean.miou))
        assert rows[key].relative == pytest.approx(scores.miou / clean.miou)
    counted = [row.relative for key, row in rows.items() if key not in ("clean", "cameras-all")]
    assert table.mean_relative() == pytest.approx(sum(counted) / 5)
    assert table.mean_relative("cameras") == rows["cameras-2"].relative
    assert math.isnan(table.mean_relative("calibration"))
    assert [row.condition for row in table.left_out()] == ["cameras-all"]
    write_files(tmp_path, table, given)
    content = json.loads((tmp_path / "robustness.json").read_text())
    assert content["setting"]["split"] == "mini_val"
    assert content["mean_relative"]["all"] == pytest.approx(table.mean_relative(), abs=1e-6)
    missing = next(c for c in content["conditions"] if c["condition"] == "cameras-all")
    assert (missing["supported"], missing["miou_camera"], missing["classes"]) == (False, None, {})
    assert len(content["conditions"][0]["classes"]) == 18
    lines = list(csv.DictReader((tmp_path / "robustness.csv").open()))
    assert [line["condition"] for line in lines] == list(results)
    assert float(lines[1]["miou_camera"]) == pytest.approx(rows["cameras-2"].miou_camera, abs=1e-4)
    assert (lines[2]["miou_camera"], lines[2]["supported"], lines[2]["version"]) == ("", "False", "v1.0-mini")
    assert list(render(table).columns[1].cells)[-1] == f"{rows['brightness-5'].miou_camera:.2f}"
    assert summary_lines(table)[0].endswith("over 5 conditions; 1 left out)")


def without_mask(report):
    """As from labels that have no camera mask."""
    return OccupancyReport(
        frames=report.frames,
        label_set=report.label_set,
        voxels=tuple(scores for scores in report.voxels if scores.mask == "none"),
        rings=report.rings,
        rays=None,
    )


def test_labels_without_mask_and_networks_that_know_nothing(results):
    bare = [replace(r, report=without_mask(r.report) if r.report else None) for r in results.values()]
    table = tabulate(bare, SETTING)
    assert table.main_mask == "none"
    assert math.isnan(table.rows[0].miou_camera)
    assert table.rows[1].change == table.rows[1].miou_none - table.rows[0].miou_none
    assert "camera mask" not in " ".join(str(column.header) for column in render(table).columns)
    assert draw(table).shape == draw(tabulate(tuple(results.values()), SETTING)).shape
    # Nothing right even on clean data: there is no ratio to take.
    zero = results["clean"].report.of_mask("none")
    zero = replace(zero, confusion_KK=zero.confusion_KK * 0 + 1 - torch.eye(18, dtype=torch.int64).numpy())
    nothing = replace(bare[0].report, voxels=(zero,))
    table = tabulate([ConditionResult(condition=Clean(), report=nothing), bare[1]], SETTING)
    assert math.isnan(table.mean_relative())
    assert "mean relative robustness - " in summary_lines(table)[0]
    assert draw(table).any()


def test_bars_are_as_long_as_their_values(results):
    table = tabulate(tuple(results.values()), SETTING)
    picture = draw(table)
    ends = []
    for group in ("beams", "delay", "corruptions"):  # one condition each
        row = next(row for row in table.rows if row.group == group)
        length = (picture == COLORS[group]).all(axis=2).sum(axis=1).max()
        ends.append(table.main(row) / length)
    assert ends == pytest.approx([ends[0]] * 3, rel=0.01), "one scale for all"
