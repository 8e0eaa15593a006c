"""The parameters of what the node publishes; all but those that create topics can be changed while it runs."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fusionocc_core.grids import OCC3D_LABELS
from fusionocc_ros.palettes import DEFAULT, PALETTES
from fusionocc_ros.parameter_fields import parameter

DENSE, SPARSE, RUN_LENGTH = "dense", "sparse", "run_length"
BASE, FIXED = "base", "fixed"
STD_MSGS, AUTOWARE = "std_msgs", "autoware"

FASTEST_HZ = 100.0
"""Of the parameters that limit a rate."""


def _offer(topic: str, what: str, *, default: bool = True) -> bool:
    made = "made only while someone listens"
    out: bool = parameter(default, f"Offer {topic}, {what} ({made}).", name=f"publish.{topic.removeprefix('~/')}")
    return out


def _rate(name: str, default: float) -> float:
    description = "Most messages a second; 0: one for every result."
    out: float = parameter(default, description, name=f"{name}.max_rate", low=0.0, high=FASTEST_HZ, live=True)
    return out


@dataclass(frozen=True, kw_only=True)
class OutputParameters:
    """What is published, how and how often."""

    encoding: str = parameter(
        DENSE,
        "Of ~/occupancy: a byte for every voxel, only the voxels that are not free, or runs of equal labels.",
        name="publish.encoding",
        choices=(DENSE, SPARSE, RUN_LENGTH),
        live=True,
    )
    palette: str = parameter(
        DEFAULT, "Colours of the classes, in every output that has colours.", choices=tuple(PALETTES), live=True
    )
    publish_markers: bool = _offer("~/markers", "cubes for rviz")
    publish_voxels: bool = _offer("~/voxels", "the occupied voxels as a cloud")
    publish_gaussians: bool = _offer("~/gaussians", "ellipsoids for rviz, of networks that have Gaussians")
    publish_grid: bool = _offer("~/grid", "what blocks a robot, for Nav2")
    publish_voxel_grid: bool = _offer("~/voxel_grid", "columns of Nav2, where nav2_msgs is installed")
    publish_foxglove: bool = _offer("~/foxglove", "voxels for Foxglove, where foxglove_msgs is installed")
    publish_images: bool = _offer("~/images", "depth and confidence as each camera would see them", default=False)
    publish_latency: bool = _offer("~/debug", "latencies under Autoware's names")

    occupancy_max_rate: float = _rate("occupancy", 0.0)
    markers_max_rate: float = _rate("markers", 5.0)
    voxels_max_rate: float = _rate("voxels", 0.0)
    gaussians_max_rate: float = _rate("gaussians", 2.0)
    grid_max_rate: float = _rate("grid", 0.0)
    voxel_grid_max_rate: float = _rate("voxel_grid", 0.0)
    foxglove_max_rate: float = _rate("foxglove", 5.0)
    images_max_rate: float = _rate("images", 2.0)

    markers_alpha: float = parameter(1.0, "Opacity of the markers.", name="markers.alpha", low=0.0, high=1.0, live=True)
    markers_surface_only: bool = parameter(
        True, "Leave out of ~/markers the voxels that are hidden on all sides.", name="markers.surface_only", live=True
    )

    gaussians_most: int = parameter(
        1000,
        "Most markers in ~/gaussians, those with the largest opacity first.",
        name="gaussians.most",
        low=1,
        high=100_000,
        live=True,
    )
    gaussians_deviations: float = parameter(
        1.0,
        "Half an axis of an ellipsoid in ~/gaussians, in standard deviations.",
        name="gaussians.deviations",
        low=0.1,
        high=5.0,
        live=True,
    )
    grid_frame: str = parameter(
        FIXED,
        "Frame of ~/grid: that of the vehicle, or fixed_frame where /tf gives the vehicle's motion (else the former).",
        name="grid.frame",
        choices=(BASE, FIXED),
        live=True,
    )
    grid_min_height: float = parameter(
        0.2,
        "What lies lower does not block, metres above base_frame.",
        name="grid.min_height",
        low=-10.0,
        high=10.0,
        live=True,
    )
    grid_max_height: float = parameter(
        2.5,
        "What hangs higher does not block, metres above base_frame.",
        name="grid.max_height",
        low=-10.0,
        high=20.0,
        live=True,
    )
    grid_drivable_classes: tuple[str, ...] = parameter(
        ("driveable_surface",),
        "Classes that the robot may drive on: they never block.",
        name="grid.drivable_classes",
        live=True,
    )
    grid_require_surface: bool = parameter(
        True,
        "Free is only where a drivable class is seen: other ground blocks, a column of nothing is unknown.",
        name="grid.require_surface",
        live=True,
    )
    images_width: int = parameter(
        320, "Width of ~/images; their height follows the camera's.", name="images.width", low=16, high=1920, live=True
    )
    latency_messages: str = parameter(
        STD_MSGS,
        "Type of ~/debug: std_msgs/Float64, or Autoware's Float64Stamped where it is installed.",
        name="debug.messages",
        choices=(STD_MSGS, AUTOWARE),
    )
    snapshot_folder: str = parameter(
        "", "Folder of the service ~/save_snapshot; empty: it is refused.", name="snapshot.folder", read_only=True
    )
    snapshot_most_files: int = parameter(
        100,
        "With so many files in the folder, snapshots are refused.",
        name="snapshot.most_files",
        low=1,
        high=100_000,
        read_only=True,
    )

    def check_outputs(self) -> None:
        """Refuse combinations that cannot work, by the parameters' ROS names.

        Raises:
            ValueError: names the parameter, its value and what was expected.
        """
        if self.grid_max_height <= self.grid_min_height:
            raise ValueError(
                f"grid.max_height: {self.grid_max_height} must lie above grid.min_height, {self.grid_min_height}"
            )
        if not self.grid_drivable_classes or not all(self.grid_drivable_classes):
            raise ValueError(
                "grid.drivable_classes: expected names of classes, none of them empty, got "
                f"{list(self.grid_drivable_classes)}; for example {OCC3D_LABELS.names[11]}"
            )


FIELDS = tuple(f.name for f in fields(OutputParameters))
"""Names of the fields above."""
