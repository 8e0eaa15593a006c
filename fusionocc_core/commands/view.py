"""`fusionocc view`: data sets, bags, predictions and live topics, in a window, a browser, a file or a picture."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionocc_core.commands.view_sources import add_source_arguments, open_source

if TYPE_CHECKING:
    from rich.console import Console

    from fusionocc_core.viz.rerun_log import RerunLog
    from fusionocc_core.viz.view_frame import ViewFrame, ViewSource

IDLE_S = 0.5
"""Between two looks whether the user has had enough."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "view",
        help="look at data, bags, predictions or live topics: cameras, cloud, voxels, truth, differences",
        description="Shows cameras with the LiDAR's points, the cloud, voxels by class, the truth beside the "
        "prediction and their difference, Gaussians, boxes, the vehicle's path, latencies and missing sensors, all on "
        "one time line. Opens a window of rerun's; --web serves it to a browser instead, --save writes a file for "
        "later, --screenshot a picture without any display.",
    )
    add_source_arguments(parser)
    parser.add_argument("--web", action="store_true", help="serve to a browser, until interrupted")
    parser.add_argument(
        "--bind", default="127.0.0.1", metavar="ADDRESS", help="for --web: listen there (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=9090, help="for --web: of the page, 0 any (default: %(default)s)")
    parser.add_argument(
        "--data-port", type=int, default=9876, metavar="PORT", help="for --web: of the data (default: %(default)s)"
    )
    parser.add_argument("--no-browser", action="store_true", help="for --web: do not open one here")
    parser.add_argument("--save", type=Path, metavar="FILE.rrd", help="write a recording for `rerun FILE.rrd`")
    parser.add_argument(
        "--screenshot", type=Path, metavar="FILE.png", help="write a picture of the first frame (.jpg too)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show it."""
    from rich.console import Console

    _check_outputs(args)
    console = Console(stderr=True)
    source = open_source(args)
    if args.screenshot is not None:
        _screenshot(source, args.screenshot, args.palette)
        console.print(f"written: {args.screenshot}", highlight=False, soft_wrap=True)
    elif args.save is not None:
        save(source, args.save, palette=args.palette, console=console)
        console.print(f"written: {args.save}; look at it with: rerun {args.save}", highlight=False, soft_wrap=True)
    elif args.web:
        serve(source, args, console)
    else:
        show(source, palette=args.palette, console=console)
    return 0


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuse before anything is read what could not be shown after it."""
    chosen = [name for name in ("web", "save", "screenshot") if getattr(args, name)]
    if len(chosen) > 1:
        raise ValueError(f"--{' and --'.join(chosen)}: choose one of them")
    for name, suffixes in (("save", (".rrd",)), ("screenshot", (".png", ".jpg"))):
        path = getattr(args, name)
        if path is None:
            continue
        if path.suffix not in suffixes:
            raise ValueError(f"--{name} {path}: expected a file name that ends in {' or '.join(suffixes)}")
        if not path.resolve().parent.is_dir():
            raise FileNotFoundError(f"--{name} {path}: there is no folder {path.resolve().parent}")
    if not chosen and not has_display():
        raise ValueError(
            "there is no display for the viewer's window (DISPLAY and WAYLAND_DISPLAY are not set); use --web for a "
            "browser, --save FILE.rrd for later, or --screenshot FILE.png"
        )
    if args.screenshot is None:
        from fusionocc_core.viz.rerun_log import require_rerun

        require_rerun()


def has_display() -> bool:
    """Whether a window could open here."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def save(source: ViewSource, path: Path, *, palette: str | None, console: Console) -> None:
    """Write a recording; it appears whole or not at all."""
    with recording() as rec:
        unfinished = path.with_name(f".{path.stem}.{os.getpid()}.rrd")
        rec.save(unfinished)
        try:
            _log_all(source, rec, palette, console)
        except BaseException:
            rec.disconnect()
            unfinished.unlink(missing_ok=True)
            raise
    unfinished.replace(path)


def show(source: ViewSource, *, palette: str | None, console: Console) -> None:
    """Open rerun's window, which stays when the command ends."""
    with recording() as rec:
        rec.spawn()
        _log_all(source, rec, palette, console)


def serve(source: ViewSource, args: argparse.Namespace, console: Console) -> None:
    """Serve to browsers until interrupted."""
    from fusionocc_core.viz.web_view import web_view

    with web_view(bind=args.bind, port=args.port, data_port=args.data_port) as web, recording() as rec:
        rec.connect_grpc(web.data_url)
        console.print(f"open {web.url} in a browser; Ctrl-C ends", highlight=False, soft_wrap=True)
        if not args.no_browser and has_display():
            webbrowser.open(web.url)
        with contextlib.suppress(KeyboardInterrupt):
            count = _log_all(source, rec, args.palette, console)
            console.print(f"{count} frames are there; Ctrl-C ends", highlight=False)
            while True:
                time.sleep(IDLE_S)


@contextlib.contextmanager
def recording() -> Iterator[Any]:
    """A recording that is flushed and closed at the end, so that files are whole."""
    from fusionocc_core.viz.rerun_log import APPLICATION, require_rerun

    rec = require_rerun().RecordingStream(APPLICATION)
    try:
        yield rec
    finally:
        rec.flush(blocking=True)
        rec.disconnect()


def _log_all(source: ViewSource, rec: Any, palette: str | None, console: Console) -> int:
    from fusionocc_core.viz.rerun_log import RerunLog

    log: RerunLog = RerunLog(rec, palette=palette)
    try:
        for frame in _with_bar(source, console):
            log.add(frame)
    except KeyboardInterrupt:
        if source.total is not None or not log.count:  # of a live source it is how a recording ends
            raise
    if not log.count:
        raise ValueError(f"{source.name}: there is no frame to show")
    return log.count


def _screenshot(source: ViewSource, path: Path, palette: str | None) -> None:
    from fusionocc_core.viz.export import write_picture
    from fusionocc_core.viz.scene_picture import scene_picture

    frame = next(iter(source), None)
    if frame is None:
        raise ValueError(f"{source.name}: there is no frame to show")
    write_picture(path, scene_picture(frame, title=source.name, palette=palette))


def _with_bar(source: ViewSource, console: Console) -> Iterator[ViewFrame]:
    """The frames, with a progress bar at a terminal."""
    from rich.progress import track

    yield from track(
        source, "showing", total=source.total, console=console, transient=True, disable=not console.is_terminal
    )
