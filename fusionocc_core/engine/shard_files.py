"""Which files a node needs that holds one shard of the training data."""

from __future__ import annotations

from pathlib import Path

from fusionocc_core.data.imgseg import imgseg_path
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.engine.labels import label_path
from fusionocc_core.engine.recipe import Recipe


def shard_files(frames: NuScenesFrames, recipe: Recipe, shard: int) -> list[Path]:
    """Pictures, clouds and labels of a shard, the history of its first keyframes among them, and all tables.

    Args:
        frames: the training split, with the history that the network wants.
        recipe: of the training, with its number of shards.
        shard: which, from 0.

    Returns:
        Paths below the data set's folder, sorted.

    Raises:
        ValueError: there is no such shard.
    """
    batch, needs = recipe.train.batch, recipe.needs
    if not 0 <= shard < batch.shards:
        raise ValueError(f"--shard {shard}: expected 0 to {batch.shards - 1}, which train.batch.shards says")
    order = recipe.data.order(len(frames))
    found: set[Path] = set()
    for sample in batch.samples(len(order), shard, batch.shards):
        index = order[sample]
        found.update(_sensor_files(frames, index))
        if needs.voxels:
            found.add(label_path(frames, index, needs.grid))
        if needs.segmentation:
            records = frames.keyframe(index).records
            found.update(imgseg_path(frames.root, records[name]) for name in frames.cameras if name in records)
    tables = (frames.version, "maps", ".fusionocc")
    found.update(path for folder in tables for path in (frames.root / folder).rglob("*") if path.is_file())
    return sorted(path.relative_to(frames.root) for path in found)


def _sensor_files(frames: NuScenesFrames, index: int) -> set[Path]:
    """Pictures and clouds that are read for a keyframe, with its history."""
    first = index - frames.keyframe(index).position
    files: set[Path] = set()
    for history, channels in (
        (frames.camera_history, frames.cameras),
        (frames.lidar_history, (frames.lidar,) if frames.lidar else ()),
    ):
        for group in (frames.keyframe(i) for i in range(max(first, index - history), index + 1)):
            files.update(group.records[name].path for name in channels if name in group.records)
    return files
