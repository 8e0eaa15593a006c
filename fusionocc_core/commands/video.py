"""`fusionocc video`: cameras, perspective and bird's eye of a data set, a bag or predictions as a video."""

from __future__ import annotations

import argparse
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fusionocc_core.commands.view_sources import add_source_arguments, open_source

if TYPE_CHECKING:
    from fusionocc_core.viz.canvas import Picture
    from fusionocc_core.viz.video import VideoWriter
    from fusionocc_core.viz.view_frame import ViewFrame, ViewSource

AHEAD = 1
"""Pictures in the making besides those that threads work on."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "video",
        help="a video of data, bags or predictions, without a display",
        description="Writes a video (VP9, 1920x1080) of cameras with the LiDAR's points, perspective and bird's eye; "
        "with truth and prediction also their difference. Needs no display and no GPU.",
    )
    add_source_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the video, .mp4")
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second (default: 2, as nuScenes' keyframes)")
    parser.add_argument(
        "--threads", type=int, default=min(4, os.cpu_count() or 1), help="that draw (default: cores, at most 4)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the video."""
    from rich.console import Console

    from fusionocc_core.commands.progress import make_progress
    from fusionocc_core.viz.video import VideoWriter

    if args.threads < 1:
        raise ValueError(f"--threads {args.threads}: expected 1 or more")
    writer = VideoWriter(args.out, fps=args.fps)
    source = open_source(args)
    console = Console(stderr=True)
    with make_progress() as bar, writer:
        task = bar.add_task("frames", total=source.total)
        try:
            for count in written(drawn(source, args.palette, args.threads), writer):
                bar.update(task, completed=count)
        except KeyboardInterrupt:
            if source.total is not None or not writer.count:  # of a live source it is how a video ends
                raise
    if not writer.count:
        raise ValueError(f"{source.name}: there is no frame to show")
    megabytes = args.out.stat().st_size / 1e6
    console.print(f"written: {args.out}, {writer.count} frames, {megabytes:.1f} MB", highlight=False, soft_wrap=True)
    return 0


def written(pictures: Iterator[Picture], writer: VideoWriter) -> Iterator[int]:
    """How many pictures are in the video, after each. Encoding takes as long as drawing: it has a thread of its own."""
    with ThreadPoolExecutor(1) as encoder:
        writing: Future[None] | None = None
        for picture in pictures:
            if writing is not None:
                writing.result()
                yield writer.count
            writing = encoder.submit(writer.write, picture)
        if writing is not None:
            writing.result()
            yield writer.count


def drawn(source: ViewSource, palette: str | None, threads: int) -> Iterator[Picture]:
    """The pictures of a source in order, drawn in threads while the next frames are read."""
    from fusionocc_core.viz.scene_picture import scene_picture

    draw = partial(scene_picture, title=source.name, palette=palette)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Picture]] = deque()
        frames = iter(source)
        while (frame := _next(frames, source)) is not None:
            waiting.append(pool.submit(draw, frame))
            while len(waiting) > threads + AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _next(frames: Iterator[ViewFrame], source: ViewSource) -> ViewFrame | None:
    """The next frame; None at the end, which of a live source is Ctrl-C."""
    try:
        return next(frames, None)
    except KeyboardInterrupt:
        if source.total is not None:
            raise
        return None
