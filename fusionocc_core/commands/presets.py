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

    from fusionocc_core.models.multiplications import GIGA_MACS
    from fusionocc_core.presets import SHIPPED_WEIGHTS, list_presets, make_network, preset_config

    caption = (
        "params: millions; MACs: thousand millions of multiply-adds a frame, by torch.utils.flop_counter "
        "(benchmarks/macs.py; -: not counted); pictures: most cameras x height x width; past: earlier keyframes of "
        "pictures+sweeps; weights: what load_model(preset) has"
    )
    table = Table(title="Presets", caption=caption, padding=0)
    for column in ("preset", "params\nM", "MACs\nG", "pictures", "past"):
        table.add_column(column, no_wrap=True, justify="right" if "\n" in column else "left")
    table.add_column("voxels (ego)", overflow="fold")
    table.add_column("weights", no_wrap=True)
    for name in list_presets():
        with torch.device("meta"):
            model = make_network(preset_config(name))
        inputs, grid = model.config.inputs, model.config.grid
        frame = "" if grid.frame == "ego" else f" ({grid.frame})"
        table.add_row(
            name,
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}",
            _short(GIGA_MACS.get(name)),
            f"{inputs.num_cameras}x{inputs.image_size[0]}x{inputs.image_size[1]}",
            f"{inputs.camera_history}+{inputs.lidar_history}",
            f"{'x'.join(map(str, grid.shape))}, {grid.voxel_size[0]:g} m{frame}",
            "ship" if name in SHIPPED_WEIGHTS else "fresh",
        )
    Console().print(table)
    return 0


def _short(giga: float | None) -> str:
    """At most five characters, for narrow terminals."""
    if giga is None:
        return "-"
    return f"{giga:.1f}" if giga < 999.95 else f"{giga:.0f}"
