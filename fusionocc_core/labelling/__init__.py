"""Occupancy labels for data that has none: aggregated LiDAR sweeps, boxes and point labels to voxels and masks."""
