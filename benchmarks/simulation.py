"""What a simulated data set costs, and what it looks like.

    python benchmarks/simulation.py [--scenes 2] [--keyframes 12] [--seed 0] [--pictures DIR]

Writes a data set into a temporary folder with one worker and prints CPU time (the number that other work on the machine
changes least), its growth with the keyframes, memory and size on disk. `--pictures` also draws the pictures of
docs/simulation.md from one of the keyframes.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from machine import in_words, machine
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.geometry import apply, inverse, project
from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS
from fusionocc_core.simulation import SimulationConfig, generate
from fusionocc_core.simulation.cameras import take_picture
from fusionocc_core.simulation.corruptions import CORRUPTIONS, corrupt
from fusionocc_core.simulation.materials import RAW_TO_OCC3D
from fusionocc_core.simulation.rigs import load_rig
from fusionocc_core.simulation.street import build_street
from fusionocc_core.structures import Occupancy, SensorFrame
from fusionocc_core.viz.birds_eye import birds_eye
from fusionocc_core.viz.overview import camera_mosaic
from fusionocc_core.viz.perspective import perspective

BUDGET_S = 240.0
"""Two scenes of twelve keyframes at 1600 x 900: at most this much CPU time."""


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=2)
    parser.add_argument("--keyframes", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", default="1600x900")
    parser.add_argument("--pictures", type=Path, default=None, metavar="DIR")
    args = parser.parse_args()
    width, height = (int(edge) for edge in args.image_size.lower().split("x"))
    config = SimulationConfig(scenes=args.scenes, keyframes=args.keyframes, seed=args.seed, image_size=(height, width))
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        stamps = measure(root, config)
        report(root, config, stamps)
        if args.pictures is not None:
            draw(root, args.pictures)


def measure(root: Path, config: SimulationConfig) -> list[float]:
    """CPU seconds at the start and after every keyframe, and at the end."""
    stamps = []
    generate(root, config, progress=lambda done, total: stamps.append(time.process_time()))
    return [*stamps, time.process_time()]


def report(root: Path, config: SimulationConfig, stamps: list[float]) -> None:
    """Print a table."""
    costs = np.diff(stamps[:-1]).reshape(config.scenes, config.keyframes)
    later = costs[:, 1:]
    half = later.shape[1] // 2
    table = Table(title=f"{config.scenes} scenes of {config.keyframes} keyframes, {config.image_size}")
    table.add_column("measured")
    table.add_column("value", justify="right")
    total = stamps[-1] - stamps[0]
    budget = BUDGET_S * config.scenes * config.keyframes / 24
    table.add_row("CPU time in all", f"{total:.1f} s (limit for this many keyframes: {budget:.0f} s)")
    table.add_row("first keyframe of a scene, with building it", f"{costs[:, 0].mean():.2f} s")
    table.add_row("each further keyframe", f"{later.mean():.2f} s ({later.min():.2f} to {later.max():.2f})")
    if half:
        ratio = later[:, -half:].mean() / later[:, :half].mean()
        table.add_row("second half of the keyframes over the first half", f"{ratio:.2f}")
    table.add_row("tables and maps", f"{stamps[-1] - stamps[-2]:.2f} s")
    table.add_row("peak memory", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    table.add_row("on disk", f"{size / 1e6 / config.scenes / config.keyframes:.2f} MB a keyframe")
    console = Console()
    console.print(table)
    console.print(in_words(machine()), highlight=False, soft_wrap=True)


def draw(root: Path, out: Path) -> None:
    """The pictures of the documentation."""
    out.mkdir(parents=True, exist_ok=True)
    frames = NuScenesFrames(root)
    frame = frames[min(len(frames) - 1, len(frames) // 4)]
    with np.load(root / "gts" / frame.scene / frame.token / "labels.npz") as file:
        labels = file["semantics"]
    occupancy = Occupancy(labels=labels, grid=OCC3D_GRID, label_set=OCC3D_LABELS, stamp_ns=frame.stamp_ns)
    save(out / "sim_cameras.jpg", camera_mosaic(frame, width=1140))
    save(out / "sim_lidar.jpg", lidar_over_image(root, frame, "CAM_FRONT", 960))
    save(out / "sim_above.png", birds_eye(occupancy, voxel_pixels=4))
    save(out / "sim_perspective.png", perspective(occupancy, height=600, width=1060))
    save(out / "sim_variety.jpg", variety_sheet())
    save(out / "sim_corruptions.jpg", corruption_sheet(frame))


def save(path: Path, picture: NDArray[np.uint8]) -> None:
    """A JPEG of photographs, a PNG of drawings."""
    Image.fromarray(picture).save(path, quality=85, subsampling=0, optimize=True)
    Console().print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def lidar_over_image(root: Path, frame: SensorFrame, name: str, width: int) -> NDArray[np.uint8]:
    """The cloud in a camera's picture, each point in the colour of its class."""
    camera = next(camera for camera in frame.cameras if camera.name == name)
    assert frame.lidar is not None
    (label_file,) = (root / "lidarseg").rglob(f"{lidar_token(root, frame)}_lidarseg.bin")
    category = np.fromfile(label_file, np.uint8)
    lidar2cam = inverse(camera.ego2global @ camera.cam2ego) @ frame.lidar.ego2global @ frame.lidar.lidar2ego
    uvd = project(camera.intrinsics, apply(lidar2cam, frame.lidar.points[:, :3].astype(np.float64)))
    scale = width / camera.image.shape[1]
    small = cv2.resize(camera.image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    picture: NDArray[np.uint8] = (small // 2 + 30).astype(np.uint8)
    colors = np.array(OCC3D_LABELS.colors, np.uint8)[RAW_TO_OCC3D[category]]
    seen = (uvd[:, 2] > 1.0) & (category != 0) & (category != 31)
    for (u, v, _), color in zip(uvd[seen], colors[seen], strict=True):
        cv2.circle(picture, (round(u * scale), round(v * scale)), 2, [int(c) for c in color], -1, cv2.LINE_AA)
    return picture


def lidar_token(root: Path, frame: SensorFrame) -> str:
    """Token of a frame's sweep."""
    rows = json.loads(next(root.glob("v1.0-*/sample_data.json")).read_text())
    return str(
        next(row["token"] for row in rows if row["fileformat"] == "pcd" and row["timestamp"] == frame.stamp_ns // 1000)
    )


def variety_sheet() -> NDArray[np.uint8]:
    """The front camera in eight streets."""
    rig = load_rig("nuscenes-singapore").resized((450, 800))
    mount = next(camera for camera in rig.cameras if camera.name == "CAM_FRONT")
    pictures = []
    for index in range(8):
        street = build_street(seed=5, split="train", index=index, left_hand=True, duration=8.0)
        pose = street.drive.poses(3.0)[0] @ mount.cam2ego
        view = take_picture(street.snapshot(3.0), mount, pose, np.random.default_rng(index))
        pictures.append(cv2.resize(view.image, (384, 216), interpolation=cv2.INTER_AREA))
    return np.vstack([np.hstack(pictures[:4]), np.hstack(pictures[4:])])


def corruption_sheet(frame: SensorFrame) -> NDArray[np.uint8]:
    """CAM_FRONT under the corruptions of pictures, at severity 2 (above) and 4."""
    names = [name for name in CORRUPTIONS[:8] if name not in ("camera_crash", "frame_lost")]
    rows = []
    for severity in (2, 4):
        row = []
        for name in names:
            cameras = corrupt(frame, name, severity).cameras
            image = next(camera.image for camera in cameras if camera.name == "CAM_FRONT")
            row.append(cv2.resize(image, (240, 135), interpolation=cv2.INTER_AREA))
        rows.append(np.hstack(row))
    return np.vstack(rows)


if __name__ == "__main__":
    main()
