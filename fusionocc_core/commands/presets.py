"""`fusionocc presets`: the networks that load_model knows."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "presets", help="list the networks", description="The networks that load_model knows."
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print one row a preset; the networks are built without memory for their weights."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from fusionocc_core.presets import list_presets, load_model

    caption = "pictures: of at most so many cameras; earlier: keyframes of pictures + of sweeps"
    table = Table(title="Presets", caption=caption)
    table.add_column("preset", no_wrap=True)
    for column in ("parameters", "pictures", "earlier", "voxels (ego)"):
        table.add_column(column, overflow="fold")
    for name in list_presets():
        with torch.device("meta"):
            model = load_model(name)
        inputs, grid = model.config.inputs, model.config.grid
        table.add_row(
            name,
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M",
            f"{inputs.num_cameras} of {inputs.image_size[0]}x{inputs.image_size[1]}",
            f"{inputs.camera_history} + {inputs.lidar_history}",
            f"{'x'.join(map(str, grid.shape))}, {grid.voxel_size[0]:g} m",
        )
    Console().print(table)
    return 0
