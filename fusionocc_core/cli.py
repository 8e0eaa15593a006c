"""The command line: `fusionocc COMMAND ...`. A command is a module with `add_parser`; see fusionocc_core/commands."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Callable
from importlib.metadata import entry_points

from rich.console import Console
from rich.markup import escape

import fusionocc_core
from fusionocc_core.process import arrange_process

COMMANDS = ("presets", "predict", "render", "prepare", "label", "simulate", "robustness", "export", "view", "video")
"""Modules of fusionocc_core.commands; other packages add theirs through the entry points ``fusionocc.commands``."""


def make_parser() -> argparse.ArgumentParser:
    """The parser with every command that is installed."""
    parser = argparse.ArgumentParser(
        prog="fusionocc", description="3D semantic occupancy from cameras and LiDAR.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"fusionocc {fusionocc_core.__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is being done")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"fusionocc_core.commands.{name}").add_parser(subparsers)
    for entry_point in entry_points(group="fusionocc.commands"):
        entry_point.load()(subparsers)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run `fusionocc`.

    Args:
        arguments: None takes those of the process, whose memory is then arranged for networks.
    """
    return run_command(make_parser(), arguments, before=arrange_process if arguments is None else None)


def run_command(
    parser: argparse.ArgumentParser, arguments: list[str] | None, *, before: Callable[[], None] | None = None
) -> int:
    """Run what the arguments ask for; a mistake of the user's is one line on stderr and exit code 2, not a traceback.

    Args:
        parser: its commands have set ``run=function(args) -> exit code``.
        arguments: None takes those of the process.
        before: called before the command, and not for --help, which loads no NumPy.
    """
    args = parser.parse_args(arguments)
    if before is not None:
        before()
    verbose = getattr(args, "verbose", False)
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    try:
        return int(args.run(args))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if verbose:
            logging.getLogger(__name__).exception("the command failed")
        text = f"[bold red]fusionocc: error:[/] {escape(str(error))}"
        Console(stderr=True, soft_wrap=True).print(text, highlight=False)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
