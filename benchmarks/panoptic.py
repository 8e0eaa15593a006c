"""What numbering voxels by the nearest centre can reach: ``python benchmarks/panoptic.py --data data/sim``.

Takes the truth's voxels and the annotated boxes' centres as if a network had found them all, numbers the voxels, and
measures RayPQ against the boxes: once with each centre's own class, once with the classes that the official inference
takes the heatmaps for, once without any number. Rays start at the vehicle and 10 m in front of and behind it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.occ3d import occ3d_path, read_occ3d
from fusionocc_core.data.things import instance_labels, things_of
from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS
from fusionocc_core.layers.center_head import NUSCENES_THINGS
from fusionocc_core.metrics.ray_pq import PanopticLabels, RayPanoptic, count_segments
from fusionocc_core.models.panoptic import assign_instances

OFFICIAL_ORDER = (
    "car",
    "truck",
    "trailer",
    "bus",
    "construction_vehicle",
    "bicycle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "barrier",
)
"""Classes that the official inference takes the heatmaps for, whose order in training is NUSCENES_THINGS."""
ORIGINS = np.array([[1.0, 0.0, 1.84], [10.0, 0.0, 1.84], [-10.0, 0.0, 1.84]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data set in nuScenes format with Occ3D labels")
    parser.add_argument("--keyframes", type=int, default=13, help="spread evenly")
    args = parser.parse_args()
    frames = NuScenesFrames(args.data)
    tables = {"own class": NUSCENES_THINGS, "official table": OFFICIAL_ORDER, "no numbers": ()}
    totals = {name: RayPanoptic.zeros(OCC3D_LABELS) for name in tables}
    for index in np.linspace(0, len(frames) - 1, args.keyframes).round().astype(int).tolist():
        keyframe, boxes = frames.keyframe(index), frames.boxes(index)
        labels = read_occ3d(occ3d_path(frames.root, keyframe.scene, keyframe.token)).labels
        instances = instance_labels(labels, boxes, OCC3D_GRID, OCC3D_LABELS, NUSCENES_THINGS)
        truth = PanopticLabels(labels=labels, instances=instances)
        things = things_of(boxes, OCC3D_LABELS, NUSCENES_THINGS)
        for name, order in tables.items():
            ids = np.array([OCC3D_LABELS.names.index(n) for n in order], dtype=int)
            some = slice(None if order else 0)
            numbers = assign_instances(
                labels, OCC3D_GRID.indices(things.centers_M3)[some], ids[things.channels_M[some]]
            )
            said = PanopticLabels(labels=labels, instances=numbers)
            totals[name] += count_segments(truth, said, ORIGINS, OCC3D_GRID, OCC3D_LABELS)
    table = Table(title=f"RayPQ of the truth with numbers from centres, %, {args.keyframes} keyframes", box=None)
    for column in ("", *tables):
        table.add_column(column, justify="right" if column else "left")
    quality = {name: total.quality().mean(axis=0) for name, total in totals.items()}
    for name in NUSCENES_THINGS:
        table.add_row(name, *(f"{100 * q[OCC3D_LABELS.names.index(name)]:.1f}" for q in quality.values()))
    table.add_row("RayPQ, all classes", *(f"{100 * t.ray_pq(OCC3D_LABELS).mean():.1f}" for t in totals.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
