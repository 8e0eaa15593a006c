"""Train a network by a recipe.

    python training/train.py RECIPE --data ROOT --out DIR [--set key=value ...]
    torchrun --nproc-per-node N training/train.py RECIPE --data ROOT --out DIR

The same command again goes on where the run was, also after kill -9. See docs/training.md.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from fusionocc_core.process import arrange_process

if TYPE_CHECKING:
    from fusionocc_core.engine.recipe import Recipe

RECIPES = Path(__file__).resolve().parent / "recipes"


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description="Train a network by a recipe.", allow_abbrev=False)
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a name out of training/recipes/, or FILE.py:NAME")
    parser.add_argument("--list", action="store_true", help="list the recipes and stop")
    parser.add_argument("--show", action="store_true", help="print every key and value of the recipe and stop")
    parser.add_argument(
        "--data", type=Path, metavar="ROOT", help="the data set: the folder with samples/, v1.0-*/, gts/"
    )
    parser.add_argument("--version", help="folder of tables, such as v1.0-trainval; not needed where there is only one")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run; an existing run is continued")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="assignments",
        help="change a field of the recipe",
    )
    parser.add_argument("--init", type=Path, metavar="FILE", help="weights to begin with: ours or an official file")
    parser.add_argument(
        "--init-matching", action="store_true", help="take those tensors of --init that fit, leave the others fresh"
    )
    parser.add_argument(
        "--baselines",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="at the end, score the baselines too: majority, position, geometry (default: on)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--shard",
        type=int,
        metavar="K",
        help="which part of the training data this node's disk holds, with --set train.batch.shards=N; K from 0",
    )
    parser.add_argument(
        "--shard-files", action="store_true", help="list the files that shard K needs, below ROOT, and stop"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=60.0,
        metavar="MINUTES",
        help="how long processes wait for one that is silent (default: %(default)g)",
    )
    parser.add_argument("--tensorboard", action="store_true", help="also write curves for TensorBoard")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Train; a mistake of the user's is one line on stderr and exit code 2."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(levelname)s %(message)s")
    logging.captureWarnings(True)
    try:
        return run(args)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if args.verbose:
            logging.getLogger(__name__).exception("the training failed")
        Console(stderr=True, soft_wrap=True).print(
            f"[bold red]train{_process()}: error:[/] {escape(_innermost(error))}", highlight=False
        )
        return 2


def run(args: argparse.Namespace) -> int:
    """What the options ask for."""
    from fusionocc_core.engine.distributed import joined_world
    from fusionocc_core.engine.overrides import override
    from fusionocc_core.engine.recipe_files import find_recipe
    from fusionocc_core.engine.run_comparison import tell_baselines
    from fusionocc_core.engine.session import Start, start_training

    if args.list:
        return list_recipes()
    if args.recipe is None:
        raise ValueError("which recipe? `python training/train.py --list` tells")
    name, recipe = find_recipe(args.recipe, RECIPES)
    recipe = override(recipe, args.assignments)
    if args.show:
        return show(recipe)
    if args.shard_files:
        return list_shard(args, recipe)
    if args.data is None or args.out is None:
        raise ValueError("--data ROOT and --out DIR are needed")
    if args.init_matching and args.init is None:
        raise ValueError("--init-matching goes with --init FILE")
    if not args.patience > 0:
        raise ValueError(f"--patience {args.patience}: expected minutes, more than none")
    with joined_world(args.device, shard=args.shard, patience=timedelta(minutes=args.patience)) as world:
        trainer = start_training(
            recipe,
            name=name,
            data=args.data,
            out=args.out,
            world=world,
            version=args.version,
            start=Start(weights=args.init, matching_only=args.init_matching),
            command=shlex.join(sys.argv),
            tensorboard=args.tensorboard,
        )
        stopped_by = trainer.fit()
        if stopped_by:
            trainer.recorder.say(f"stopped at step {trainer.step}; the same command goes on from there")
        elif args.baselines and recipe.train.batch.shards > 1:
            trainer.recorder.say(
                "baselines are left out: no node need have all the training data that they are fitted on"
            )
        elif args.baselines:
            tell_baselines(recipe, trainer.recorder, data=args.data, version=args.version, world=world)
        trainer.recorder.close()
    return 128 + stopped_by if stopped_by else 0


def list_recipes() -> int:
    """Print the shipped recipes."""
    from rich.table import Table

    from fusionocc_core.engine.recipe_files import list_recipes as read
    from fusionocc_core.engine.recipe_files import summary_of

    table = Table("recipe", "what it is", box=None)
    for name, function in read(RECIPES).items():
        table.add_row(name, summary_of(function))
    Console().print(table)
    return 0


def list_shard(args: argparse.Namespace, recipe: Recipe) -> int:
    """Print the files that a node needs, as rsync --files-from takes them."""
    from fusionocc_core.engine.session import open_frames
    from fusionocc_core.engine.shard_files import shard_files

    if args.data is None or args.shard is None:
        raise ValueError("--shard-files goes with --data ROOT and --shard K")
    frames = open_frames(args.data, recipe.model.inputs, split=recipe.data.train_split, version=args.version)
    for path in shard_files(frames, recipe, args.shard):
        print(path)
    return 0


def show(recipe: Recipe) -> int:
    """Print every key that --set takes, with its value."""
    from functools import reduce

    from fusionocc_core.engine.overrides import keys_of

    for key in keys_of(recipe):
        value = reduce(getattr, key.split("."), recipe)
        if not hasattr(value, "__dataclass_fields__"):
            print(f"{key}={value}")
    return 0


def _process() -> str:
    return f" (process {os.environ['RANK']})" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""


def _innermost(error: BaseException) -> str:
    """The message itself where a worker process has wrapped it into its traceback."""
    text = str(error)
    if text.startswith("Caught ") and "Traceback" in text:
        return text.rstrip().splitlines()[-1].partition(": ")[2] or text
    return text


if __name__ == "__main__":
    arrange_process()
    sys.exit(main())
