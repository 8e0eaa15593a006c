"""What `fusionocc robustness` and training/evaluate.py have in common: a network on labelled keyframes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fusionocc_core.commands.weights import add_weights

if TYPE_CHECKING:
    from fusionocc_core.engine.evaluation import LabelledFrames
    from fusionocc_core.engine.scores import Setting
    from fusionocc_core.predictor import OccupancyModel

PRECISIONS = ("fp32", "bf16", "fp16")


def add_options(parser: argparse.ArgumentParser, *, written: str) -> None:
    """Add the network, the keyframes, and how to compute.

    Args:
        parser: of the command.
        written: what --out gets, in words.
    """
    add_weights(parser, exported=True)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="ROOT", help="the data set: samples/, v1.0-*/, gts/"
    )
    parser.add_argument("--version", help="folder of tables, such as v1.0-trainval; not needed where there is only one")
    parser.add_argument("--split", default="val", help="official split, or one in splits.json (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"write {written} there")
    parser.add_argument(
        "--report", type=Path, metavar="FILE.html", help="write one page with everything, to open from disk"
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only N keyframes, spread evenly; the numbers are not final"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="what PyTorch computes in (default: fp32); an exported network has its own",
    )
    parser.add_argument("--seed", type=int, default=0, help="of every random draw (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")


def check_precision(args: argparse.Namespace) -> str:
    """What PyTorch shall compute in.

    Raises:
        ValueError: it was said for an exported network, which has its own.
    """
    from fusionocc_core.export.artefact import is_artefact

    if args.precision and args.checkpoint is not None and is_artefact(args.checkpoint):
        raise ValueError(
            f"--precision {args.precision}: leave it out; the exported network {args.checkpoint} has its own"
        )
    return args.precision or PRECISIONS[0]


def open_labelled(
    args: argparse.Namespace, model: OccupancyModel, *, rays: bool, things: tuple[str, ...] = ()
) -> LabelledFrames:
    """The keyframes, prepared as the network wants them.

    Raises:
        FileNotFoundError, ValueError: see engine.evaluation.LabelledFrames; or the rig is not that of an exported
            network.
    """
    from fusionocc_core.engine.evaluation import LabelledFrames
    from fusionocc_core.engine.session import open_frames
    from fusionocc_core.export.model import ExportedModel

    config = model.config
    frames = open_frames(args.data, config.inputs, split=args.split, version=args.version)
    if isinstance(model, ExportedModel):
        model.check_rig(len(frames.cameras))
    return LabelledFrames(
        frames, config.inputs, config.grid, config.label_set, rays=rays, seed=args.seed, things=things
    )


def setting_of(args: argparse.Namespace, model: OccupancyModel, labelled: LabelledFrames, frames: int) -> Setting:
    """What the numbers were measured with.

    Args:
        args: of the command.
        model: the network.
        labelled: the keyframes.
        frames: how many of them were taken.
    """
    from fusionocc_core.engine.scores import Setting
    from fusionocc_core.export.model import ExportedModel

    grid = labelled.grid
    return Setting(
        checkpoint=str(args.checkpoint or model.card.preset),
        preset=model.card.preset,
        trained_on=model.card.trained_on,
        data=str(args.data),
        version=labelled.frames.version,
        split=args.split if args.limit is None else f"{args.split} (limited to {args.limit})",
        frames=frames,
        labels=labelled.label_set.name,
        grid=f"{grid.shape} voxels of {grid.voxel_size} m, {grid.frame} frame",
        precision=model.in_words() if isinstance(model, ExportedModel) else check_precision(args),
        seed=args.seed,
    )
