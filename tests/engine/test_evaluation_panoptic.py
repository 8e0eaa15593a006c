"""RayPQ in an evaluation: what a network that tells objects apart scores, and where the truth's objects come from."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from labelled_sample_tree import write_labelled_tree
from small_recipes import GRID, small_plain
from torch.utils.data import Dataset

from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.things import instance_labels
from fusionocc_core.engine.distributed import World
from fusionocc_core.engine.evaluation import LabelledFrame, LabelledFrames, evaluate, summary, things_of_network
from fusionocc_core.engine.scores import Setting, class_table, write_files
from fusionocc_core.grids import OCC3D_LABELS, VoxelGrid
from fusionocc_core.layers.center_head import NUSCENES_THINGS
from fusionocc_core.metrics import OccupancyTruth
from fusionocc_core.models.flashocc_presets import flashocc_tiny, panoptic_flashocc_tiny
from fusionocc_core.structures import CenterOutputs, Outputs

STREET = VoxelGrid(frame="ego", lower=(-8.0, -8.0, -1.0), upper=(8.0, 8.0, 1.0), voxel_size=(0.4, 0.4, 0.4))
CAR, ROAD, FREE = (OCC3D_LABELS.names.index(name) for name in ("car", "driveable_surface", "free"))
CARS = ((30, 30), (30, 20), (30, 10))
"""Middle columns of three cars ahead, from left to right."""
WORLD = World(rank=0, size=1, device=torch.device("cpu"))


def street():
    """(labels, instances) of three cars on a road."""
    labels = np.full(STREET.shape, FREE, np.uint8)
    labels[:, :, 0] = ROAD
    instances = np.zeros(STREET.shape, np.uint16)
    for number, (x, y) in enumerate(CARS, 1):
        labels[x - 2 : x + 3, y - 2 : y + 3, 1:4] = CAR
        instances[x - 2 : x + 3, y - 2 : y + 3, 1:4] = 10 * number
    return labels, instances


class Streets(Dataset):
    """One keyframe, twice."""

    grid, label_set, rays, things = STREET, OCC3D_LABELS, True, ("car",)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        labels, instances = street()
        origins = np.array([[0.0, 0.0, 0.6]])
        truth = OccupancyTruth(labels=labels, grid=STREET, label_set=OCC3D_LABELS, ray_origins=origins)
        batch = SimpleNamespace(to=lambda device: None)  # the answers below do not look at it
        return LabelledFrame(batch=batch, truth=truth, stamp_ns=index, instances=instances if self.things else None)


def answer(found, with_centers=True):
    """A network that knows the classes, and these of the cars' centres."""
    heatmap = torch.full((1, 1, *STREET.shape[:2]), -9.0)
    for x, y in found:
        heatmap[0, 0, x, y] = 9.0
    centers = CenterOutputs(
        class_ids=(CAR,),
        heatmap_logits_BKXY=heatmap,
        offset_B2XY=torch.full((1, 2, *STREET.shape[:2]), 0.5),
        height_BXY=torch.zeros(1, *STREET.shape[:2]),
    )
    logits = torch.nn.functional.one_hot(torch.from_numpy(street()[0]).long(), OCC3D_LABELS.num).float()
    outputs = Outputs(logits_BKXYZ=logits.permute(3, 0, 1, 2)[None], centers=centers if with_centers else None)
    return lambda batch: outputs


def test_every_object_found_or_all_taken_for_one():
    right = evaluate(answer(CARS), Streets(), world=WORLD)
    assert right.panoptic.per_threshold == (1.0, 1.0, 1.0)
    assert summary(right)["ray_pq"] == 1.0
    joined = evaluate(answer(CARS[:1]), Streets(), world=WORLD)
    assert joined.rays.ray_iou == 1.0, "of classes alone this is perfect"
    # None of the cars has more than half of the one segment's rays.
    np.testing.assert_array_equal(joined.panoptic.quality_TK[:, CAR], [0.0, 0.0, 0.0])
    assert joined.panoptic.ray_pq == 0.5  # the road is right


def test_rays_pq_is_in_every_file(tmp_path):
    report = evaluate(answer(CARS[:1]), Streets(), world=WORLD)
    setting = Setting(
        checkpoint="", preset="", trained_on="", data="", version="", split="", frames=2, labels="", grid="",
        precision="", seed=0,
    )  # fmt: skip
    write_files(tmp_path, report, setting)
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert [line["value"] for line in content["lines"] if line["metric"] == "RayPQ"] == [0.5]
    assert content["ray_pq_per_class"]["2"]["car"] == 0.0
    rows = [row for row in csv.DictReader((tmp_path / "metrics.csv").open()) if row["metric"] == "RayPQ"]
    assert {row["threshold_m"] for row in rows} == {"1", "2", "4"}
    assert [float(row["percent"]) for row in rows if row["class_name"] == "driveable_surface"] == [100.0] * 3
    assert [column.header for column in class_table(report, setting).columns][-1] == "RayPQ 4 m"


def test_without_objects_nothing_is_said_and_a_network_without_centres_is_refused():
    class ClassesAlone(Streets):
        things = ()

    report = evaluate(answer(CARS), ClassesAlone(), world=WORLD)
    assert report.panoptic is None
    assert "ray_pq" not in summary(report)
    assert not [line for line in report.lines() if line.metric.startswith("RayPQ")]
    with pytest.raises(ValueError, match="tells no objects apart"):
        evaluate(answer(CARS, with_centers=False), Streets(), world=WORLD)


def test_the_truth_s_objects_are_the_annotated_boxes(tmp_path):
    root = write_labelled_tree(tmp_path / "labelled").root
    frames = NuScenesFrames(root, split="mini_val")
    inputs = replace(small_plain().model.inputs, camera_history=0, lidar_history=0)
    common = {"inputs": inputs, "grid": GRID, "label_set": OCC3D_LABELS, "seed": 0}
    one = LabelledFrames(frames, rays=True, things=NUSCENES_THINGS, **common)[0]
    expected = instance_labels(one.truth.labels, frames.boxes(0), GRID, OCC3D_LABELS, NUSCENES_THINGS)
    np.testing.assert_array_equal(one.instances, expected)
    with pytest.raises(ValueError, match="RayPQ follows the rays"):
        LabelledFrames(frames, rays=False, things=NUSCENES_THINGS, **common)


def test_which_networks_tell_objects_apart():
    assert things_of_network(panoptic_flashocc_tiny()) == NUSCENES_THINGS
    assert things_of_network(flashocc_tiny()) == ()
