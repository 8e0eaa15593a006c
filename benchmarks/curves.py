"""Curves: what ops and flashfusion-mini cost against cameras, points, size of the pictures, Gaussians, grid.

    python benchmarks/curves.py [--short] [--only cameras grid ...] [--threads 1] [--repeats 3]
        [--plot out/benchmarks/curves.png] [--out out/benchmarks/curves.json]

One curve is one op or the network with one of these numbers changed and the rest as in the official networks. The
points of a curve take turns. Time is processor time, the least of the repeats; memory is the peak beyond the arguments
(Linux). The exponent is the slope between the first and the last point on logarithmic axes: 1 grows as the number
does, 0 does not grow. The network is flashfusion-mini with the weights that ship, from sensors to labels, on keyframes
of noise, without decoding of pictures.
"""

from __future__ import annotations

import argparse
import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import torch
from flashfusion import make_frame
from machine import Machine, in_words, machine, wide_console, write_report
from op_inputs import OFFICIAL, frustum_voxels, gaussians, simulated_cloud, street, view_rays
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import Candidate, Run, megabytes, peak_bytes, take_turns

from fusionocc_core.grids import OCC3D_LABELS, VoxelGrid
from fusionocc_core.models.flashfusion import FlashFusion
from fusionocc_core.ops.bev_pool import bev_pool, plan_bev_pool
from fusionocc_core.ops.gaussian_splat import SplatOptions, splat_additive
from fusionocc_core.ops.gaussian_splat_boxes import SplatGrid
from fusionocc_core.ops.sparse_conv import plan_submanifold_conv3d, submanifold_conv3d
from fusionocc_core.ops.volume_render import volume_render
from fusionocc_core.ops.volume_render_rays import RenderConfig
from fusionocc_core.ops.voxelize import voxelize
from fusionocc_core.predictor import Predictor
from fusionocc_core.presets import load_model, make_network
from fusionocc_core.process import arrange_process
from fusionocc_core.structures import SensorFrame

NETWORK = "flashfusion-mini"
MARGIN_STEP = 32
"""The network's maps, grid and margin, are a multiple of this many voxels wide."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Runs of the same work, more of it each time."""

    against: str
    what: str
    unit: str
    points: tuple[tuple[float, Callable[[], Run]], ...]
    """The number, and what makes the run for it."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of a curve."""

    against: str
    what: str
    unit: str
    number: float
    cpu_ms: float
    wall_ms: float
    peak_bytes: int | None


def some(values: Sequence[int], short: bool) -> Sequence[int]:
    """All of them, or the first and the one in the middle."""
    return (values[0], values[len(values) // 2]) if short else values


# -- ops -------------------------------------------------------------------------------------------------------------


def pool(cameras: int = 6, rows: int = 32, edge: int = 200) -> Run:
    """BEV pooling with its plan, as on a vehicle."""
    size = replace(
        OFFICIAL,
        frustum=(cameras, OFFICIAL.frustum[1], rows, rows * OFFICIAL.frustum[3] // OFFICIAL.frustum[2]),
        grid=square(edge),
    )
    plan = plan_bev_pool(frustum_voxels(size), size.grid.shape_zyx)
    _, n, d, h, w = plan.frustum_shape
    depth, feat = torch.rand(1, n, d, h, w), torch.randn(1, n, 32, h, w)
    return lambda: bev_pool(depth, feat, plan)


def square(edge: int) -> VoxelGrid:
    """Occ3D's grid with so many voxels along x and y, around the vehicle."""
    grid = OFFICIAL.grid
    half = edge / 2 * grid.voxel_size[0]
    return replace(grid, lower=(-half, -half, grid.lower[2]), upper=(half, half, grid.upper[2]))


def cloud_of(points: int) -> torch.Tensor:
    """Every so manieth point of seven sweeps."""
    cloud = simulated_cloud(OFFICIAL)
    return cloud[torch.linspace(0, len(cloud) - 1, min(points, len(cloud))).long()]


def voxels(points: int) -> Run:
    """Voxelisation at 5 cm."""
    cloud, grid = cloud_of(points), OFFICIAL.lidar_grid
    return lambda: voxelize((cloud,), grid.lower, grid.voxel_size, grid.shape)


def convolution(points: int) -> Run:
    """Two submanifold convolutions of 32 channels at 10 cm, their rulebook included."""
    cloud, grid = cloud_of(points), replace(OFFICIAL.grid, voxel_size=(0.1, 0.1, 0.1))
    volume = voxelize((cloud,), grid.lower, grid.voxel_size, grid.shape)
    volume = volume.with_features(torch.randn(len(volume.coords_M4), 32))
    weight = torch.randn(32, 3, 3, 3, 32) * 0.05

    def run() -> object:
        plan = plan_submanifold_conv3d(volume, (3, 3, 3))
        return submanifold_conv3d(submanifold_conv3d(volume, weight, plan), weight, plan)

    return run


def splat(num: int = OFFICIAL.gaussians, edge: int = 200) -> Run:
    """Additive Gaussians; as many in a cubic metre whatever the grid, where the grid changes."""
    grid = SplatGrid(lower=(-edge / 4, -edge / 4, -5.0), voxel_size=(0.5, 0.5, 0.5), shape_xyz=(edge, edge, 16))
    made, options = gaussians("solid", num, grid=grid), SplatOptions()
    return lambda: splat_additive(made, grid, options)


def render(edge: int) -> Run:
    """Rays that see the street."""
    labels = torch.from_numpy(street(0))[100 - edge // 2 : 100 + edge // 2, 100 - edge // 2 : 100 + edge // 2]
    density = (0.02 + 5.0 * (labels != OCC3D_LABELS.free))[None]
    scores = torch.rand(*density.shape, 18)
    grid, rays = square(edge), view_rays(replace(OFFICIAL, rays=512))
    radius = edge / 2 * grid.voxel_size[0]
    config = RenderConfig(
        box_lower=grid.lower, box_upper=grid.upper, radius=0.975 * radius, extent=radius, cells_across=edge
    )
    return lambda: volume_render(density, scores, rays, config)


# -- network ---------------------------------------------------------------------------------------------------------


def trained(rows: int | None = None, edge: int | None = None) -> FlashFusion:
    """The network that ships, its weights in one for pictures of so many rows or a grid of so many voxels."""
    model = load_model(NETWORK)
    assert isinstance(model, FlashFusion), "the preset is one"
    config = model.config
    if rows is not None:
        height, width = config.inputs.image_size
        config = replace(config, inputs=replace(config.inputs, image_size=(rows, rows * width // height)))
    if edge is not None:
        config = replace(config, grid=square(edge))
    other = make_network(config).eval()
    other.load_state_dict(model.state_dict())
    assert isinstance(other, FlashFusion), "of the same config"
    return other


def predict(frame: SensorFrame, model: FlashFusion | None = None) -> Run:
    """Sensors to labels."""
    predictor = Predictor(model or load_model(NETWORK))
    return lambda: predictor(frame)


def thinned(frame: SensorFrame, share: int) -> SensorFrame:
    """One in so many points of each sweep."""
    assert frame.lidar is not None, "make_frame gives a LiDAR"
    sweeps = [replace(sweep, points=sweep.points[::share]) for sweep in (frame.lidar, *frame.lidar_history)]
    return replace(frame, lidar=sweeps[0], lidar_history=tuple(sweeps[1:]))


def taken_with(frame: SensorFrame, rows: int) -> SensorFrame:
    """The same pictures from cameras with so many rows of pixels."""

    def resized(camera):  # type: ignore[no-untyped-def]
        scale = rows / camera.image.shape[0]
        image = cv2.resize(camera.image, (round(camera.image.shape[1] * scale), rows))
        intrinsics = camera.intrinsics.copy()
        intrinsics[:2] *= scale
        return replace(camera, image=image, intrinsics=intrinsics)

    return replace(frame, cameras=tuple(resized(camera) for camera in frame.cameras))


# -- all of them -----------------------------------------------------------------------------------------------------


def curves(short: bool) -> Iterator[Curve]:
    """Everything that is measured."""

    def curve(against: str, what: str, unit: str, values: Sequence[int], make: Callable[[int], Run]) -> Curve:
        points = tuple((float(v), lambda v=v: make(v)) for v in some(values, short))
        return Curve(against=against, what=what, unit=unit, points=points)

    frame = make_frame(6, 3)
    count = sum(len(sweep.points) for sweep in (frame.lidar, *frame.lidar_history) if sweep is not None)
    cameras, edges = (1, 2, 4, 6), (40, 104, 200, 296)
    yield curve("cameras", "BEV pooling", "cameras", cameras, lambda n: pool(cameras=n))
    yield curve("cameras", NETWORK, "cameras", cameras, lambda n: predict(make_frame(n, 3)))
    clouds = (8_750, 35_000, 140_000)
    yield curve("points", "voxelisation", "points", clouds, voxels)
    yield curve("points", "2 submanifold convolutions", "points", clouds, convolution)
    shares = (16, 4, 1)
    yield Curve(
        against="points",
        what=NETWORK,
        unit="points",
        points=tuple((count / s, lambda s=s: predict(thinned(frame, s))) for s in some(shares, short)),
    )
    yield curve("pictures", "BEV pooling", "rows of the feature map", (8, 16, 32, 64), lambda n: pool(rows=n))
    rows = (96, 192, 384)
    yield curve("pictures", NETWORK, "rows the network sees", rows, lambda n: predict(frame, trained(rows=n)))
    yield curve("pictures", NETWORK, "rows of the camera", (225, 450, 900), lambda n: predict(taken_with(frame, n)))
    yield curve("Gaussians", "splatting", "Gaussians", (1_600, 6_400, 25_600), splat)
    yield curve("grid", "BEV pooling", "voxels an edge", edges, lambda n: pool(edge=n))
    per_voxel = OFFICIAL.gaussians / 200**2
    yield curve("grid", "splatting", "voxels an edge", edges, lambda n: splat(round(per_voxel * n * n), n))
    yield curve("grid", "rendering, 512 rays", "voxels an edge", (50, 100, 200), render)
    yield curve("grid", NETWORK, "voxels an edge", edges, lambda n: predict(frame, trained(edge=n)))


def measure(curve: Curve, repeats: int, threads: int) -> list[Point]:
    """Its points in turn."""
    runs = [(number, make()) for number, make in curve.points]
    timings = take_turns([Candidate(label=f"{n:g}", run=run) for n, run in runs], repeats, threads)
    return [
        Point(
            against=curve.against,
            what=curve.what,
            unit=curve.unit,
            number=number,
            cpu_ms=timing.best_cpu_ms,
            wall_ms=timing.best_ms,
            peak_bytes=peak_bytes(run),
        )
        for (number, run), timing in zip(runs, timings, strict=True)
    ]


def exponent(points: Sequence[Point]) -> float:
    """Slope of time over number on logarithmic axes, from end to end."""
    first, last = points[0], points[-1]
    return math.log(last.cpu_ms / first.cpu_ms) / math.log(last.number / first.number)


def table_of(found: Sequence[Sequence[Point]]) -> Table:
    """One line a curve."""
    table = Table(title="processor time and peak memory", title_justify="left")
    for heading in ("against", "what", "number", "CPU ms", "MB", "exponent"):
        table.add_column(heading, justify="left" if heading in ("against", "what") else "right")
    for points in found:
        table.add_row(
            f"{points[0].against}: {points[0].unit}",
            points[0].what,
            " ".join(f"{point.number:,.0f}" for point in points),
            " ".join(f"{point.cpu_ms:.0f}" if point.cpu_ms >= 10 else f"{point.cpu_ms:.1f}" for point in points),
            " ".join(megabytes(point.peak_bytes) for point in points),
            f"{exponent(points):.2f}",
        )
    return table


def plot(path: Path, found: Sequence[Sequence[Point]], about: Machine) -> None:
    """A column for each number, time above memory, both axes logarithmic."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    columns = list(dict.fromkeys(points[0].against for points in found))
    figure, axes = pyplot.subplots(
        2, len(columns), figsize=(3.4 * len(columns), 6.5), sharey="row", squeeze=False, layout="constrained"
    )
    for column, against in enumerate(columns):
        for points in (points for points in found if points[0].against == against):
            label = points[0].what + (f", {points[0].unit}" if against == "pictures" else "")
            numbers = [point.number for point in points]
            axes[0, column].loglog(numbers, [point.cpu_ms for point in points], "o-", label=label)
            peaks = [(point.peak_bytes or 0) / 1e6 for point in points]
            axes[1, column].loglog(numbers, peaks, "o-", label=label)
        axes[0, column].set_title(f"against {against}", fontsize=10)
        axes[0, column].legend(fontsize=7)
        units = dict.fromkeys(points[0].unit for points in found if points[0].against == against)
        axes[1, column].set_xlabel(", ".join(units), fontsize=8)
        ticks = [point.number for point in next(points for points in found if points[0].against == against)]
        for panel in axes[:, column]:
            panel.grid(True, which="both", color="0.92")
            if len(units) == 1:
                panel.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
            panel.xaxis.set_minor_formatter("")
    axes[0, 0].set_ylabel("processor time, ms")
    axes[1, 0].set_ylabel("peak memory, MB")
    figure.suptitle(f"{about['cpu']}, one thread, commit {about['commit']}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def run(only: Sequence[str], short: bool, repeats: int, threads: int, console: Console) -> list[list[Point]]:
    """Measure and print."""
    todo = [curve for curve in curves(short) if curve.against in only]
    progress = track(todo, "measuring", console=Console(stderr=True), transient=True)
    found = [measure(curve, repeats, threads) for curve in progress]
    console.print(table_of(found))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = ("cameras", "points", "pictures", "Gaussians", "grid")
    parser.add_argument("--only", nargs="+", choices=numbers, default=numbers, help="some of the numbers")
    parser.add_argument("--short", action="store_true", help="two points a curve, one repeat")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, help="measured rounds (default: 3; with --short 1)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw them (needs matplotlib)")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/curves.json"))
    args = parser.parse_args()
    arrange_process()  # as the package's programs do
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    gc.freeze()  # what the imports left: the memory readings collect garbage again and again
    console, about = wide_console(), machine()
    found = run(args.only, args.short, args.repeats or (1 if args.short else 3), args.threads, console)
    console.print(in_words(about), highlight=False, soft_wrap=True)
    write_report(args.out, about, {"points": [asdict(point) for points in found for point in points]})
    if args.plot:
        plot(args.plot, found, about)
        console.print(f"drawn: {args.plot}", highlight=False)


if __name__ == "__main__":
    main()
