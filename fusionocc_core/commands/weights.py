"""Which network a command works with: options that say so, and what they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusionocc_core.models.network import OccupancyNetwork
    from fusionocc_core.predictor import OccupancyModel


def add_weights(parser: argparse.ArgumentParser, *, exported: bool = False) -> None:
    """Add CHECKPOINT and --preset.

    Args:
        parser: of the command.
        exported: CHECKPOINT may be the folder of an exported network; also add --runtime.
    """
    more = ", or an exported network" if exported else ""
    parser.add_argument(
        "checkpoint",
        type=Path,
        nargs="?",
        metavar="CHECKPOINT",
        help=f"weights of ours, an official file, the folder of a run{more} (default: the weights that ship)",
    )
    parser.add_argument("--preset", help="what an official file belongs to, such as fusionocc-base or flashocc-m0")
    if exported:
        parser.add_argument(
            "--runtime", default="auto", help="what runs an exported network (default: what it was exported to)"
        )


def load_network(args: argparse.Namespace) -> OccupancyNetwork:
    """The network, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError, ValueError: see engine.weights.load_weights; an exported network is none.
    """
    from fusionocc_core.engine.weights import load_weights
    from fusionocc_core.export.artefact import is_artefact
    from fusionocc_core.presets import load_model

    if args.checkpoint is None:
        return load_model(args.preset) if args.preset else load_model()
    if is_artefact(args.checkpoint):
        raise ValueError(f"{args.checkpoint}: is an exported network already; name the weights that it was made from")
    return load_weights(args.checkpoint, preset=args.preset)


def load_network_or_artefact(args: argparse.Namespace) -> OccupancyModel:
    """The network, or the exported one.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: see ``load_network`` and export.model.load_exported; or
            options that do not go together.
    """
    from fusionocc_core.export.artefact import is_artefact
    from fusionocc_core.export.model import load_exported

    if args.checkpoint is None or not is_artefact(args.checkpoint):
        if args.runtime != "auto":
            what = f"{args.checkpoint} is" if args.checkpoint else "the weights that ship are"
            raise ValueError(f"--runtime {args.runtime}: {what} no exported network: make one with fusionocc export")
        return load_network(args)
    if args.preset is not None:
        raise ValueError(
            f"--preset {args.preset}: leave it out; the exported network in {args.checkpoint} says its own"
        )
    return load_exported(args.checkpoint, args.runtime)
