"""Each op of the package beside the published algorithm and what other packages offer, on the same arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cases.cameras import bev_pool_cases, imgseg_cases
from cases.case import Case, Setting, setting
from cases.lidar import encoder_cases, scatter_cases, sparse_conv_cases, voxelize_cases
from cases.sampling import aggregate_cases, deformable_conv_cases, raster_cases
from cases.volumes import ray_iou_cases, render_cases, splat_cases

__all__ = ["CASES", "Case", "Setting", "setting"]

CASES: dict[str, Callable[[Setting], Iterator[Case]]] = {
    "voxelise": voxelize_cases,
    "sparse_conv": sparse_conv_cases,
    "encoder": encoder_cases,
    "bev_pool": bev_pool_cases,
    "splat": splat_cases,
    "render": render_cases,
    "ray_iou": ray_iou_cases,
    "aggregate": aggregate_cases,
    "deformable_conv": deformable_conv_cases,
    "raster": raster_cases,
    "imgseg": imgseg_cases,
    "scatter": scatter_cases,
}
