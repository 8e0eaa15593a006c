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

    table = Table(title="Presets")
    for column in (
        "preset",
        "parameters",
        "picture",
        "cameras",
        "earlier pictures",
        "earlier sweeps",
        "grid",
        "weights",
    ):
        table.add_column(column)
    for name in list_presets():
        with torch.device("meta"):
            model = load_model(name)
        config = model.config
        inputs, grid = config.inputs, config.grid
        table.add_row(
            name,
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M",
            f"{inputs.image_size[0]} x {inputs.image_size[1]}",
            f"up to {inputs.num_cameras}",
            str(inputs.camera_history),
            str(inputs.lidar_history),
            f"{' x '.join(map(str, grid.shape))} of {grid.voxel_size[0]:g} m, {grid.frame}",
            model.card.trained_on,
        )
    Console().print(table)
    return 0
