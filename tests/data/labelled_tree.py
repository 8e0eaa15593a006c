"""Turns a tiny data set into one with lidarseg and Occ3D labels."""

from pathlib import Path

import numpy as np
from nuscenes_tree import Tree, token

from fusionocc_core.data.occ3d import occ3d_path
from fusionocc_core.grids import LIDARSEG_TO_OCC3D, OCC3D_GRID

NAMES = sorted(LIDARSEG_TO_OCC3D)
"""Another order than the official one: the table decides what a number means."""


def add_lidarseg(tree: Tree, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    kept = tree.rows("category")
    rows = [{"token": token("lidarseg category", n), "name": n, "description": ""} for n in NAMES]
    named = {row["name"]: row for row in kept}
    rows = [{**row, **named.get(row["name"], {}), "index": index} for index, row in enumerate(rows)]
    tree.write("category", rows)
    folder = tree.root / "lidarseg" / tree.version
    folder.mkdir(parents=True)
    table = []
    for row in tree.rows("sample_data"):
        if row["is_key_frame"] and row["filename"].startswith("samples/LIDAR_TOP"):
            points = (tree.root / row["filename"]).stat().st_size // 20
            name = f"lidarseg/{tree.version}/{row['token']}_lidarseg.bin"
            (tree.root / name).write_bytes(rng.integers(0, len(NAMES), points, dtype=np.uint8).tobytes())
            table.append({"token": row["token"], "filename": name, "sample_data_token": row["token"]})
    tree.write("lidarseg", table)


def add_occ3d(tree: Tree) -> None:
    scenes = {row["token"]: row["name"] for row in tree.rows("scene")}
    for row in tree.rows("sample"):
        path = occ3d_path(tree.root, scenes[row["scene_token"]], row["token"])
        path.parent.mkdir(parents=True)
        volume = np.zeros(OCC3D_GRID.shape, np.uint8)
        np.savez_compressed(path, semantics=volume, mask_lidar=volume, mask_camera=volume)


def lidarseg_file(tree: Tree, number: int = 0) -> Path:
    return tree.root / tree.rows("lidarseg")[number]["filename"]
