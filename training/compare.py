"""Put training runs beside each other: a table with mean and spread over seeds, and learning curves.

    python training/compare.py RUN [RUN ...] [--metric miou_camera] [--picture curves.png]

A RUN is the --out of a training. Runs of one recipe that differ in train.seed form a group.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from fusionocc_core.engine.curves import Run


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description="Put training runs beside each other.", allow_abbrev=False)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run, the --out of a training")
    parser.add_argument("--metric", default="miou_camera", help="of its evaluations (default: %(default)s)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw learning curves into a PNG")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Compare; a mistake of the user's is one line on stderr and exit code 2."""
    args = make_parser().parse_args(arguments)
    try:
        return run(args)
    except (ValueError, OSError) as error:
        Console(stderr=True, soft_wrap=True).print(
            f"[bold red]compare: error:[/] {escape(str(error))}", highlight=False
        )
        return 2


def run(args: argparse.Namespace) -> int:
    """What the options ask for."""
    from fusionocc_core.engine.curves import draw_curves, group_runs, read_run
    from fusionocc_core.viz.export import write_picture

    groups = group_runs([read_run(folder, args.metric) for folder in args.runs])
    console = Console()
    console.print(table(groups, args.metric))
    if args.picture is not None:
        write_picture(args.picture, draw_curves(groups, args.metric))
        console.print(f"curves: {args.picture}", highlight=False, soft_wrap=True)
    return 0


def table(groups: Mapping[str, Sequence[Run]], metric: str) -> Table:
    """One row a group, and the baselines that its runs were held against."""
    from fusionocc_core.engine.curves import mean_and_spread

    shown = Table(title=f"{metric} at the last evaluation of training, %", box=None)
    for column in ("recipe", "seeds", "samples", "mean", "spread", "each"):
        shown.add_column(column, justify="left" if column == "recipe" else "right", overflow="fold")
    for name, runs in groups.items():
        last = [100 * run.metric.values[-1] for run in runs]
        mean, spread = mean_and_spread(last)
        shown.add_row(
            name,
            ", ".join(str(run.seed) for run in runs),
            f"{runs[0].metric.samples[-1]:,.0f}",
            f"{mean:.2f}",
            "-" if len(runs) == 1 else f"{spread:.2f}",
            ", ".join(f"{value:.2f}" for value in last),
        )
    baselines = {name: value for runs in groups.values() for run in runs for name, value in run.baselines.items()}
    for name, value in baselines.items():
        shown.add_row(f"baseline: {name}", "", "", f"{100 * value:.2f}", "", "")
    return shown


if __name__ == "__main__":
    sys.exit(main())
