"""Times the viewer's work: ``python benchmarks/viewing.py --data data/sim``.

For every keyframe: what one update of the voxels costs (surface, comparison with the frame before, logging), what a
whole moment costs (six pictures, cloud, truth, prediction, difference, boxes), and one frame of a video (drawing and
encoding). Times are processor time of this process. The prediction is the truth of the keyframe before, so that there
is something to compare. ``--parked`` shows the same volume with a few voxels changed, as of a robot that stands.

``--live`` is the whole over DDS instead: a player replays a scene at its own pace (2 keyframes a second, six pictures),
a node answers each with 30,000 voxels that all move and 200 Gaussians, and `fusionocc view ros` writes what it shows.
Player, node and viewer are processes; it wants two idle cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
from machine import in_words, machine, write_report
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fusionocc_core.commands.view_sources import SourceOptions, open_kind
from fusionocc_core.structures import Occupancy
from fusionocc_core.viz.difference import truth_as_occupancy
from fusionocc_core.viz.rerun_log import RerunLog, require_rerun
from fusionocc_core.viz.scene_picture import scene_picture
from fusionocc_core.viz.surface import surface_voxels
from fusionocc_core.viz.video import VideoWriter
from fusionocc_core.viz.view_frame import ViewFrame

OFFICIAL = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")

WARM_UP = 4
"""Moments before anything is counted."""

PERIOD_S = 0.5
"""Of nuScenes' keyframes: what a live view of them has for each on one core."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a data set with Occ3D labels")
    parser.add_argument("--frames", type=int, default=20, help="keyframes (default: 20, a video of ten seconds)")
    parser.add_argument("--parked", action="store_true", help="the same volume again and again, but for a few voxels")
    parser.add_argument("--no-pictures", action="store_true", help="leave out pictures and the video")
    parser.add_argument("--live", action="store_true", help="look at a replay over DDS instead")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the figures there")
    args = parser.parse_args()
    console = Console()
    about = machine()
    console.print(in_words(about), highlight=False)
    if args.live:
        tell_live(live(args.data, args.frames), about, args.out, console)
        return
    found = measure(args.data, args.frames, parked=args.parked, pictures=not args.no_pictures)
    table = Table(title=f"processor time of {args.frames} keyframes, ms", title_justify="left")
    for name in ("", "p50", "p95", "largest", "all, s"):
        table.add_column(name, justify="left" if not name else "right")
    for name, seconds in found.times_s.items():
        p50, p95 = np.percentile(seconds, [50, 95]) * 1e3
        table.add_row(name, f"{p50:.1f}", f"{p95:.1f}", f"{max(seconds) * 1e3:.1f}", f"{sum(seconds):.1f}")
    console.print(table)
    share = np.percentile(found.times_s["moment"], 95) / PERIOD_S
    console.print(
        f"{found.surface:.0f} visible of {found.solid:.0f} solid voxels, {found.sent:.0f} of them sent, a frame"
    )
    console.print(f"a live view at 2 Hz needs {100 * share:.0f} % of a core (p95)")
    if args.out:
        write_report(args.out, about, {"times_s": found.times_s, "parked": args.parked, "frames": args.frames})


def measure(data: str, frames: int, *, parked: bool, pictures: bool = True) -> SimpleNamespace:
    """All times, seconds, and means of voxels."""
    rerun = require_rerun()
    stream = rerun.RecordingStream("benchmark")
    memory = stream.memory_recording()
    log, whole = RerunLog(stream), RerunLog(stream)
    names = ("voxel update", "moment", *(("picture", "encoding") if pictures else ()))
    times: dict[str, list[float]] = {name: [] for name in names}
    counts: list[tuple[int, int, int]] = []
    with tempfile.TemporaryDirectory() as folder, VideoWriter(Path(folder) / "a.mp4", fps=2.0) as video:
        for step, frame in enumerate(track(moments(data, frames, parked=parked), "keyframes", total=frames)):
            assert frame.prediction is not None, "moments gives it"
            stream.set_time("frame", sequence=step)
            sent = timed(times["voxel update"], lambda p=frame.prediction: log.add_volume("prediction", p))
            solid = len(frame.prediction.occupied())
            counts.append((solid, len(surface_voxels(frame.prediction).index_M), int(sent)))
            timed(times["moment"], lambda f=frame: whole.add(f))
            if pictures:
                picture = timed(times["picture"], lambda f=frame: scene_picture(f))
                timed(times["encoding"], lambda p=picture: video.write(p))
        if pictures:  # the encoder looks ahead: most of its work comes at the end
            timed(times["encoding"], lambda: video.__exit__(None, None, None))
    del memory
    solid, surface, sent = np.mean(counts, axis=0)
    return SimpleNamespace(times_s=times, solid=solid, surface=surface, sent=sent)


@dataclass
class LiveRun:
    """What a live view did."""

    update_wall_s: list[float] = field(default_factory=list)
    """Of each update of the voxels."""
    update_cpu_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    """From the answer's arrival to the end of showing it."""
    stamps_ns: list[int] = field(default_factory=list)
    answers: int = 0
    """That the node gave meanwhile. It does not answer the last keyframe of a round: no later picture follows it."""
    wall_s: float = 0.0
    cpu_s: float = 0.0


def live(data: str, frames: int) -> LiveRun:
    """Look at so many moments of a replay; see the module's text."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "ros"))
    from live_processes import playing

    from fusionocc_core.data.nuscenes import NuScenesFrames
    from fusionocc_ros import view_moments
    from fusionocc_ros.bag import write_bag
    from fusionocc_ros.live_view import OPENER

    run, arrived, arrivals = LiveRun(), dict[int, float](), list[int]()
    real_take = view_moments.ViewMoments.take

    def take(self: view_moments.ViewMoments, topic: str, stamp_ns: int, load: view_moments.Load) -> None:
        if topic == self.topics.occupancy:
            arrived[stamp_ns] = time.monotonic()
            arrivals.append(stamp_ns)
        real_take(self, topic, stamp_ns, load)

    class Timed(RerunLog):
        def add_volume(self, name: str, occupancy: Occupancy) -> int:
            wall, cpu = time.monotonic(), time.thread_time()
            sent = super().add_volume(name, occupancy)
            run.update_wall_s.append(time.monotonic() - wall)
            run.update_cpu_s.append(time.thread_time() - cpu)
            return sent

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(view_moments.ViewMoments, "take", take):
        bag = write_bag(Path(data), Path(folder) / "bag", scene=NuScenesFrames(data).scenes[0], keyframes_only=True)
        stream = require_rerun().RecordingStream("benchmark")
        stream.save(Path(folder) / "live.rrd")
        log, began, cpu = Timed(stream), 0.0, 0.0
        with playing(bag.path, Path(folder), voxels=30_000, cameras=OFFICIAL) as env, mock.patch.dict(os.environ, env):
            for frame in OPENER.open(SourceOptions(source="ros", limit=frames + WARM_UP)):
                log.add(frame)
                if log.count == WARM_UP:
                    run.update_wall_s, run.update_cpu_s = [], []
                    began, cpu = time.monotonic(), time.process_time()
                    del arrivals[: arrivals.index(frame.stamp_ns) + 1]
                elif log.count > WARM_UP:
                    run.stamps_ns.append(frame.stamp_ns)
                    if frame.prediction is not None:
                        run.late_s.append(time.monotonic() - arrived[frame.stamp_ns])
                        run.answers = len(arrivals) - arrivals[::-1].index(frame.stamp_ns)
            run.wall_s, run.cpu_s = time.monotonic() - began, time.process_time() - cpu
    return run


def tell_live(run: LiveRun, about: dict[str, object], out: Path | None, console: Console) -> None:
    """Print it."""
    table = Table(title=f"live view of {len(run.stamps_ns)} keyframes, ms", title_justify="left")
    for name in ("", "p50", "p95", "largest"):
        table.add_column(name, justify="left" if not name else "right")
    for name, seconds in (
        ("voxel update", run.update_wall_s),
        ("of it processor", run.update_cpu_s),
        ("from the answer's arrival to its end on the screen", run.late_s),
    ):
        p50, p95 = np.percentile(seconds, [50, 95]) * 1e3
        table.add_row(name, f"{p50:.1f}", f"{p95:.1f}", f"{max(seconds) * 1e3:.1f}")
    console.print(table)
    console.print(
        f"{len(run.late_s)} of {run.answers} answers shown in {run.wall_s:.1f} s; the viewer took "
        f"{100 * run.cpu_s / run.wall_s:.0f} % of a core",
        highlight=False,
    )
    if out:
        write_report(out, about, vars(run))


def moments(data: str, frames: int, *, parked: bool) -> Iterator[ViewFrame]:
    """Keyframes with a prediction: the truth of the one before."""
    rng = np.random.default_rng(0)
    before: Occupancy | None = None
    for frame in open_kind(SourceOptions(source=data, limit=frames)):
        assert frame.truth is not None, f"{data} has no labels"
        truth = truth_as_occupancy(frame.truth, frame.stamp_ns)
        prediction = before or truth
        if parked:
            labels = prediction.labels.copy()
            x, y = rng.integers(0, np.array(labels.shape[:2]) - 6)
            labels[x : x + 5, y : y + 5, 2:5] = truth.label_set.names.index("car")
            prediction = replace(prediction, labels=labels)
        yield replace(frame, prediction=prediction, latencies_s={"total": 0.1})
        if not parked or before is None:
            before = truth


def timed(into: list[float], work: Callable[[], object]) -> object:
    """The result of some work, its processor time noted."""
    began = time.process_time()
    result = work()
    into.append(time.process_time() - began)
    return result


if __name__ == "__main__":
    main()
