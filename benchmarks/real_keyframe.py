"""How far a network agrees with the LiDAR of a keyframe without labels.

    python benchmarks/real_keyframe.py --data ROOT [--checkpoint FILE]

Without --checkpoint it takes the weights that ship. The figures of their card are those of the first keyframe of
nuScenes scene-0061, which is not part of this repository.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fusionocc_core import NuScenesFrames, Predictor, load_model
from fusionocc_core.grids import LIDARSEG_TO_OCC3D
from fusionocc_core.metrics.lidar_agreement import LidarAgreement, lidar_agreement


def main(arguments: list[str] | None = None) -> int:
    """Predict the first keyframe and print how it agrees with its sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT", help="a data set in nuScenes format")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights of ours (default: those that ship)")
    args = parser.parse_args(arguments)
    model = load_model(args.checkpoint)
    frames = NuScenesFrames(args.data, lidar_history=model.config.inputs.lidar_history)
    frame = frames[0]
    if frame.lidar is None:
        raise ValueError(f"--data {args.data}: its first keyframe has no LiDAR sweep")
    occupancy = Predictor(model)(frame)
    boxes = frames.boxes(0)
    found = lidar_agreement(occupancy, frame.lidar, frame.ego2global, boxes, box_classes=LIDARSEG_TO_OCC3D)
    Console().print(table(found, f"{frame.scene} {frame.token}, {occupancy.model}, {occupancy.trained_on}"))
    return 0


def table(found: LidarAgreement, caption: str) -> Table:
    """One share a row, percent."""
    shown = Table("", "%", title="Agreement with the sweep", caption=caption, box=None)
    shown.add_row(f"returns in or next to occupied, of {found.points:,}", f"{100 * found.points_occupied:.1f}")
    shown.add_row("places on the rays that are free", f"{100 * found.ray_free:.1f}")
    shown.add_row("grid that is occupied", f"{100 * found.grid_occupied:.1f}")
    shown.add_row(
        f"returns in boxes of the right class, of {found.box_points:,}", f"{100 * found.box_points_right:.1f}"
    )
    for name, (count, right) in found.box_classes.items():
        shown.add_row(f"  {name}, of {count:,}", f"{100 * right:.1f}")
    return shown


if __name__ == "__main__":
    sys.exit(main())
