"""`fusionocc export`: a network as a graph for ONNX Runtime, OpenVINO, torch.export or TensorRT."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fusionocc_core.commands.weights import add_weights

if TYPE_CHECKING:
    from fusionocc_core.data.nuscenes import NuScenesFrames
    from fusionocc_core.export.artefact import Artefact
    from fusionocc_core.export.parity import Parity
    from fusionocc_core.models.network import OccupancyNetwork

TARGETS = ("onnx", "openvino", "torch-export", "tensorrt")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "export",
        help="a network as a graph for ONNX Runtime, OpenVINO, torch.export or TensorRT",
        description="Write a network as a graph of fixed shapes that other runtimes run, and compare both on "
        "keyframes. OUT then holds the graph, artefact.json and report.json; it can be given wherever weights can: "
        "`fusionocc predict --checkpoint OUT`, the node's checkpoint. See docs/export.md.",
    )
    add_weights(parser)
    parser.add_argument("--to", required=True, metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--precision", default="fp32", metavar="P", help="fp32, fp16, bf16 or int8 (default: fp32)")
    parser.add_argument(
        "--data", type=Path, metavar="ROOT", help="keyframes of the rig: for its calibration, int8 and the report"
    )
    parser.add_argument("--version", help="folder of tables, such as v1.0-trainval; not needed where there is only one")
    parser.add_argument("--split", help="keyframes for the calibration and int8 (default: all)")
    parser.add_argument("--report-split", help="keyframes for the report (default: those of --split)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder (default: out/export/PRESET-TARGET-PRECISION)")
    parser.add_argument(
        "--calibration-frames", type=int, default=32, metavar="N", help="for int8, spread evenly (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="keyframes of the report (default: 20)")
    parser.add_argument("--confidence", action="store_true", help="the graph also gives the probability of each label")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU, in the comparison (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, compare, print a table and write the report."""
    import torch
    from rich.console import Console

    from fusionocc_core.commands.weights import load_network
    from fusionocc_core.export.artefact import check_target
    from fusionocc_core.export.networks import check_exportable
    from fusionocc_core.export.parity import render, write_report
    from fusionocc_core.structures import UNTRAINED

    check_arguments(args)
    check_target(args.to, args.precision)
    network = load_network(args)
    check_exportable(network.config)
    torch.set_num_threads(args.threads)
    console = Console()
    if network.card.trained_on == UNTRAINED:
        console.print(f"{UNTRAINED}: agreement and scores mean nothing", style="bold red")
    artefact = make_artefact(args, network)
    console.print(f"{artefact.graph}: {megabytes(artefact):.1f} MB", highlight=False, soft_wrap=True)
    parity = measure(args, network, artefact)
    console.print(render(artefact, parity))
    console.print(f"written to {write_report(artefact, parity)}", highlight=False, soft_wrap=True)
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is loaded.

    Raises:
        ValueError: names the argument.
    """
    if args.data is None:
        why = "int8 takes the ranges of values from keyframes, and " if args.precision == "int8" else ""
        raise ValueError(f"--data is missing: {why}the graph is made for the cameras of a rig; name a data set of it")
    for name in ("calibration_frames", "limit", "threads"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected 1 or more")


def make_artefact(args: argparse.Namespace, network: OccupancyNetwork) -> Artefact:
    """Export."""
    from fusionocc_core.commands.predict import refuse_too_many_cameras
    from fusionocc_core.export.run import Wanted, calibration_batches, export_network

    frames = open_split(args, network, args.split)
    refuse_too_many_cameras(frames.cameras, network.config.inputs.num_cameras)
    batches = calibration_batches(frames, network, args.calibration_frames)
    name = f"{network.card.preset or 'network'}-{args.to}-{args.precision}"
    wanted = Wanted(
        target=args.to,
        precision=args.precision,
        confidence=args.confidence,
        calibrated_on=f"{len(batches)} keyframes of {name_of(frames, args.split)}",
    )
    return export_network(network, batches, args.out or Path("out/export") / name, wanted)


def measure(args: argparse.Namespace, network: OccupancyNetwork, artefact: Artefact) -> Parity:
    """Compare the artefact with the network, with a progress bar."""
    from fusionocc_core.commands.progress import make_progress
    from fusionocc_core.export.model import load_exported
    from fusionocc_core.export.parity import compare
    from fusionocc_core.export.run import keyframes_to_compare

    # TensorRT itself is not run, even where it may be there: its engine is built by trtexec.sh.
    exported = load_exported(artefact.folder, "onnx" if artefact.target == "tensorrt" else "auto", threads=args.threads)
    split = args.report_split or args.split
    frames = open_split(args, network, split)
    keyframes = list(keyframes_to_compare(frames, network, args.limit))
    with make_progress() as bar:
        task = bar.add_task("comparing", total=len(keyframes))
        data = name_of(frames, split)
        return compare(network, exported, keyframes, data=data, progress=lambda: bar.advance(task))


def open_split(args: argparse.Namespace, network: OccupancyNetwork, split: str | None) -> NuScenesFrames:
    """Keyframes of the data set."""
    from fusionocc_core.export.run import frames_of

    return frames_of(args.data, network, split=split, version=args.version)


def name_of(frames: NuScenesFrames, split: str | None) -> str:
    """In words."""
    return f"{frames.version} {split or ''}".strip()


def megabytes(artefact: Artefact) -> float:
    """Of the graph and its weights."""
    from fusionocc_core.export.artefact import graph_files

    return sum(path.stat().st_size for path in graph_files(artefact)) / 1e6
